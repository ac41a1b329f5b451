"""Conversations with any number of pictures: what is said, what is read again, what is drawn, whose turn it is."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llava
from twin import QUESTIONS, Twin, picture

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.inference import llama_cpp
from minipovid.inference.llama_cpp import Runtime, Sampling, kv_cache
from minipovid.inference.llama_cpp.kv_cache import KvCache
from minipovid.inference.llama_cpp.language import Language
from minipovid.inference.llama_cpp.sampling import Sampler
from minipovid.inference.llama_cpp.stream import Stream, whole
from minipovid.inference.llama_cpp.tower import Tower
from minipovid.inference.llama_cpp.vision import PreparedPicture
from minipovid.models.chat_template import Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "tiny-7b", dtype="float16")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return export_base(str(folder), folder.parent / "gguf", ["f16"])


@pytest.fixture
def runtime(files: list[Path]) -> Iterator[Runtime]:
    with Runtime(*files, n_ctx=512) as runtime:
        yield runtime


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions llama.cpp computes, step by step; a picture counts as -1."""
    found: list[int] = []
    read = KvCache._read_step

    def spy(self: KvCache, part: Any, first_output: int) -> Any:
        found.append(-1 if isinstance(part, PreparedPicture) else len(part))
        return read(self, part, first_output)

    monkeypatch.setattr(KvCache, "_read_step", spy)
    return found


def user(text: str, *pictures: int) -> Turn:
    return Turn("user", text, tuple(picture(number) for number in pictures))


ONE = user("What is this?", 1)
CONVERSATIONS = [
    [user("What is this?")],
    [ONE],
    [user("Which one is red?", 1, 2)],
    [user("Hello."), Turn("assistant", "A dog."), user("What is this?", 0)],
    [ONE, Turn("assistant", "A cat."), user("And this?", 2), Turn("assistant", "A star."), user("Is it red?\nΩ")],
    [Turn("system", "Be brief."), user("Same?", 1, 1), Turn("assistant", "Yes."), user("Sure?", 1)],
]


# --- what is said ---


def test_conversations_equal_those_of_transformers(runtime: Runtime, folder: Path) -> None:
    """Greedy, eight tokens each; of six random conversations one may meet a tie. All with one memory, in two orders."""
    twin = Twin(folder)
    expected = [twin.reply_ids(turns, 8) for turns in CONVERSATIONS]
    for order in (range(6), reversed(range(6))):
        agreed = 0
        for number in order:
            reply = runtime.say(CONVERSATIONS[number], Sampling(max_tokens=8))
            "".join(reply)
            agreed += reply._state.ids == expected[number]
        assert agreed >= 5


def test_a_reply_is_the_answer_in_pieces(runtime: Runtime) -> None:
    answer = runtime.answer(picture(1), "What is this?", 20)
    ids = runtime.answer_ids(picture(1), "What is this?", 20)
    reply = runtime.say([ONE], Sampling(max_tokens=20))
    assert (reply.answer_tokens, reply.finish_reason) == (0, None)
    assert reply.prompt_tokens == len(runtime.prompt_ids("What is this?")) - 1 + 16
    pieces = list(reply)
    assert len(pieces) > 5 and all(pieces)
    assert "".join(pieces) == answer
    assert (reply.answer_tokens, reply.finish_reason) == (len(ids), "length")
    assert list(reply) == []


