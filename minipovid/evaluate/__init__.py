"""A benchmark through a backend: questions -> answers -> scores.

    RUN/eval/<benchmark>.<backend>.jsonl    {"id": ..., "image": ..., "prompt": ..., "answer": ...} per line
    RUN/scores.json                         {"<benchmark>.<backend>": {"accuracy": ..., ...}}

A benchmark is written NAME=FILE: a reader on the `benchmarks` shelf and its question file, for example
pope=coco_pope_adversarial.json. `tinyworld` stands for the built-in world's four held-out files. The backend is called
gguf, or gguf-q8_0 and the like where one of several files was asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from minipovid import images, shelf, tinyworld
from minipovid.errors import MinipovidError
from minipovid.files import finished
from minipovid.noise_cache import cache_folder
from minipovid.recipe import BUILTIN
from minipovid.runtime import Runtime
from minipovid.types import Answer, Question

Scores = dict[str, dict[str, float]]


class Backend(Protocol):
    """Whoever answers: minipovid.runtime.Runtime is one."""

    def answer(self, image: Path, prompt: str, max_tokens: int = 256) -> str: ...


class Exam(NamedTuple):
    """One benchmark file and the folder that its pictures are relative to."""

    name: str
    benchmark: str
    file: Path
    root: Path


def evaluate(
    run: Path, specs: Sequence[str], quant: str | None = None, pictures: Path | None = None, **options: Any
) -> Scores:
    """Examine a run's GGUF pair; writes answers and scores into the run folder and returns the scores by exam.

    `options` go to Runtime.

    Raises MinipovidError for an unknown benchmark, a missing file or picture, or a run without GGUF files.
    """
    exams = [exam for spec in specs for exam in find(spec, pictures)]
    names = [exam.name for exam in exams]
    if len(set(names)) < len(names):
        raise MinipovidError(f"Two question files have one name ({', '.join(sorted(names))}); rename one of them.")
    by = "gguf" if quant is None else f"gguf-{quant.lower()}"
    with Runtime.open(run, quant, **options) as backend:
        scores = {
            f"{exam.name}.{by}": examine(exam, backend, run / "eval" / f"{exam.name}.{by}.jsonl") for exam in exams
        }
    held = run / "scores.json"
    before = json.loads(held.read_text(encoding="utf-8")) if held.is_file() else {}
    with finished(held) as draft:
        draft.write_text(json.dumps(before | scores, indent=1) + "\n", encoding="utf-8")
    return scores


def find(spec: str, pictures: Path | None = None, split: str = "eval") -> list[Exam]:
    """The exams that a spec names: NAME=FILE, or `tinyworld`."""
    if spec == BUILTIN:
        world = tinyworld.materialise(cache_folder() / tinyworld.NAME)
        rules = [Exam(path.stem, "pope", path, world) for path in sorted((world / split).glob("pope_*.jsonl"))]
        return [*rules, Exam("chair", "chair", world / split / "chair.jsonl", world)]
    name, equals, file = spec.partition("=")
    if not equals:
        raise MinipovidError(
            f"{spec!r} names no benchmark; write NAME=FILE, such as pope=questions.json, or {BUILTIN}."
        )
    path = Path(file)
    if not path.is_file():
        raise MinipovidError(f"There is no question file {path}.")
    return [Exam(path.stem, name, path, pictures or path.parent)]


def examine(exam: Exam, backend: Backend, to: Path) -> dict[str, float]:
    """Ask every question, write the answers to `to`, and score them."""
    benchmark = shelf.load("benchmarks", exam.benchmark)
    answers = ask(benchmark.questions(exam.file), exam.root, backend, exam.name)
    with finished(to) as draft, draft.open("w", encoding="utf-8") as file:
        for answer in answers:
            file.write(json.dumps(_row(answer), ensure_ascii=False) + "\n")
    return benchmark.score(answers)  # type: ignore[no-any-return]


def ask(questions: Sequence[Question], root: Path, backend: Backend, name: str) -> list[Answer]:
    """Answers in the questions' order; they are asked picture by picture, so that each is encoded once."""
    texts = [""] * len(questions)
    in_turn = sorted(range(len(questions)), key=lambda index: questions[index].image)
    for index in tqdm(in_turn, desc=name, unit="question", disable=not sys.stderr.isatty()):
        question = questions[index]
        path = images.inside(root, question.image)
        texts[index] = backend.answer(path, question.prompt, question.max_tokens)
    return [Answer(question, text) for question, text in zip(questions, texts, strict=True)]


def _row(answer: Answer) -> Mapping[str, object]:
    question = answer.question
    return {"id": question.id, "image": question.image, "prompt": question.prompt, "answer": answer.text}
