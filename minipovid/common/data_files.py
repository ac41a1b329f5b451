"""The rows of anyone's data file, one at a time: parquet, a JSON list, JSON lines, CSV, or a folder of such shards.

    captions = Purpose("captions", "name the file of captions")
    for number, row in rows(path, captions):    # ("12", {...}); ("3 of part-2.parquet", {...}) of several files

What a file is, its first bytes say, not its name; what it was wanted for, the caller says. Memory stays flat however
large the file: parquet is read in small batches, a JSON list value by value, so that large values never pile up.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from minipovid.common.errors import MinipovidError

SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv")
BATCH = 32  # rows of parquet at once: of a MiB each they are still a few dozen MiB
CHUNK = 1 << 20  # characters
LONGEST = 1 << 28  # characters of one JSON value; beyond, the file is not what it seems
_ESCAPE = 16  # characters: a number, literal or \uXXXX that the end of a chunk cut in two is shorter

Numbered = tuple[str, Any]


class Cells(dict[str, str]):
    """A table's row, every cell of it text: what CSV gives, and no other file."""


class Bad(ValueError):
    """Why a row cannot be used, in one sentence."""


class Purpose(NamedTuple):
    """What a file is read for, in the words of whoever wants it."""

    what: str  # "The captions x.json cannot be read: ..."
    remedy: str  # "There is no file x.json; name the file of captions."


def rows(path: Path, purpose: Purpose) -> Iterator[Numbered]:
    """Every row with its number; a row that cannot be parsed is a Bad.

    JSON lines are numbered by line, CSV as a spreadsheet does it (the header is row 1), others from 1. Raises
    MinipovidError where there is no such file or it is none of the kinds above, at once or in the middle.
    """
    files = shards(path, purpose)
    for file in files:
        behind = f" of {file.name}" if len(files) > 1 else ""
        kind = kind_of(file, purpose)
        for number, row in _parquet(file, purpose) if kind == "parquet" else of_text(file, kind, purpose):
            yield f"{number}{behind}", row


def shards(path: Path, purpose: Purpose) -> list[Path]:
    """The file itself, or a folder's data files of its one kind by name; hidden ones are none."""
    if not path.is_dir():
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.name[0] != "."]
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise MinipovidError(f"The folder {path} holds no data file ({', '.join(SUFFIXES)}); name the file itself.")
    if len(kinds) > 1:
        both = " and ".join(kinds)
        raise MinipovidError(f"The folder {path} holds {both} files; name the one that holds the {purpose.what}.")
    return files


def of_text(path: Path, kind: str, purpose: Purpose) -> Iterator[tuple[int, Any]]:
    """The rows of one file, read as a JSON "list", JSON "lines" or "csv", whatever it looks like."""
    try:
        with path.open(encoding="utf-8-sig", newline="" if kind == "csv" else "\n") as file:
            yield from {"list": _values, "lines": _lines, "csv": _table}[kind](file, path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, purpose, error) from None


def kind_of(path: Path, purpose: Purpose) -> str:
    """ "parquet", "list" (JSON), "lines" (JSON) or "csv". Raises MinipovidError where it is none of these."""
    by_name = {".csv": "csv", ".tsv": "csv", ".jsonl": "lines"}.get(path.suffix.lower())
    kind = looks_like(path, purpose) or by_name
    if kind is None:
        raise MinipovidError(
            f"{path} is neither parquet nor a JSON list nor JSON lines nor a .csv table; convert it to one of these."
        )
    return kind


def looks_like(path: Path, purpose: Purpose) -> str | None:
    """What the first bytes say: "parquet", "list", "lines", or None. Raises MinipovidError where there is no file."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        raise MinipovidError(f"There is no file {path}; {purpose.remedy}.") from None
    except OSError as error:
        raise _unreadable(path, purpose, error) from None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    return "parquet" if head[:4] == b"PAR1" else {b"[": "list", b"{": "lines"}.get(start)


def _unreadable(path: Path, purpose: Purpose, error: Exception) -> MinipovidError:
    return MinipovidError(f"The {purpose.what} {path} cannot be read: {error}.")


def _parquet(path: Path, purpose: Purpose) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # A buffer, else a column chunk (which may be the whole file) is read at once.
        with pyarrow.parquet.ParquetFile(path, buffer_size=CHUNK, pre_buffer=False) as file:
            for batch in file.iter_batches(BATCH, use_threads=False):
                yield from enumerate(batch.to_pylist(), number + 1)
                number += len(batch)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, purpose, error) from None


def _lines(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """Every line that is not blank, parsed, with its number; only a line feed ends one (a text may hold U+2028)."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, Bad(f"the line is not JSON: {error}")


