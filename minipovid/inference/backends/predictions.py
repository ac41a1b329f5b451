"""Answers that somebody else's program wrote into a file.

    {"question_id": 1, "text": "Yes"}           JSON lines, a JSON list, a table
    {"v1_0": "A dog.", "v1_1": "..."}           MM-Vet's: one object from ids to answers

Rows find their questions by id, never by their place in the file; only a file without any id is taken in the order of
the questions, and must then have as many rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipovid.common import data_files, text_files
from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.inference.backends import Decoding, OptionPath, Question

IDS = ("question_id", "id", "image_id", "index", "questionId")
# The likeliest first: in many files "answer" is the right one, beside a "prediction".
TEXTS = ("model_prediction", "prediction", "model_answer", "response", "output", "caption", "text", "answer")


@dataclass(frozen=True)
class Options:
    """`predictions`: the file."""

    predictions: OptionPath | None = None


def open(run: Path, options: Options, decoding: Decoding) -> PredictionsBackend:
    """Raises MinipovidError where no file is named, it is not there, or a row has no answer or the id of another."""
    if options.predictions is None:
        raise MinipovidError("This backend reads answers from a file: name it with --predictions.")
    if not options.predictions.is_file():
        raise MinipovidError(f"There is no file of answers {options.predictions}.")
    return PredictionsBackend(options.predictions)


class PredictionsBackend:
    """A file of answers; how they were chosen nobody knows."""

    concurrency = 1
    name = "predictions"
    decoding: Mapping[str, Any] = {}

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_id, self._in_order = _read(path)

    def identity(self) -> dict[str, Any]:
        order = list(self._by_id) if self._in_order else []
        return {"backend": self.name, "file": self._path.name, "sha256": digest(self._path).hex(), "order": order}

    def check(self, questions: Sequence[Question]) -> None:
        ids = [question.id for question in questions]
        if self._in_order:
            if len(self._in_order) != len(ids):
                raise MinipovidError(
                    f"{self._path} has {len(self._in_order):,} answers without ids, and there are {len(ids):,} "
                    "questions; give each its id."
                )
            self._by_id = dict(zip(ids, self._in_order, strict=True))
        missing = [each for each in ids if each not in self._by_id]
        unknown = sorted(self._by_id.keys() - set(ids))
        if missing:
            raise MinipovidError(
                f"{self._path} has no answer to {len(missing):,} of {len(ids):,} questions, {missing[0]} among them; "
                "every question needs one."
            )
        if unknown:
            raise MinipovidError(
                f"{self._path} answers {len(unknown):,} questions that are not asked here, {unknown[0]} among them; "
                "it belongs to another file of questions."
            )

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        for question in questions:
            yield self._by_id[question.id]

    def close(self) -> None:
        """There is nothing to close."""


def _read(path: Path) -> tuple[dict[str, str], list[str]]:
    """Answers by id; those of a file without ids, in order."""
    if path.is_file() and (mapping := _mapping(path)) is not None:
        return mapping, []
    by_id: dict[str, str] = {}
    in_order: list[str] = []
    for number, row in data_files.rows(path, data_files.Purpose("answers", "name it with --predictions")):
        if isinstance(row, data_files.Bad):
            raise MinipovidError(f"{path}: row {number} cannot be read: {row}.")
        text = _first(row, TEXTS) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise MinipovidError(f"{path}: row {number} has no answer; name its column one of {', '.join(TEXTS)}.")
        name = _first(row, IDS)
        if name is None:
            in_order.append(text)
        elif str(name) in by_id:
            raise MinipovidError(f"{path}: row {number} answers {name} again; keep one of the two.")
        else:
            by_id[str(name)] = text
    if by_id and in_order:
        raise MinipovidError(f"{path}: {len(in_order):,} rows have no id, and others have; give each its id.")
    return by_id, in_order


def _mapping(path: Path) -> dict[str, str] | None:
    """A file that is one object from ids to texts."""
    try:
        content = json.loads(text_files.read(path, "answers"))
    except (ValueError, RecursionError, MinipovidError):  # other kinds of files, which say themselves what is wrong
        return None
    is_mapping = isinstance(content, dict) and content and all(isinstance(text, str) for text in content.values())
    return content if is_mapping and not content.keys() & {*IDS, *TEXTS} else None


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)
