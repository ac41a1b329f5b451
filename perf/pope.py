"""POPE through the GGUF backend beside one request per question through llama-cpp-python's own chat call.

    python perf/pope.py                                # one thread, three cases, five rounds: ten minutes or more
    python perf/pope.py --cases word --threads 2       # two threads, on a machine that does nothing else

Ours is `ask` of minipovid/evaluate, as `minipovid eval --backend gguf` calls it, journal on disk included; the peer is
`Llama.create_chat_completion` with the MTMDChatHandler, which writes the prompt by the file's own template, the picture
a data URL, temperature 0. Both read the same F16 pair, 576 rows a picture and as many tokens of text as LLaVA 1.5's
POPE prompt has, with the same threads, context and room for answers; all else is as each sets it by default (neither
uses flash attention on a CPU). Loading is not timed. Pictures are PNG files of the tower's own size: JPEG decoders and
scalers differ, and the same pixels shall get the same answers. No picture is asked about in two rounds.

    word     a SigLIP tower; the model says one of 130 words and ends, as one does that is asked for a single word
    text     the same weights, but nothing ends an answer before 16 tokens
    clip     a CLIP tower, one word; answers are not compared, since stock llama.cpp misplaces CLIP's class token

In each round both sides answer the same six questions about a new picture, and the order turns. A ratio is the median
over rounds of the quotient of questions per second in a round; `cpu_ratio` that of CPU seconds, which other work on the
machine does not lengthen: with one thread they are the seconds of a machine left alone. Times below are wall time,
`tower` and `rows` (the language model reading the picture) per picture, all else per question. The last line is one
JSON object; its `questions_per_s_ratio` is that of `word`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import numpy as np
import tiny_llava
import torch
from gguf import GGUFReader
from PIL import Image
from safetensors.torch import load_file, save_file

from minipovid.evaluate import Selected, find
from minipovid.evaluate.ask import ask
from minipovid.evaluate.benchmarks import Answer
from minipovid.export import export_base
from minipovid.inference import backends
from minipovid.inference.llama_cpp import PICTURE, Runtime, find_pair
from minipovid.inference.llama_cpp.kv_cache import KvCache
from minipovid.inference.llama_cpp.libraries import cores, version
from minipovid.inference.llama_cpp.tower import Tower
from minipovid.inference.llama_cpp.vision import PreparedPicture

ASKED = 6  # questions a picture, as POPE has them
SUFFIX = " Yes or no."  # with it a question has LLaVA 1.5's 28 tokens behind the picture, in tiny_llava's pieces
COLOURS, NOUNS = ("red", "green", "blue", "yellow", "small", "large"), ("circle", "square", "triangle", "dog", "image")
CONTEXT = 2048
END, WORDS = 2, 259  # </s>; the first piece of tiny_llava's that is more than a byte
LOOK = 3.4  # makes scores of 7, where random ones are about 1
SIDE = {"siglip": (384, 16), "clip": (336, 14)}  # pixels of a picture and of a patch
LANGUAGE = {"hidden": 1024, "ffn": 2752, "layers": 8, "heads": 16, "kv_heads": 16}
EYES = {"vision_hidden": 768, "vision_layers": 6}  # half of SigLIP-base
SMALL: Mapping[str, int] = {"hidden": 64, "ffn": 192, "layers": 2, "heads": 4, "kv_heads": 4}
SMALL_EYES = {"vision_hidden": 64, "vision_layers": 3}


@dataclass(frozen=True)
class Case:
    """What is measured."""

    tower: str = "siglip"
    max_tokens: int = 128  # POPE's default
    ends: bool = True  # does an answer end by itself, after one word?

    @property
    def is_compared(self) -> bool:
        return self.tower != "clip"


CASES = {"word": Case(), "text": Case(max_tokens=16, ends=False), "clip": Case(tower="clip")}


# --- the model ---


def build(folder: Path, case: Case, small: bool) -> Path:
    """The F16 pair of a random LLaVA that answers one word to one question, another to the next; in folder/gguf."""
    size, patch = SIDE[case.tower]
    text, eyes = (SMALL, SMALL_EYES) if small else (LANGUAGE, EYES)
    settings = {
        "text_config": {"vocab_size": 32064, "max_position_embeddings": CONTEXT},
        "vision_config": {"intermediate_size": 4 * eyes["vision_hidden"], "num_attention_heads": 4 if small else 12},
    }
    base = tiny_llava.build(
        folder / "base", tower=case.tower, settings=settings, image_size=size, patch_size=patch, **text, **eyes
    )
    look(base / "model.safetensors", text["heads"])
    pair = folder / "gguf"
    export_base(str(base), pair, ["f16"])
    speak(pair, write(folder / "rehearsal", case, pictures=4, seed=0), case.ends)
    return pair


def look(path: Path, heads: int) -> None:
    """Have the colon that ends a prompt look at what is asked about: among 600 random rows, it would drown.

    The embeddings of colours and nouns share a direction that the keys show, and the colon's queries ask for it, both
    in the number of each head that RoPE turns least. All words but the colon share another, for `speak`.
    """
    tensors = load_file(path)
    embedding = tensors["language_model.model.embed_tokens.weight"]
    step = embedding.shape[1] ** 0.5
    objects, said, colon = _directions(embedding.shape[1])
    embedding[[tiny_llava.piece("▁" + word) for word in (*COLOURS, *NOUNS)]] += step * objects
    embedding[: tiny_llava.PIECES] += step * said
    embedding[tiny_llava.piece(":")] = step * colon
    for name, weight in tensors.items():
        if name.startswith("language_model") and name.endswith(("q_proj.weight", "k_proj.weight")):
            rows = weight.view(heads, -1, weight.shape[1])
            last = rows.shape[1] // 2 - 1
            rows[:, [last, -1]] = 0
            rows[:, last] = LOOK * (rows.shape[1] ** 0.5 / step**2) ** 0.5 * (colon if "q_proj" in name else objects)
    save_file(tensors, path, metadata={"format": "pt"})


def speak(pair: Path, selected: Selected, ends: bool) -> None:
    """Leave the head whole words, blind to what all prompts have in common: else it says the same word to all.

    Where an answer `ends`, </s> looks for the direction of a word that has been said.
    """
    hidden: list[Any] = []

    def observe(name: str, inputs: Any) -> None:
        if name == "output.weight":
            hidden.append(inputs[-1])

    with Runtime(*find_pair(pair), observe=observe) as runtime:
        for question in selected.exam.questions[::2]:
            runtime.answer_ids(selected.root / question.image, question.prompt, max_tokens=1)
    head = next(t for t in GGUFReader(find_pair(pair)[0], "r+").tensors if t.name == "output.weight").data
    head[:WORDS], head[tiny_llava.PIECES :], head[tiny_llava.piece(":")] = 0, 0, 0
    if ends:
        head[END] = 6 * _directions(head.shape[1])[1]
    common = np.mean(hidden, axis=0)
    common /= np.linalg.norm(common)
    head[:] = head - np.outer(head @ common, common)


def _directions(width: int) -> Any:
    """Three of length 1 at right angles: of what is asked about, of words but the colon, of the colon."""
    return torch.linalg.qr(torch.randn(width, 3, generator=torch.Generator().manual_seed(1)))[0].T


# --- what is asked ---


def write(folder: Path, case: Case, pictures: int, seed: int) -> Selected:
    """A POPE file with six questions on each of so many pictures, which no other seed has."""
    dice, size = random.Random(f"{case} {seed}"), SIDE[case.tower][0]
    folder.mkdir(parents=True)
    rows = []
    for number in range(pictures):
        coarse = np.random.default_rng([seed, number]).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        things = dice.sample([f"{colour} {noun}" for colour in COLOURS for noun in NOUNS], ASKED)
        for place, thing in enumerate(things):
            row = {"question_id": len(rows) + 1, "image": f"{number}.png", "text": f"Is there a {thing} in the image?"}
            rows.append({**row, "label": "no" if place % 2 else "yes"})
    (folder / "pope.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"suffix": SUFFIX, "max_tokens": case.max_tokens}
    return find([f"pope={folder / 'pope.json'}"], {"pope": options})[0]


# --- who answers ---


class Clock:
    """Seconds spent in functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def watching(self, owner: Any, function: str, name: Callable[..., str | None]) -> Iterator[None]:
        """Count the calls of owner.function under what `name` makes of their arguments."""
        inner = getattr(owner, function)

        def timed(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return inner(*arguments)
            finally:
                if called := name(*arguments):
                    self.add(called, time.perf_counter() - begun)

        setattr(owner, function, timed)
        try:
            yield
        finally:
            setattr(owner, function, inner)


@dataclass
class Round:
    """One side's answers."""

    texts: list[str]
    seconds: float
    cpu_seconds: float
    parts: dict[str, float]


class Ours:
    """`minipovid eval --backend gguf`."""

    def __init__(self, pair: Path, threads: int) -> None:
        runtime = {"n_ctx": CONTEXT, "n_threads": threads}
        self._pair, self._stack = find_pair(pair), ExitStack()
        self.backend = self._stack.enter_context(backends.opened("gguf", pair, runtime))

    def answer(self, selected: Selected, folder: Path) -> Round:
        clock, questions = Clock(), selected.exam.questions
        pictures = {question.image: selected.root / question.image for question in questions}

        def kind(_: KvCache, part: Any, *__: Any) -> str | None:
            return "picture" if isinstance(part, PreparedPicture) else None

        with clock.watching(Tower, "encode", lambda *_: "tower"), clock.watching(KvCache, "_read_step", kind):
            begun, cpu = time.perf_counter(), time.process_time()
            answers: list[Answer] = ask(questions, pictures, self.backend, folder / "eval", "ours")
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        tower, picture = clock.seconds["tower"], clock.seconds["picture"]
        parts = {"tower": tower, "rows": picture - tower, "questions": seconds - picture}
        return Round([answer.text for answer in answers], seconds, cpu, parts)

    def tokens(self, prompt: str) -> list[int]:
        with Runtime(*self._pair) as runtime:
            return runtime.prompt_ids(prompt)

    def close(self) -> None:
        self._stack.close()


class Peer:
    """llama-cpp-python's chat call, a request per question."""

    def __init__(self, pair: Path, threads: int) -> None:
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import MTMDChatHandler

        text, mmproj = find_pair(pair)
        self.llama = Llama(
            str(text),
            chat_handler=MTMDChatHandler(str(mmproj), verbose=False),
            n_ctx=CONTEXT,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def answer(self, selected: Selected, folder: Path) -> Round:
        from llama_cpp import mtmd_cpp

        clock = Clock()
        with clock.watching(mtmd_cpp, "mtmd_helper_eval_chunk_single", lambda *_: "picture"):
            begun, cpu = time.perf_counter(), time.process_time()
            texts = [self._asked(selected.root / q.image, q.prompt, q.max_tokens) for q in selected.exam.questions]
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        picture = clock.seconds["picture"]
        return Round(texts, seconds, cpu, {"picture": picture, "questions": seconds - picture})

    def _asked(self, picture: Path, prompt: str, max_tokens: int) -> str:
        url = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        reply: Any = self.llama.create_chat_completion(
            [{"role": "user", "content": content}],  # type: ignore[list-item]
            temperature=0.0,
            max_tokens=max_tokens,
        )
        return str(reply["choices"][0]["message"]["content"]).strip()

    def tokens(self, picture: Path, prompt: str) -> list[list[int]]:
        """What it makes of a prompt, the picture left out."""
        seen: list[list[int]] = []
        inner = self.llama.eval
        self.llama.eval = lambda tokens: (seen.append(list(tokens)), inner(tokens))[1]  # type: ignore
        try:
            self._asked(picture, prompt, 1)
        finally:
            del self.llama.eval
        return seen

    def close(self) -> None:
        self.llama.close()


# --- one beside the other ---


def measured(folder: Path, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Rounds in which every side answers the same questions."""
    pair = build(folder, case, options.small)
    makers: dict[str, Callable[[], Ours | Peer]] = {
        "peer": lambda: Peer(pair, options.threads),
        "ours": lambda: Ours(pair, options.threads),
    }
    with ExitStack() as stack:
        sides = {name: stack.enter_context(closing(make())) for name, make in makers.items()}
        same_tokens(sides, write(folder / "first", case, pictures=1, seed=1))  # and all of it is warm
        rounds = []
        for number in range(options.rounds):
            selected = write(folder / f"round{number}", case, options.pictures, seed=2 + number)
            order = sorted(sides, reverse=bool(number % 2))
            rounds.append({name: sides[name].answer(selected, folder / f"round{number}" / name) for name in order})
    return compared(rounds, options.pictures, case)


def same_tokens(sides: Mapping[str, Any], selected: Selected) -> None:
    """Ask once, and see that both sides make the same of a prompt."""
    sides["ours"].answer(selected, selected.root / "ours")
    question = selected.exam.questions[0]
    theirs = sides["peer"].tokens(selected.root / question.image, question.prompt)
    ours = sides["ours"].tokens(question.prompt)
    assert [*theirs[0], PICTURE, *theirs[1]] == ours, f"the peer reads {theirs}, ours {ours}"


def compared(rounds: Sequence[Mapping[str, Round]], pictures: int, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {"questions": len(rounds) * pictures * ASKED}
    found["ours"] = {
        "ratio": spread([each["peer"].seconds / each["ours"].seconds for each in rounds]),
        "cpu_ratio": spread([each["peer"].cpu_seconds / each["ours"].cpu_seconds for each in rounds]),
        "seconds_per_question": median(each["ours"].seconds / pictures / ASKED for each in rounds),
        "parts": parts(rounds, "ours", pictures),
    }
    if case.is_compared:
        found["ours"]["same_answers"] = share_of_same(rounds)
    found["peer"] = {
        "seconds_per_question": median(each["peer"].seconds / pictures / ASKED for each in rounds),
        "parts": parts(rounds, "peer", pictures),
        "distinct_answers": len({text for each in rounds for text in each["peer"].texts}),
    }
    return found


def parts(rounds: Sequence[Mapping[str, Round]], name: str, pictures: int) -> dict[str, float]:
    """Seconds: ours by picture for what is done once a picture, all else by question."""
    per = {"tower": pictures, "rows": pictures}
    return {
        part: median(each[name].parts[part] / per.get(part, pictures * ASKED) for each in rounds)
        for part in rounds[0][name].parts
    }


def share_of_same(rounds: Sequence[Mapping[str, Round]]) -> float:
    both = [pair for each in rounds for pair in zip(each["peer"].texts, each["ours"].texts, strict=True)]
    return sum(theirs == own for theirs, own in both) / len(both)


def median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 4)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": round(min(values), 4), "most": round(max(values), 4)}


def show(name: str, found: Mapping[str, Any]) -> None:
    for side in ("ours", "peer"):
        told = found[side]
        text = f"{name:6}{side:6}{told['seconds_per_question']:8.3f} s a question"
        if side != "peer":
            for kind in ("ratio", "cpu_ratio"):
                text += "   {0} {median:.2f} ({least:.2f}-{most:.2f})".format(kind, **told[kind])
            text += f"   same {told['same_answers']:.1%}" if "same_answers" in told else ""
        print(text + "   " + "  ".join(f"{part} {seconds:.3f}" for part, seconds in told["parts"].items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=1, help="of a round")
    parser.add_argument("--threads", type=int, default=1, help="of each side")
    parser.add_argument("--small", action="store_true", help="a toy model: proves that it runs")
    options = parser.parse_args()
    results = {}
    for name in options.cases:
        with TemporaryDirectory(prefix="minipovid-perf-") as folder:
            results[name] = measured(Path(folder), CASES[name], options)
        show(name, results[name])
    first = results[options.cases[0]]
    told = {
        "questions_per_s_ratio": first["ours"]["ratio"]["median"],
        "same_answers": first["ours"].get("same_answers"),
        "threads": options.threads,
        "cores": cores(),
        "rounds": options.rounds,
        "llama_cpp_python": version(),
    }
    print(json.dumps({**told, "cases": results}))


if __name__ == "__main__":
    main()
