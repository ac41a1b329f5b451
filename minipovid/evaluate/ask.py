"""Questions to a backend, picture by picture; an answer is kept the moment it comes, and never asked for twice.

    RUN/eval/answers.jsonl    {"key": "9f3c...", "answer": "Yes."} per line, of every benchmark and backend

The key is the digest of all that decides an answer: who answers and how, the question, the picture's content, the most
tokens. With another file or temperature nothing there counts.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from minipovid.common.append_only import Lines
from minipovid.common.errors import MinipovidError
from minipovid.common.pool import Pool
from minipovid.evaluate.benchmarks import Answer
from minipovid.evaluate.selection import parts
from minipovid.images import load as images
from minipovid.inference.backends import Backend, Question

NAME = "answers.jsonl"


class PictureQuestions(NamedTuple):
    """Questions about one picture that are still to be asked; `keys` are theirs."""

    questions: Sequence[Question]
    keys: Sequence[str]
    picture: Path | None

    def singles(self) -> Iterator[PictureQuestions]:
        for question, key in zip(self.questions, self.keys, strict=True):
            yield PictureQuestions([question], [key], self.picture)


def ask(
    questions: Sequence[Question], pictures: Mapping[str, Path], backend: Backend, folder: Path, label: str
) -> list[Answer]:
    """An answer to each question, in order; what `folder` holds already is not asked.

    Raises MinipovidError where some could not be had; those that could are kept.
    """
    identity, digests = backend.identity(), {image: images.digest(path).hex() for image, path in pictures.items()}
    keys = []
    for question in questions:
        content = [identity, question.id, question.prompt, digests.get(question.image, ""), question.max_tokens]
        keys.append(hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32])
    with Lines(folder / NAME) as lines:
        rows = ((row.get("key"), row.get("answer")) for _, row in lines.read())
        answers = {key: text for key, text in rows if isinstance(key, str) and isinstance(text, str)}
        todo = list(_todo(questions, keys, answers, pictures))
        lost = 0
        with tqdm(
            total=len(questions), desc=label, unit="question", disable=not sys.stderr.isatty(), file=sys.stderr
        ) as bar:
            bar.update(len(questions) - sum(len(part.keys) for part in todo))
            for key, text in _answered(todo, backend):
                bar.update()
                if text is None:
                    lost += 1
                    continue
                lines.add({"key": key, "answer": text})
                answers[key] = text
    if lost:
        raise MinipovidError(
            f"{lost:,} of {len(questions):,} questions of {label} got no answer from {backend.name}; the others are "
            "kept, and the same command asks these again."
        )
    return [Answer(question, answers[key]) for question, key in zip(questions, keys, strict=True)]


def _todo(
    questions: Sequence[Question], keys: Sequence[str], answers: Mapping[str, str], pictures: Mapping[str, Path]
) -> Iterator[PictureQuestions]:
    for places in parts(questions):
        new = [place for place in places if keys[place] not in answers]
        if new:
            picture = pictures.get(questions[new[0]].image)
            yield PictureQuestions([questions[place] for place in new], [keys[place] for place in new], picture)


def _answered(todo: Sequence[PictureQuestions], backend: Backend) -> Iterator[tuple[str, str | None]]:
    """Keys and answers as they come."""
    if backend.concurrency == 1:
        for part in todo:
            yield from zip(part.keys, backend.answers(part.questions, part.picture), strict=True)
        return

    def work(part: PictureQuestions) -> tuple[str, str | None]:
        return part.keys[0], next(backend.answers(part.questions, part.picture))

    # One by one: an answer that has come is kept, whatever becomes of the next.
    with Pool(work, (single for part in todo for single in part.singles()), backend.concurrency) as crew:
        yield from crew.results()