def test_a_reply_ends_where_the_model_ends_it(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    said = runtime.answer_ids(picture(1), "What is this?", 6)
    last = next(index for index in range(2, 6) if said[index] not in said[:index])
    monkeypatch.setattr(
        runtime._language, "_end", said[last]
    )  # as a format whose end of a turn llama.cpp does not know
    reply = runtime.say([ONE])
    text = "".join(reply)
    assert (reply.answer_tokens, reply.finish_reason) == (last, "stop")
    assert text == whole([runtime._language.piece(token) for token in said[:last]])


@pytest.mark.parametrize("most", [0, 1])
def test_short_replies(runtime: Runtime, most: int) -> None:
    reply = runtime.say([ONE], Sampling(max_tokens=most))
    list(reply)
    assert (reply.answer_tokens, reply.finish_reason) == (most, "length")


def test_a_reply_ends_where_the_context_ends(files: list[Path]) -> None:
    with Runtime(*files, n_ctx=64) as runtime:
        reply = runtime.say([ONE], Sampling(max_tokens=1000))
        list(reply)
        assert (reply.prompt_tokens + reply.answer_tokens, reply.finish_reason) == (65, "length")


@pytest.mark.parametrize(
    ("turns", "sampling", "sentence"),
    [
        ([user("word " * 600)], {}, r"takes \d+ tokens with its pictures, more than the context of 512"),
        ([Turn("user", "?", (Path("none.png"),))], {}, "There is no picture none.png"),
        ([user("<image>", 1)], {}, "holds the placeholder <image>; leave it out"),
        (
            [Turn("assistant", "?", (Path("none.png"),))],
            {},
            "1 pictures and 0 places for them; pictures belong to what",
        ),
        ([ONE], {"temperature": -1.0}, "temperature is -1.0, but it must be a number from 0 up"),
        ([ONE], {"temperature": float("nan")}, "temperature is nan"),
        ([ONE], {"top_p": 0.0}, "top_p is 0.0, but it must be above 0 and at most 1"),
        ([ONE], {"max_tokens": -1}, "max_tokens is -1"),
        ([ONE], {"stop": ("a", "")}, "A stop text is empty"),
        ([ONE], {"schema": {"type": "dog"}}, "The schema's type 'dog' is none of JSON's"),
        (
            [ONE],
            {"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
            "The schema holds itself in a",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(
    runtime: Runtime, steps: list[int], turns: list[Turn], sampling: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(MinipovidError, match=sentence):
        runtime.say(turns, Sampling(**sampling))
    assert steps == []


# --- what is read again ---


def test_only_what_is_new_is_read(runtime: Runtime, steps: list[int]) -> None:
    """`USER:` (8 tokens with <s> and the spaces), the picture, the question; then each answered token by itself.

    The next turn begins behind what was answered, if it is told as it was said. The last token was never read.
    """
    reply = runtime.say([ONE], Sampling(max_tokens=3))
    said = "".join(reply)
    before, after = len(runtime.prompt_ids("What is this?")[:8]), len(runtime.prompt_ids("What is this?")[9:])
    assert steps == [before, -1, after, 1, 1]
    steps.clear()
    list(runtime.say([ONE], Sampling(max_tokens=1)))  # the same again: its last piece gives the logits
    assert steps == [after]
    steps.clear()
    list(runtime.say([user("And what is that?", 1)], Sampling(max_tokens=1)))
    assert len(steps) == 1 and steps[0] > 0  # the picture and what stands before it are kept
    steps.clear()
    list(runtime.say([ONE], Sampling(max_tokens=3)))
    steps.clear()
    text = [ONE, Turn("assistant", said), user("More?")]
    list(runtime.say(text, Sampling(max_tokens=1)))
    (read,) = steps
    assert read <= len(runtime._language.parts(runtime.chat.render(text))[-1]) - after


def test_a_picture_is_encoded_once(runtime: Runtime, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it leaves memory and comes back, in whatever company; eight are remembered."""
    encoded = []
    encode = Tower.encode
    monkeypatch.setattr(Tower, "encode", lambda self, canvas: encoded.append(1) or encode(self, canvas))
    for turns in CONVERSATIONS:
        list(runtime.say(turns, Sampling(max_tokens=1)))
    assert len(encoded) == 3
    assert steps.count(-1) == 1 + 1 + 1 + 2 + 3  # the third begins as the second did, with the same picture
    for number in range(3, 11):
        runtime.embed(picture(number))
    assert len(encoded) == 11
    runtime.embed(picture(10))
    assert len(encoded) == 11
    runtime.embed(picture(1))
    assert len(encoded) == 12


def test_order_does_not_matter(files: list[Path]) -> None:
    """To the last bit: what is kept was computed in the same company as what would be read anew."""
    asked = [(picture(n), question) for n in (0, 1, 2) for question in ("What is this?", "What is that?", "A")]
    with Runtime(*files, n_ctx=256) as runtime:
        first = [(runtime.answer_ids(*ask, 8), runtime.logps(*ask, "No.")) for ask in asked]
        again = [(runtime.answer_ids(*ask, 8), runtime.logps(*ask, "No.")) for ask in reversed(asked)]
        said = [list(runtime.say([Turn("user", q, (p,))], Sampling(max_tokens=8))) for p, q in asked]
        assert said == [list(runtime.say([Turn("user", q, (p,))], Sampling(max_tokens=8))) for p, q in asked]
    assert again[::-1] == first


def test_memory_equals_reading_all_anew(runtime: Runtime) -> None:
    """60 prompts in random order, each with a beginning that others share, against an empty memory."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        turns = CONVERSATIONS[rng.integers(6)][: rng.choice([1, 3, 5])]
        turns = [turn for turn in turns if turn.role != "assistant" or rng.random() < 0.9] or [ONE]
        prompt = runtime._prompt(runtime.chat.render(turns), [image for turn in turns for image in turn.pictures])
        said = [int(token) for token in rng.integers(10, 400, rng.integers(4))]
        for token in range(len(said)):
            runtime._cache.read([*prompt, said[: token + 1]])
        outputs = int(rng.integers(1, 4))
        kept = runtime._cache.read([*prompt, said], outputs).copy()
        assert runtime._cache._positions[: len(prompt[0])] == prompt[0]
        runtime._cache._forget(0)
        anew = runtime._cache.read([*prompt, said], outputs)
        assert kept.shape == anew.shape == (outputs, 416)
        np.testing.assert_allclose(kept, anew, rtol=0, atol=0.01)


def test_long_texts_are_read_in_steps(tmp_path: Path, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """700 tokens: 256 + 256 + 188; a text that changes behind the first 600 is read again from 512 on."""
    wide = {"text_config": {"max_position_embeddings": 1024}}
    base = tiny_llava.build(tmp_path / "wide-7b", dtype="float16", settings=wide)
    files = export_base(str(base), tmp_path / "gguf", ["f16"])
    rng = np.random.default_rng(1)
    ids = [int(token) for token in rng.integers(10, 400, 700)]
    with Runtime(files[0], None, n_ctx=1024) as runtime:
        logits = runtime._cache.read([ids], 300)
        assert steps == [256, 256, 188]
        other = runtime._cache.read([[*ids[:600], *ids[500:600]]])
        assert steps == [256, 256, 188, 188]
    monkeypatch.setattr(kv_cache, "STEP", 1024)
    with Runtime(files[0], None, n_ctx=1024) as runtime:
        np.testing.assert_allclose(logits, runtime._cache.read([ids], 300), rtol=0, atol=0.01)
        np.testing.assert_allclose(other, runtime._cache.read([[*ids[:600], *ids[500:600]]]), rtol=0, atol=0.01)


# --- what is drawn ---


def test_draws_follow_the_softmax(runtime: Runtime) -> None:
    """Logits log(8, 4, 2, 1, 1) / 16: at temperature 1 a half, a quarter, ...; 2000 draws are within 4 sigma."""
    logits = np.full(416, -50, np.float32)
    logits[[5, 9, 3, 7, 1]] = np.log([8, 4, 2, 1, 1])
    share = {5: 8, 9: 4, 3: 2, 7: 1, 1: 1}
    for temperature, top_p, among in (
        (1.0, 1.0, share),
        (1.0, 0.7, {5: 8, 9: 4}),
        (0.5, 1.0, {5: 64, 9: 16, 3: 4, 7: 1, 1: 1}),
    ):
        sampler = Sampler(Sampling(temperature=temperature, top_p=top_p, seed=4), runtime._language)
        drawn = Counter(sampler.pick(logits) for _ in range(2000))
        assert set(drawn) <= set(among)
        for token, weight in among.items():
            p = weight / sum(among.values())
            assert abs(drawn[token] - 2000 * p) < 4 * np.sqrt(2000 * p * (1 - p))
    assert Sampler(Sampling(), runtime._language).pick(logits) == 5


def test_the_coldest_draws_are_greedy(runtime: Runtime) -> None:
    """llama.cpp would divide by it, get NaN, and draw the first token; from 10^-6 on it draws, and from the top."""
    logits = np.linspace(-30, 20, 416, dtype=np.float32)
    logits[[100, 200]] = 50, 49
    for temperature in (1e-300, 1e-45, 1e-38, 1e-30, 1e-7, 1e-6, 1e-5, 0.01):
        sampler = Sampler(Sampling(temperature=temperature, seed=1), runtime._language)
        assert {sampler.pick(logits) for _ in range(20)} == {100}


def test_a_seed_repeats_its_answer(runtime: Runtime) -> None:
    def said(**settings: Any) -> str:
        return "".join(runtime.say([ONE], Sampling(max_tokens=12, temperature=1.0, **settings)))

    assert said(seed=3) == said(seed=3)
    assert len({said(seed=seed) for seed in range(5)}) > 3
    assert said(seed=-1) == said(seed=-1)  # llama.cpp would draw a seed
    assert said(seed=2**32 - 1) == said(seed=2**32 - 1)
    assert said(seed=3, top_p=1e-6) == "".join(runtime.say([ONE], Sampling(max_tokens=12)))


# --- how it comes out ---


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_no_character_is_cut(size: int) -> None:
    text = "  naïve 猫🐈 — Ω\n\n ok  \n"
    raw = text.encode()
    stream = Stream()
    pieces = [stream.add(raw[at : at + size]) for at in range(0, len(raw), size)] + [stream.end()]
    assert "".join(pieces) == text.strip()
    assert all(piece == piece.encode().decode() and "\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_left_out() -> None:
    assert whole(["Ω猫".encode()[:-1]]) == "Ω"
    assert whole([b"a\xffb"]) == "a\ufffdb"  # and bytes that are no character are shown as such


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("One. USER: two", ("USER:",), "One."),
        ("One. USE", ("USER:",), "One. USE"),
        ("One. US ER: x", ("USER:",), "One. US ER: x"),
        ("aab", ("ab",), "a"),
        ("aaab then b", ("b t", "aab"), "a"),
        ("\n\nHello\nyou", ("\n\n",), ""),
        ("one\n\ntwo", ("\n\n", "two"), "one"),
        ("x🐈y", ("🐈",), "x"),
    ],
)
def test_stop_texts(text: str, stop: tuple[str, ...], expected: str) -> None:
    """Never let out, not even their beginnings, however the text is cut; what only looks like one is."""
    for size in (1, 2, 4, 100):
        stream, raw = Stream(stop), text.encode()
        pieces = [stream.add(raw[at : at + size]) for at in range(0, len(raw), size)]
        assert stream.stopped == any(part in text for part in stop)
        assert "".join([*pieces, stream.end()]) == expected


def test_a_stop_text_ends_the_reply(runtime: Runtime) -> None:
    answer = runtime.answer(picture(1), "What is this?", 30)
    stop = answer[7:11]
    reply = runtime.say([ONE], Sampling(max_tokens=30, stop=(stop,)))
    assert "".join(reply) == answer[: answer.index(stop)].strip()
    assert reply.finish_reason == "stop"
    assert reply.answer_tokens < 30


# --- whose turn it is ---


def test_replies_do_not_mix(runtime: Runtime, steps: list[int]) -> None:
    """16 at once: each says what it says alone, and no conversation is read again in the middle of its answer."""
    asked = [[user(question, number)] for number in range(4) for question in QUESTIONS]
    alone = ["".join(runtime.say(turns, Sampling(max_tokens=6))) for turns in asked]
    steps.clear()
    together: list[str] = [""] * 16

    def run(index: int) -> None:
        with runtime.say(asked[index], Sampling(max_tokens=6)) as reply:
            for piece in reply:
                together[index] += piece

    threads = [threading.Thread(target=run, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == alone
    assert steps.count(-1) <= 16


def test_a_reply_left_half_read_gives_way(runtime: Runtime) -> None:
    """In one thread: the next question does not wait for ever, and the old reply goes on as if nothing had been."""
    expected = list(runtime.say([ONE], Sampling(max_tokens=10)))
    reply = runtime.say([ONE], Sampling(max_tokens=10))
    pieces = [next(reply), next(reply)]
    other = runtime.answer(picture(2), "And this?", 5)
    assert other
    pieces.append(next(reply))
    assert runtime.answer(picture(2), "And this?", 5) == other
    assert pieces + list(reply) == expected


@pytest.mark.parametrize("how", ["close", "forget", "fail"])
def test_a_reply_that_ends_early_lets_others_in(runtime: Runtime, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader went away, or something broke; without the garbage collector's help."""
    gc.disable()
    try:
        reply: Any = runtime.say([ONE], Sampling(max_tokens=50))
        next(reply)
        assert runtime._locks._lock.locked()
        if how == "close":
            reply.close()
            assert list(reply) == [] and reply.finish_reason is None
        elif how == "forget":
            del reply
        else:
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(KvCache, "read", lambda *_: 1 / 0)
                next(reply)
        assert not runtime._locks._lock.locked()
    finally:
        gc.enable()
    answers: list[str] = []
    other = threading.Thread(target=lambda: answers.append(runtime.answer(picture(1), "What is this?", 3)))
    other.start()
    other.join(30)
    assert answers


def test_others_wait_for_a_reply(runtime: Runtime) -> None:
    reply = runtime.say([ONE], Sampling(max_tokens=20))
    first = next(reply)
    answers: list[str] = []
    other = threading.Thread(target=lambda: answers.append(runtime.answer(picture(2), "And this?", 3)))
    other.start()
    other.join(0.2)
    assert other.is_alive() and not answers
    assert first + "".join(reply) == runtime.answer(picture(1), "What is this?", 20)
    other.join(30)
    assert answers


class Slow:
    """A step that begins, tells so, and ends when it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.begun, self.go, done = threading.Event(), threading.Event(), getattr(owner, name)

        def slow(*args: Any, **options: Any) -> Any:
            self.begun.set()
            assert self.go.wait(30)
            return done(*args, **options)

        monkeypatch.setattr(owner, name, slow)


def in_thread(call: Callable[[], Any], ends: list[Any]) -> threading.Thread:
    """What it returns, or raises, goes to `ends`."""

    def run() -> None:
        try:
            ends.append(call())
        except Exception as error:
            ends.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_reply_is_closed_while_it_is_read(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a server whose client went away: at once; the reader ends with its step, and the next has its turn."""
    alone = runtime.answer(picture(2), "And this?", 3)
    reply = runtime.say([ONE], Sampling(max_tokens=50))
    first, ends = next(reply), []
    with monkeypatch.context() as patch:
        slow = Slow(patch, KvCache, "read")
        reader = in_thread(lambda: list(reply), ends)
        assert slow.begun.wait(30)
        reply.close()  # would wait for ever, were it to wait
        reply.close()
        assert reader.is_alive() and runtime._locks._lock.locked()
        slow.go.set()
        reader.join(30)
    assert ends == [[]] and first
    assert reply.answer_tokens == 2 and reply.finish_reason is None
    assert not runtime._locks._lock.locked()
    other = in_thread(lambda: runtime.answer(picture(2), "And this?", 3), ends)
    other.join(30)
    assert ends == [[], alone]


def test_a_reply_is_closed_before_its_turn(runtime: Runtime, steps: list[int]) -> None:
    """While others answer, it waits; closed meanwhile, it computes nothing."""
    holder = runtime.say([ONE], Sampling(max_tokens=5))
    next(holder)
    waiting, ends = runtime.say([user("And this?", 2)]), []
    reader = in_thread(lambda: list(waiting), ends)
    reader.join(0.1)
    assert reader.is_alive()
    waiting.close()
    before = len(steps)
    holder.close()
    reader.join(30)
    assert ends == [[]] and len(steps) == before and not runtime._locks._lock.locked()


def test_a_reply_that_holds_no_text_yet_is_closed(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half characters give no piece, so the reading does not come out between its steps; it ends all the same."""
    monkeypatch.setattr(Stream, "add", lambda self, raw: "")
    reply, ends = runtime.say([ONE], Sampling(max_tokens=400)), []
    slow = Slow(monkeypatch, KvCache, "read")
    reader = in_thread(lambda: list(reply), ends)
    assert slow.begun.wait(30)
    reply.close()
    slow.go.set()
    reader.join(30)
    assert ends == [[]] and reply.answer_tokens == 1


def test_a_reply_is_closed_as_its_step_ends(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too late for the reading to notice it before the piece is out: who reads frees the turn."""
    reply = runtime.say([ONE])
    monkeypatch.setattr(Stream, "add", lambda self, raw: reply.close() or "piece")
    assert list(reply) == [] and reply.answer_tokens == 1
    assert not runtime._locks._lock.locked()


# --- closing while others call ---

SAID = Sampling(schema={"type": "null"})
CALLS: dict[str, tuple[Any, str, Callable[[Runtime], Any]]] = {
    "prompt_ids": (Language, "tokens", lambda runtime: runtime.prompt_ids("What?")),
    "answer_tokens": (Language, "tokens", lambda runtime: runtime.answer_tokens("What?", "No.")),
    "say": (Language, "tokens", lambda runtime: runtime.say([ONE])),
    "schema": (Sampler, "_grammar_of", lambda runtime: runtime.say([ONE], SAID)),
    "pick": (Sampler, "pick", lambda runtime: list(runtime.say([ONE]))),
    "piece": (Language, "piece", lambda runtime: runtime.answer_ids(picture(1), "What?", 1)),
    "answer": (llama_cpp, "whole", lambda runtime: runtime.answer(picture(1), "What?", 1)),
    "logps": (KvCache, "read", lambda runtime: runtime.logps(picture(1), "What?", "No.")),
    "embed": (Tower, "encode", lambda runtime: runtime.embed(picture(1))),
}


@pytest.mark.parametrize("call", CALLS)
def test_closing_waits_for_who_is_inside(files: list[Path], monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Else llama.cpp would go on with memory that is freed. Who comes later is told so, in one sentence."""
    owner, name, ask = CALLS[call]
    runtime, ends = Runtime(*files, n_ctx=256), []
    with monkeypatch.context() as patch:
        slow = Slow(patch, owner, name)
        caller = in_thread(lambda: ask(runtime), ends)
        assert slow.begun.wait(30)
        closing = in_thread(runtime.close, ends)
        closing.join(0.1)
        assert closing.is_alive() and runtime._language.model is not None
        slow.go.set()
        closing.join(30)
        caller.join(30)
    assert len(ends) == 2 and runtime._language.model is None
    assert all(not isinstance(end, Exception) or isinstance(end, MinipovidError) for end in ends)
    with pytest.raises(MinipovidError, match="The runtime is closed; open it again"):
        ask(runtime)


def test_closing_needs_no_turn(files: list[Path]) -> None:
    """One reply is half-read and one waits behind it: neither keeps the runtime open, and both are told."""
    runtime, ends = Runtime(*files, n_ctx=256), []
    holder, waiting = runtime.say([ONE]), runtime.say([user("And this?", 2)])
    next(holder)
    reader = in_thread(lambda: list(waiting), ends)
    closing = in_thread(runtime.close, ends)
    closing.join(30)
    assert ends == [None] and reader.is_alive()
    with pytest.raises(MinipovidError, match="The runtime is closed"):
        next(holder)
    reader.join(30)
    assert isinstance(ends[1], MinipovidError)