def _values(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The values of one JSON list, in order, without ever holding more than a chunk and a value."""
    text = _Text(file, path)
    yield from enumerate(_elements(text), 1)
    if text.peek():
        raise text.wrong("there is more behind the end of the list")


def within(path: Path, purpose: Purpose, key: str) -> Iterator[Any]:
    """What the list at this key of one JSON object holds: see `lists`."""
    return (element for _, element in lists(path, purpose, key))


def lists(path: Path, purpose: Purpose, *keys: str) -> Iterator[tuple[str, Any]]:
    """What the lists at these keys of one JSON object hold, {"info": {...}, "annotations": [...]}, each with its key.

    In order, and as sparing of memory. Raises MinipovidError where the file is no such object, or lacks a key.
    """
    missing = set(keys)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = _Text(file, path)
            text.expect("{")
            while missing:
                key = text.value()
                text.expect(":")
                if text.peek() == "[":
                    yield from ((key, element) for element in _elements(text) if key in keys)
                else:
                    text.value()
                missing.discard(key)
                if missing:
                    text.expect(",")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, purpose, error) from None


def _elements(text: _Text) -> Iterator[Any]:
    text.expect("[")
    first = True
    while text.peek() != "]":
        if not first:
            text.expect(",")
        first = False
        yield text.value()
    text.expect("]")


class _Text:
    """The unread part of a JSON text, read chunk by chunk."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self.file, self.path, self.buffer, self.at = file, path, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white, or "" at the end."""
        while True:
            self.at = _WHITE.match(self.buffer, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def expect(self, character: str) -> None:
        there = self.peek()
        if there != character:
            raise self.wrong(f"{character!r} was expected and {there or 'the end'!r} stands there")
        self.at += 1

    def value(self) -> Any:
        """The next value. A parser's error may only mean that the chunk ends too soon: then with more text again."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.buffer) - _ESCAPE or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    raise self.wrong(error.msg) from None
            except RecursionError as error:
                raise self.wrong(str(error)) from None
            else:
                if end + 2 < len(self.buffer) or not self._more():  # a number may go on: 1 | .5, 1 | e+5
                    self.at = end
                    return value

    def _more(self) -> bool:
        """Read on, by as much again as is kept: a long value is parsed a few times, not once per chunk."""
        rest = self.buffer[self.at :]
        if len(rest) > LONGEST:
            raise self.wrong(f"a value is longer than {LONGEST:,} characters")
        chunk = self.file.read(max(CHUNK, len(rest)))
        if chunk:  # else nothing moves: the caller's positions stay
            self.buffer, self.at = rest + chunk, 0
        return bool(chunk)

    def wrong(self, why: str) -> MinipovidError:
        return MinipovidError(f"{self.path} is not a JSON list: {why}, before {self.buffer[self.at :][:40]!r}.")


_WHITE = re.compile(r"[ \t\n\r]*")


def _table(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table with a header; ",", ";" or a tab between the cells, whichever the header has most of."""
    header = file.readline()
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader(io.StringIO(header), delimiter=delimiter), [])
    csv.field_size_limit(LONGEST)
    for number, cells in enumerate(csv.reader(file, delimiter=delimiter), 2):
        if cells and len(cells) == len(names):
            yield number, Cells(zip((name.strip() for name in names), cells, strict=True))
        elif cells:
            why = f"the row has {len(cells)} cells, the header {len(names)}; a text with a comma in it needs quotes"
            yield number, Bad(why)


def text(row: Mapping[str, Any], key: str) -> str:
    """row[key], which must be text that can be encoded. Raises Bad."""
    if key not in row:
        raise Bad(f"{key} is missing")
    value = row[key]
    if not isinstance(value, str):
        raise Bad(f"{key} is {short(value)}, but it must be text in quotes")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Bad(f"{key} holds half of a surrogate pair, which is no character; write the character itself") from None
    return value


def short(value: object) -> str:
    """A value as it stands in a sentence: at most 60 characters."""
    shorthand = repr(value)
    return shorthand if len(shorthand) <= 60 else shorthand[:57] + "..."
