"""The conversation in the terminal: driven by strings, and once through a pseudo-terminal with a real model."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import tiny_llava
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.inference.chat import HELP, Conversation, chat, pictures_in, plain
from minipovid.inference.llama_cpp import Sampling
from minipovid.models.chat_template import Turn


class FakeReply:
    """Pieces of an answer; the context is full with 50 tokens."""

    def __init__(self, pieces: Sequence[str], prompt_tokens: int):
        self.pieces, self.closed = iter(pieces), False
        self.prompt_tokens, self.answer_tokens = prompt_tokens, 0
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self.pieces, None)
        if piece is None:
            self.finish_reason = "stop"
            raise StopIteration
        if piece == "CUT":
            self.finish_reason = "length"
            raise StopIteration
        if piece == "CTRL-C":
            signal.raise_signal(signal.SIGINT)
            return "still "
        self.answer_tokens += 1
        return piece

    def __enter__(self) -> FakeReply:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True


class FakeRuntime:
    """Answers the n-th question with the n-th of `answers`, and remembers what it was told."""

    n_ctx = 50

    def __init__(self, *answers: Sequence[str]):
        self.answers = iter(answers)
        self.heard: list[list[Turn]] = []
        self.replies: list[FakeReply] = []

    def say(self, turns: Sequence[Turn], sampling: Sampling) -> FakeReply:
        self.heard.append(list(turns))
        tokens = sum(len(turn.text.split()) for turn in turns)
        if tokens > self.n_ctx:
            raise MinipovidError(f"The prompt takes {tokens} tokens, more than the context of 50; shorten it.")
        self.replies.append(FakeReply(next(self.answers, ["yes"]), tokens))
        return self.replies[-1]


def talk(runtime: FakeRuntime, *lines: str, strict: bool = False) -> tuple[str, str, Conversation]:
    """(what stands on stdout, on stderr, the conversation) after these lines."""
    out, notes = io.StringIO(), io.StringIO()
    conversation = chat(runtime, lines, out, notes, strict=strict)  # type: ignore[arg-type]
    return out.getvalue(), notes.getvalue(), conversation


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with pictures whose names are easy and not."""
    for name, side in (("cat.jpg", 3), ("my dog.png", 4), ("it's.webp", 5), ("a (1).PNG", 6), ("100% Ä.gif", 7)):
        Image.new("RGB", (side, side)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("cat.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_conversation_goes_on() -> None:
    runtime = FakeRuntime(["A ", "dog."], ["No."])
    out, notes, _ = talk(runtime, "What is it?", "", "  Sure?  ")
    assert (out, notes) == ("A dog.\nNo.\n", "")
    first = [Turn("user", "What is it?")]
    assert runtime.heard == [first, [*first, Turn("assistant", "A dog."), Turn("user", "Sure?")]]
    assert all(reply.closed for reply in runtime.replies)


@pytest.mark.parametrize(
    ("line", "text", "names"),
    [
        ("What is it?", "What is it?", []),
        ("cat.jpg What is it?", "What is it?", ["cat.jpg"]),
        ("What is it? cat.jpg", "What is it?", ["cat.jpg"]),
        ("What is in cat.jpg?", "What is in the picture?", ["cat.jpg"]),
        ("Is cat.jpg like 'my dog.png' at all?", "Is the picture like the picture at all?", ["cat.jpg", "my dog.png"]),
        ("cat.jpg my dog.png What differs?", "What differs?", ["cat.jpg", "my dog.png"]),
        ("cat.jpg cat.jpg Twice?", "Twice?", ["cat.jpg", "cat.jpg"]),
        ("my dog.png", "", ["my dog.png"]),
        (r"my\ dog.png Well?", "Well?", ["my dog.png"]),
        ('"my dog.png" Well?', "Well?", ["my dog.png"]),
        ("'my dog.png' Well?", "Well?", ["my dog.png"]),
        ("Well ('my dog.png')?", "Well (the picture)?", ["my dog.png"]),
        ("it's.webp isn't it?", "isn't it?", ["it's.webp"]),
        (r"it\'s.webp Well?", "Well?", ["it's.webp"]),
        (r"a\ \(1\).PNG Well?", "Well?", ["a (1).PNG"]),
        ("Look at a (1).PNG now", "Look at the picture now", ["a (1).PNG"]),
        ("{}/cat.jpg Well?", "Well?", ["cat.jpg"]),
        ("file://{}/my%20dog.png Well?", "Well?", ["my dog.png"]),
        ("file://{}/100%25%20%C3%84.gif Well?", "Well?", ["100% Ä.gif"]),
        ("100% Ä.gif Well?", "Well?", ["100% Ä.gif"]),
        ("dog.jpg Well?", "dog.jpg Well?", []),  # no such file
        ("notes.txt Well?", "notes.txt Well?", []),  # no picture's name
        ("cat.jpgs and cat.jpg.txt", "cat.jpgs and cat.jpg.txt", []),
        ("CAT.JPEG " * 300, ("CAT.JPEG " * 300).strip(), []),
        ("x" * 10_000 + ".png\0", "x" * 10_000 + ".png\0", []),
    ],
)
def test_pictures_are_found_in_a_line(album: Path, line: str, text: str, names: list[str]) -> None:
    found = pictures_in(line.format(album) if "{}" in line else line)
    assert (found[0], [path.name for path in found[1]]) == (text, names)


def test_a_picture_in_any_turn(album: Path) -> None:
    runtime = FakeRuntime()
    _, notes, _ = talk(runtime, "cat.jpg What is it?", "/image my dog.png", "it's.webp", "And these?", "Well?")
    assert [[picture.size for picture in turn.pictures] for turn in runtime.heard[-1]] == [
        *([(3, 3)], []),
        *([(4, 4), (5, 5)], []),
        [],
    ]
    assert notes == (
        "Your next message shows my dog.png (4 x 4).\nYour next message shows my dog.png (4 x 4), it's.webp (5 x 5).\n"
    )


def test_a_picture_stays_what_it_was(album: Path) -> None:
    """A screenshot that is taken anew under its old name does not change what was shown before."""
    runtime = FakeRuntime()

    def lines() -> Iterator[str]:
        yield "cat.jpg What is it?"
        Image.new("RGB", (9, 9)).save(album / "cat.jpg")
        yield "cat.jpg And now?"

    chat(runtime, lines(), io.StringIO(), io.StringIO())  # type: ignore[arg-type]
    sizes = [
        picture.size for turn in runtime.heard[-1] for picture in turn.pictures if isinstance(picture, Image.Image)
    ]
    assert sizes == [(3, 3), (9, 9)]


def test_a_picture_that_is_none_is_told_and_nothing_sent(album: Path) -> None:
    runtime = FakeRuntime()
    out, notes, _ = talk(
        runtime, "cat.jpg broken.png Which?", "/image nowhere.png", "/image", "/image notes.txt", "Well?"
    )
    first, second, third, fourth = notes.splitlines()
    assert "broken.png" in first and second == "There is no file 'nowhere.png'; write /image PATH."
    assert third.endswith("write /image PATH.") and "notes.txt is not a picture" in fourth
    assert (out, runtime.heard) == ("yes\n", [[Turn("user", "Well?")]])


def test_a_script_stops_at_its_first_mistake(album: Path) -> None:
    runtime = FakeRuntime()
    with pytest.raises(MinipovidError, match="broken.png"):
        talk(runtime, "Well?", "broken.png Which?", "Well?", strict=True)
    assert len(runtime.heard) == 1


def test_commands(album: Path) -> None:
    runtime = FakeRuntime()
    _, notes, after = talk(
        runtime,
        *(
            "/help",
            "/nonsense",
            "/undo",
            "/system Be brief.",
            "one",
            "/undo",
            "two",
            "cat.jpg",
            "/undo",
            "cat.jpg",
            "/new",
        ),
        *("three", "/system", "four", "/quit", "five"),
    )
    assert notes.removeprefix(HELP).splitlines() == [
        *("", "There is no command /nonsense; /help lists them.", "There is nothing to take back.", "Set."),
        *("Taken back.", "Your next message shows cat.jpg (3 x 3).", "cat.jpg is not shown."),
        *("Your next message shows cat.jpg (3 x 3).", "Forgotten.", "Removed."),
    ]
    system, answer = Turn("system", "Be brief."), Turn("assistant", "yes")
    assert runtime.heard == [
        [system, Turn("user", "one")],
        [system, Turn("user", "two")],
        [system, Turn("user", "three")],
        [Turn("user", "three"), answer, Turn("user", "four")],
    ]
    assert len(after.past) == 4


def test_a_path_is_no_command(album: Path) -> None:
    runtime = FakeRuntime()
    _, notes, _ = talk(runtime, f"{album}/cat.jpg What?", "/usr/bin/env what is that?")
    assert [turn.text for turn in runtime.heard[-1]] == ["What?", "yes", "/usr/bin/env what is that?"] and not notes


def test_saving(album: Path) -> None:
    target = album / "talk.jsonl"
    _, notes, _ = talk(
        FakeRuntime(["Ja, ", "schön."]),
        "/system Kurz.",
        "cat.jpg Ist das schön?",
        "/save talk.jsonl",
        "/save talk.jsonl",
    )
    assert [json.loads(line) for line in target.read_text("utf-8").splitlines()] == [
        {"role": "system", "text": "Kurz.", "pictures": []},
        {"role": "user", "text": "Ist das schön?", "pictures": [str(album / "cat.jpg")]},
        {"role": "assistant", "text": "Ja, schön.", "pictures": []},
    ]
    assert notes.splitlines()[1:] == [
        "3 turns are in talk.jsonl.",
        "Write /save FILE, with a new file in a folder that there is.",
    ]
    for bad in ("/save", "/save nowhere/talk.jsonl", f"/save {album}"):
        assert "Write /save FILE" in talk(FakeRuntime(), bad)[1]


@pytest.mark.parametrize("name", ["x" * 5000, "talk\0.jsonl", "talk.jsonl"], ids=["long", "NUL", "half a letter"])
def test_what_cannot_be_saved_is_not_lost(album: Path, name: str) -> None:
    runtime = FakeRuntime()
    _, notes, _ = talk(runtime, "One \udc80?", f"/save {name}", "Two?")
    assert [turn.text for turn in runtime.heard[-1]] == ["One \udc80?", "yes", "Two?"]
    assert notes.count("\n") == 1 and len(notes) < 250 and notes.endswith("; name another file.\n")
    assert not [*album.glob("*talk*")]


def test_ctrl_c_stops_the_answer_and_keeps_what_came() -> None:
    runtime = FakeRuntime(["a ", "long ", "CTRL-C", "story ", "of ", "no end"], ["no"])
    before = signal.getsignal(signal.SIGINT)
    out, notes, _ = talk(runtime, "Tell.", "More?")
    assert (out, notes) == ("a long still \nno\n", "")
    assert runtime.heard[-1][1] == Turn("assistant", "a long still ")
    assert runtime.replies[0].closed and signal.getsignal(signal.SIGINT) == before


def test_ctrl_c_twice_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGINT)

    class Stubborn(FakeReply):
        def __next__(self) -> str:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            return "never"

    runtime = FakeRuntime()
    runtime.say = lambda turns, sampling: Stubborn([], 1)  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        talk(runtime, "Tell.")
    assert signal.getsignal(signal.SIGINT) == before


def test_a_full_context_is_told_and_the_conversation_goes_on() -> None:
    runtime = FakeRuntime(["x "] * 30, ["x "] * 20, ["short"])
    out, notes, after = talk(runtime, "one", "two", "a b c", "/undo", "three")
    first, second, third = notes.splitlines()
    advice = "/undo takes a question back, /new begins afresh."
    assert first == f"The context of 50 tokens is full; {advice}"
    assert second == f"The prompt takes 55 tokens, more than the context of 50; shorten it. {advice}"
    assert third == "Taken back." and [turn.text for turn in after.past if turn.role == "user"] == ["one", "three"]
    assert "begins afresh" not in talk(FakeRuntime(), "word " * 51)[1], "there is nothing to forget yet"


def test_an_answer_that_was_cut_says_so() -> None:
    assert talk(FakeRuntime(["a ", "b", "CUT"]), "Tell.")[1] == "(cut after 2 tokens)\n"


def test_a_model_does_not_command_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jhi\x9b31m\tthere\r\n\x7f é 👩\u200d🔬"
    assert plain(evil) == "]0;owned[2Jhi31m\tthere\n é 👩\u200d🔬"
    assert talk(FakeRuntime(["\x1b[2J", "hi"]), "Well?")[0] == "[2Jhi\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a GGUF pair with random weights."""
    folder = tmp_path_factory.mktemp("chat")
    export_base(str(tiny_llava.build(folder / "tiny-7b")), folder / "run" / "gguf", ["f32"])
    Image.new("RGB", (30, 20), "red").save(folder / "my red.png")
    return folder / "run"


CONVERSE = """
import faulthandler, signal, sys
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)  # instead of hanging it says where
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored
from minipovid.inference.chat import converse
converse(Path(sys.argv[1]))
"""


PROMPT = "\n> "  # at the beginning of a line: an answer may hold the same letters


def test_in_a_terminal(run: Path) -> None:
    """Prompts, arrow keys, a picture that is dragged in, Ctrl-C and Ctrl-D at the prompt, as a user sees them."""
    parent, child = pty.openpty()
    command = [sys.executable, "-c", CONVERSE, str(run)]
    environment = {**os.environ, "TERM": "xterm"}
    done = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environment, start_new_session=True)
    os.close(child)
    seen = b""

    def until(text: str) -> None:
        nonlocal seen
        end = time.monotonic() + 60
        while text.encode() not in seen:
            ready, _, _ = select.select([parent], [], [], max(0, end - time.monotonic()))
            assert ready, seen
            seen = re.sub(rb"\x1b\[[?\d;]*[A-Za-z]", b"", seen + os.read(parent, 4096))  # without readline's colours
        seen = seen.partition(text.encode())[2]

    def type_in(text: str) -> None:
        os.write(parent, text.encode())

    try:
        until("Ctrl-D ends it.")
        until(PROMPT)
        type_in(str(run.parent / "my red.png").replace(" ", "\\ ") + "\n")
        until("Your next message shows my red.png (30 x 20).")
        until(PROMPT)
        type_in("What is this?\n")
        until(PROMPT)
        # Between readline's prompt and its wait for a key Python keeps a Ctrl-C until a line comes (1 of 400 tries).
        while psutil.Process(done.pid).status() not in (psutil.STATUS_SLEEPING, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)
        os.killpg(done.pid, signal.SIGINT)
        until("/quit or Ctrl-D leaves.")
        until(PROMPT)
        type_in("\x1b[A")  # arrow up
        until("What is this?")
        type_in("\x04\n")
        until(PROMPT)
        type_in("/save talk.jsonl\n".replace("talk", str(run / "talk")))
        until("4 turns are in")
        until(PROMPT)
        type_in("\x04")
        assert done.wait(30) == 0
    finally:
        done.kill()
        os.close(parent)
    rows = [json.loads(line) for line in (run / "talk.jsonl").read_text("utf-8").splitlines()]
    assert [row["role"] for row in rows] == ["user", "assistant"] * 2
    assert [len(row["pictures"]) for row in rows] == [1, 0, 0, 0] and rows[2]["text"] == "What is this?"


def test_as_a_script(run: Path) -> None:
    """Without a terminal only answers stand on stdout, and they are the runtime's."""
    from minipovid.inference.llama_cpp import Runtime

    def script(lines: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CONVERSE, str(run)]
        return subprocess.run(command, input=lines, capture_output=True, text=True, timeout=90)

    done = script(f"'{run.parent / 'my red.png'}' What is this?\nAnd that?\n")
    assert (done.returncode, done.stderr) == (0, "")
    with Runtime.open(run) as runtime:
        first = runtime.answer(run.parent / "my red.png", "What is this?")
    assert first and done.stdout.startswith(f"{plain(first)}\n")
    wrong = script("/nonsense\n")
    assert wrong.returncode == 1 and "There is no command /nonsense" in wrong.stderr
