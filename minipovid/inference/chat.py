"""A conversation in the terminal: several turns, answers as they come, a picture named in any of them.

    converse(Path("runs/mine"))

What is said and shown stays in memory, unless /save is asked for. Answers go to stdout, notes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import unquote

from PIL import Image

from minipovid.common import interrupts
from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.images import load as images
from minipovid.inference.llama_cpp import Runtime, Sampling
from minipovid.models.chat_template import Turn

HELP = """\
Name a picture in a message to show it: photo.jpg What is on the table?
/image PATH   show a picture with the next message
/system TEXT  say how the model should behave; without TEXT, no longer
/undo         take back the last question and its answer
/new          forget the conversation
/save FILE    write the conversation to a new file, a turn per line (JSON)
/quit         leave; so does Ctrl-D
Ctrl-C stops an answer and keeps what came of it."""
PROMPT = "> "
ADVICE = "/undo takes a question back, /new begins afresh."


@dataclass
class Conversation:
    """What was said so far, and the pictures that wait for the next message.

    Pictures are kept as they were when they were named, for a file may change; `info["path"]` says where they were.
    """

    system: str = ""
    past: list[Turn] = field(default_factory=list)
    waiting: list[Image.Image] = field(default_factory=list)

    def turns(self) -> list[Turn]:
        return ([Turn("system", self.system)] if self.system else []) + self.past

    def question(self, line: str) -> bool:
        """Take a line of the user's. False where it only named pictures, which now wait for a message.

        Raises MinipovidError for a picture that cannot be read; then nothing is taken.
        """
        text, paths = pictures_in(line)
        self.waiting += [_look(path) for path in paths]
        if text:
            self.past.append(Turn("user", text, tuple(self.waiting)))
            self.waiting = []
        return bool(text)

    def command(self, name: str, rest: str) -> str:
        """Obey a command; what to tell the user. Raises MinipovidError for one that there is not."""
        commands = {"/image": self._image, "/system": self._system, "/undo": self._undo, "/new": self._new}
        commands |= {"/save": self._save, "/help": lambda _: HELP}
        if name not in commands:
            raise MinipovidError(f"There is no command {name}; /help lists them.")
        return commands[name](rest)

    def announcement(self) -> str:
        """What waits to be shown, sizes as the viewer sees them."""
        each = (f"{Path(picture.info['path']).name} ({picture.width} x {picture.height})" for picture in self.waiting)
        return f"Your next message shows {', '.join(each)}."

    def _image(self, rest: str) -> str:
        path = _file(rest.strip("\"'"))
        if path is None:
            raise MinipovidError(f"There is no file {rest!r}; write /image PATH.")
        self.waiting.append(_look(path))
        return self.announcement()

    def _system(self, rest: str) -> str:
        self.system = rest
        return "Set." if rest else "Removed."

    def _undo(self, _: str) -> str:
        """What waits to be shown is taken back first."""
        if self.waiting:
            return f"{Path(self.waiting.pop().info['path']).name} is not shown."
        while self.past:
            if self.past.pop().role == "user":
                return "Taken back."
        return "There is nothing to take back."

    def _new(self, _: str) -> str:
        self.past, self.waiting = [], []
        return "Forgotten."

    def _save(self, rest: str) -> str:
        path = Path(os.path.expanduser(rest))
        rows = [
            {"role": role, "text": text, "pictures": [p.info["path"] for p in pictures if isinstance(p, Image.Image)]}
            for role, text, pictures in self.turns()
        ]
        try:
            if not rest or path.exists() or not path.parent.is_dir():
                raise MinipovidError("Write /save FILE, with a new file in a folder that there is.")
            with finished(path) as draft:
                draft.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        except (OSError, ValueError) as error:  # a name too long, or with a NUL; half a character in the text
            why = getattr(error, "strerror", None) or error
            raise MinipovidError(f"{rest[:80]!r} cannot be written: {why}; name another file.") from None
        return f"{len(rows)} turns are in {path}."


def pictures_in(line: str) -> tuple[str, list[Path]]:
    """The text of a line, and the files that it names: plain, quoted, with backslashes or as file:// (dragged here).

    Only files that exist and end like pictures count. A path before or behind a sentence is cut out; inside one "the
    picture" stands for it, since the model knows no files.
    """
    text, paths, past = "", [], 0
    for ending in _endings().finditer(line):
        end = ending.end()
        for begin in (past + match.start() for match in re.finditer(r"(?<![^\s\"'(])\S", line[past:end])):
            if path := _file(line[begin:end]):
                paths.append(path)
                before, behind = line[past:begin], line[end:]
                if behind[:1] in ("'", '"') and before.endswith(behind[0]):
                    before, behind = before[:-1], behind[1:]
                text, past = text + before, len(line) - len(behind)
                inside = text.strip() and text.rstrip()[-1] not in ".?!:"
                text = text + "the picture" if inside else text.rstrip()
                break
    return (text + line[past:]).strip(), paths


@cache
def _endings() -> re.Pattern[str]:
    endings = [ending[1:] for ending, kind in Image.registered_extensions().items() if kind in images.FORMATS]
    return re.compile(rf"\.(?:{'|'.join(endings)})(?!\w|\.\w)", re.IGNORECASE)


def _file(spelling: str) -> Path | None:
    """The file that is meant by a spelling, if there is one."""
    dragged = unquote(spelling.removeprefix("file://")) if spelling.startswith("file://") else spelling
    for path in map(os.path.expanduser, dict.fromkeys((spelling, re.sub(r"\\(.)", r"\1", spelling), dragged))):
        if os.path.isfile(path):
            return Path(path)
    return None


def _look(path: Path) -> Image.Image:
    picture = images.load(path)
    picture.info["path"] = str(path.absolute())
    return picture


def chat(
    runtime: Runtime,
    lines: Iterable[str],
    out: TextIO,
    notes: TextIO,
    sampling: Sampling | None = None,
    strict: bool = False,
) -> Conversation:
    """Converse until the lines end or /quit comes. `strict`: the first mistake is raised, as a script wants it; else it
    is told."""
    talk = Conversation()
    for line in map(str.strip, lines):
        name, _, rest = line.partition(" ")
        note = ""
        try:
            if name == "/quit":
                break
            if re.fullmatch(r"/\w+", name):
                note = talk.command(name, rest.strip())
            elif talk.question(line):
                note = answer(runtime, talk, sampling or Sampling(), out)
            elif talk.waiting:
                note = talk.announcement()
        except MinipovidError as error:
            if strict:
                raise
            note = str(error)
        if note:
            print(note, file=notes, flush=True)
    return talk


def answer(runtime: Runtime, talk: Conversation, sampling: Sampling, out: TextIO) -> str:
    """Let the model answer the last question and keep what it says; what to tell the user about it.

    Raises MinipovidError, and takes the question back, where it cannot be answered.
    """
    text = ""
    pressed: list[bool] = []  # Ctrl-C: the model is not torn out of a computation
    try:
        with runtime.say(talk.turns(), sampling) as reply, interrupts.deferred(lambda: pressed.append(True)):
            for piece in reply:
                text += piece
                print(plain(piece), end="", file=out, flush=True)
                if pressed:
                    break
    except MinipovidError as error:
        talk.past.pop()
        raise MinipovidError(f"{error} {ADVICE}" if talk.past else str(error)) from None
    if text:
        print(file=out, flush=True)
    talk.past.append(Turn("assistant", text))
    if reply.prompt_tokens + reply.answer_tokens >= runtime.n_ctx:
        return f"The context of {runtime.n_ctx} tokens is full; {ADVICE}"
    return f"(cut after {reply.answer_tokens} tokens)" if reply.finish_reason == "length" else ""


def plain(text: str) -> str:
    """Without control characters: a terminal would obey what a model says."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def typed() -> Iterator[str]:
    """Lines from a terminal, with a history that lasts as long as the program. Ctrl-D ends them."""
    with contextlib.suppress(ImportError):  # Windows has its own
        import readline  # noqa: F401 - gives input() its arrow keys
    while True:
        try:
            line = input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves.", file=sys.stderr)
            continue
        yield line


def converse(run: Path, *, quant: str | None = None, sampling: Sampling | None = None, **options: Any) -> None:
    """Chat with a run on stdin and stdout; `options` go to Runtime. Raises MinipovidError for a script's mistake."""
    with Runtime.open(run, quant=quant, **options) as runtime:
        if not sys.stdin.isatty():
            chat(runtime, sys.stdin, sys.stdout, sys.stderr, sampling, strict=True)
            return
        print(f"{runtime.path.name}. /help tells what you can do here, Ctrl-D ends it.", file=sys.stderr)
        chat(runtime, typed(), sys.stdout, sys.stderr, sampling)
