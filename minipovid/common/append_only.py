"""JSON lines that are appended one at a time: a line is kept the moment `add` returns, whoever is killed then.

    with Lines(run / "eval" / "answers.jsonl") as lines:
        for at, row in lines.read(): ...
        at = lines.add({"key": "9f3c...", "answer": "Yes."})
        lines.at(at)

A last line that a kill or a full disk has cut short is cut off; one that is no JSON (somebody's edit, damage) is passed
over. Read and written by one thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


def objects(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that somebody may be writing, or damaged; none where there is no file."""
    rows = (_object(line) for line in path.read_bytes().split(b"\n")) if path.is_file() else ()
    return [row for row in rows if row is not None]


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


class Lines:
    """An append-only file of JSON objects."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("a+b", buffering=0)

    def read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every whole line and where it begins, from the first; to be read to its end before anything is added."""
        at = self._file.seek(0)
        with os.fdopen(os.dup(self._file.fileno()), "rb") as reader:
            for line in reader:
                if not line.endswith(b"\n"):
                    self._file.truncate(at)
                    break
                begin, at = at, at + len(line)
                row = _object(line)
                if row is not None:
                    yield begin, row

    def add(self, row: Mapping[str, Any]) -> int:
        """Where the line begins. One write, which outlives the process as soon as it returns.

        Raises OSError, with the file's name and nothing added, where the system refuses it.
        """
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        at = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(at)
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        return at

    def at(self, begin: int) -> Any:
        """The row whose line begins there."""
        self._file.seek(begin)
        line = bytearray()
        while not line.endswith(b"\n") and (block := self._file.read(1 << 14)):
            end = block.find(b"\n")
            line += block if end < 0 else block[: end + 1]
        return json.loads(line)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
