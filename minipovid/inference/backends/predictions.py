"""Answers that somebody else's program wrote into a file.

    {"question_id": 1, "text": "Yes"}           JSON lines, a JSON list, a table
    {"v1_0": "A dog.", "v1_1": "..."}           MM-Vet's: one object from ids to answers

Rows find their questions by what they say of them, id, picture and words, never by their place in the file; only rows
that say nothing are taken in the order of the questions (minipovid.inference.answer_files).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.inference.answer_files import matching, reading
from minipovid.inference.backends import Decoding, OptionPath, Question

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """`predictions`: the file; `answers_column`: which of its columns the answers are, where that is not clear."""

    predictions: OptionPath | None = None
    answers_column: str | None = None


def open(run: Path, options: Options, decoding: Decoding) -> PredictionsBackend:
    """Raises MinipovidError where no file is named, it is not there, or it holds no rows."""
    if options.predictions is None:
        raise MinipovidError("This backend reads answers from a file: name it with --predictions.")
    if not options.predictions.is_file():
        raise MinipovidError(f"There is no file of answers {options.predictions}.")
    return PredictionsBackend(options.predictions, options.answers_column)


class PredictionsBackend:
    """A file of answers; how they were chosen nobody knows."""

    concurrency = 1
    name = "predictions"
    decoding: Mapping[str, Any] = {}

    def __init__(self, path: Path, answers_column: str | None = None) -> None:
        self._path, self._column = path, answers_column
        self._rows = reading.rows(path)
        self._found: matching.Matched | None = None

    def identity(self) -> dict[str, Any]:
        """Which column was read is a part of it where there was a choice; the questions' order where it decided."""
        found = self._found
        order = list(found.answers) if found and found.order else []
        column = {"answers_column": found.column} if found and len(found.rivals) > 1 else {}
        read = {"backend": self.name, "file": self._path.name, "sha256": digest(self._path).hex()}
        return {**read, "order": order, **column}

    def check(self, questions: Sequence[Question]) -> None:
        self._found = matching.matched(self._path, self._rows, questions, self._column)
        if self._found.order:
            _log.warning(
                "%s: no row says which question it answers; its %d rows are taken in the order of the questions.",
                self._path,
                len(self._rows),
            )

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        assert self._found is not None, "check comes before answers"
        for question in questions:
            yield self._found.answers[question.id]

    def close(self) -> None:
        """There is nothing to close."""
