"""The rows of a file of answers, whatever holds them.

{"question_id": 1, "text": "Yes"}                 JSON lines, a JSON list, a table
{"v1_0": "A dog.", "v1_1": "..."}                 one object from ids to answers (MM-Vet), or to rows
{"imgToEval": {"42": {"caption": "..."}}}         one object that holds the rows (CHAIR)
{"doc": {"question_id": 1, ...}, "resps": ...}    rows that hold the benchmark's own row (lmms-eval)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common import data_files, text_files
from minipovid.common.errors import MinipovidError
from minipovid.inference.answer_files.columns import is_known, is_name

_PURPOSE = data_files.Purpose("answers", "name it with --predictions")


class Row(NamedTuple):
    """One row: its number, or its key in an object of rows; `written` is the program's, `about` the benchmark's too."""

    number: str
    written: Mapping[str, Any]
    about: Mapping[str, Any]


def rows(path: Path) -> list[Row]:
    """Raises MinipovidError where the file is not there, holds no rows, or one that is no object."""
    found = []
    for number, row in _numbered(path):
        if isinstance(row, data_files.Bad):
            raise MinipovidError(f"{path}: row {number} cannot be read: {row}.")
        if not isinstance(row, dict):
            raise MinipovidError(
                f"{path}: row {number} is {data_files.short(row)}, and no object; write each answer with what it "
                'answers, {"question_id": 1, "answer": "Yes"}.'
            )
        own = row.get("doc")
        written = {key: value for key, value in row.items() if key != "doc"}
        found.append(Row(number, written, {**own, **written} if isinstance(own, dict) else row))
    if not found:
        raise MinipovidError(f"{path} holds no answer.")
    return found


def _numbered(path: Path) -> Iterator[tuple[str, Any]]:
    content = _one_object(path)
    if content is None:
        yield from data_files.rows(path, _PURPOSE)
        return
    held = _held(content)
    if held is None:
        raise MinipovidError(
            f"{path} is one object, and its {', '.join(list(content)[:5])} hold no answers; write a list of rows, each "
            'with what it answers, {"question_id": 1, "answer": "Yes"}.'
        )
    yield from held


def _one_object(path: Path) -> dict[str, Any] | None:
    """A file that is one JSON object; None for any other, sound or not."""
    try:
        text = text_files.read(path, _PURPOSE.what)
    except MinipovidError:  # parquet, or no file at all: whoever reads its rows says so
        return None
    try:
        content = data_files.parsed(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and content else None


def _held(content: Mapping[str, Any]) -> list[tuple[str, Any]] | None:
    """The rows of one object: itself, one for each key, or those that its only list or object of rows holds."""
    if any(map(is_known, content)):
        return [("1", content)]
    values = content.values()
    if all(value is None or isinstance(value, str) for value in values):
        return [(key, {"id": key, "answer": text}) for key, text in content.items()]
    if all(isinstance(value, dict) and any(map(is_known, value)) for value in values):
        return [(key, row if any(map(is_name, row)) else {"id": key, **row}) for key, row in content.items()]
    inner = [value for value in values if isinstance(value, (dict, list)) and value]
    lists = [each for each in inner if isinstance(each, list) and isinstance(each[0], dict)]
    if len(lists) == 1:
        return [(str(number), row) for number, row in enumerate(lists[0], 1)]
    objects = [held for each in inner if isinstance(each, dict) and (held := _held(each)) and held[0][1] != each]
    return objects[0] if len(objects) == 1 and not lists else None
