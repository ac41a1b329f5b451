"""The rows of anyone's data file, one at a time: parquet, JSON in any container, CSV, or a folder of such shards.

    captions = Purpose("captions", "name the file of captions")
    for number, row in rows(path, captions):    # ("12", {...}); ("3 of part-2.parquet", {...}) of several files

What a file is, its first bytes say, not its name; what it was wanted for, the caller says. Rows of JSON are a list, one
object per line, objects one after another however they are indented, or a list that one object wraps ({"data": [...]}).
Memory stays flat however large the file: parquet is read in small batches, JSON value by value, so that large values
never pile up.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Generator, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.common.text_files import HEAD, encoding, no_text, opened, unreadable

SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv")
BATCH = 32  # rows of parquet at once: of a MiB each they are still a few dozen MiB
CHUNK = 1 << 20  # characters
LONGEST = 1 << 28  # characters of one JSON value; beyond, the file is not what it seems
# What a list of rows is called inside the object that wraps it; of another name only where it is all that is there.
WRAPPERS = frozenset(
    ("data", "dataset", "rows", "records", "items", "entries", "examples", "samples", "instances", "pairs", "questions")
    + ("annotations", "results", "train", "training", "validation", "valid", "val", "dev", "test")
)
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
    MinipovidError where there is no such file, it is empty or none of the kinds above, at once or in the middle.
    """
    files = shards(path, purpose)
    for file in files:
        behind = f" of {file.name}" if len(files) > 1 else ""
        kind = kind_of(file, purpose)
        for number, row in _parquet(file, purpose) if kind == "parquet" else _text(file, kind, purpose):
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


def parsed(text: str) -> Any:
    """json.loads of what users bring. Raises ValueError where it is no JSON, Bad where a key has two values."""
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values under one key JSON would keep the last, and say nothing."""
    content = dict(pairs)
    if len(content) < len(pairs):
        for key, value in pairs:
            if repr(value) != repr(content[key]):  # 1 is no true
                raise Bad(f"{key} stands there twice, with {short(value)} and {short(content[key])}; keep one of them")
    return content


_DISTINCT = json.JSONDecoder(object_pairs_hook=_distinct)
_PLAIN = json.JSONDecoder()


def _decoded(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, or the Bad that it is, and where it ends."""
    try:
        return _DISTINCT.raw_decode(text, at)
    except Bad as bad:
        return bad, _PLAIN.raw_decode(text, at)[1]


def _text(path: Path, kind: str, purpose: Purpose) -> Iterator[tuple[int, Any]]:
    with opened(path, purpose.what, newline="" if kind == "csv" else "\n") as file:
        try:
            yield from {"list": _list, "objects": _objects, "csv": _table}[kind](file, path)
        except csv.Error as error:
            raise unreadable(path, purpose.what, error) from None


def kind_of(path: Path, purpose: Purpose) -> str:
    """ "parquet", "list" (JSON), "objects" (JSON) or "csv". Raises MinipovidError where it is none of these."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            start = head.decode(encoding(head), errors="ignore").lstrip()[:1]
            is_empty = not start and not any(block.strip() for block in iter(lambda: file.read(CHUNK), b""))
    except FileNotFoundError:
        raise MinipovidError(f"There is no file {path}; {purpose.remedy}.") from None
    except OSError as error:
        raise unreadable(path, purpose.what, error) from None
    if is_empty:
        raise MinipovidError(f"{path} is empty; {purpose.remedy}.")
    if why := no_text(head):
        raise MinipovidError(f"The {purpose.what} {path} cannot be read: it is {why}.")
    if head[:4] == b"PAR1":
        return "parquet"
    by_name = {".csv": "csv", ".tsv": "csv", ".jsonl": "objects"}.get(path.suffix.lower())
    kind = {"[": "list", "{": "objects"}.get(start, by_name)
    if kind is None:
        raise MinipovidError(f"{path} is neither parquet nor JSON nor a .csv table; convert it to one of these.")
    return kind


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
        raise unreadable(path, purpose.what, error) from None


def _lines(file: IO[str]) -> Iterator[tuple[int, Any]]:
    """Every line that is not blank, parsed, with its number; only a line feed ends one (a text may hold U+2028)."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            yield number, parsed(line.removeprefix("\ufeff"))  # files that were joined keep their marks
        except Bad as bad:
            yield number, bad
        except (ValueError, RecursionError) as error:
            yield number, Bad(f"the line is not JSON: {error}")


def _list(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The values of one JSON list, in order, without ever holding more than a chunk and a value."""
    text = _Text(file, path, "a JSON list")
    yield from enumerate(_elements(text), 1)
    if text.peek():
        raise text.wrong("there is more behind the end of the list")


def _objects(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """JSON lines; objects that take several lines each; or the rows of the list that one object wraps."""
    filled = (line for line in iter(lambda: file.readline(CHUNK), "") if line.strip())
    first, second = next(filled, ""), next(filled, "")
    file.seek(0)
    is_cut = len(first) == CHUNK  # a line that holds a picture, or every row
    if not is_cut and not _is_no_line(first, second):
        yield from _lines(file)
        return
    text = _Text(file, path, "JSON")
    row = yield from _wrapped(text)
    if row is None:
        if text.peek():
            raise text.wrong("there is more behind the end of the object")
    elif is_cut:
        file.seek(0)
        yield from _lines(file)
    else:
        yield 1, row
        number = 1
        while text.peek():
            number += 1
            yield number, text.value()


def _is_no_line(first: str, second: str) -> bool:
    """Whether an object that begins in the first line goes on in the second, or is all that there is."""
    try:
        json.loads(first)
    except json.JSONDecodeError as error:
        if error.pos < len(first.rstrip()) - 1 or not second:
            return False
    except RecursionError:
        return False
    else:
        return not second
    try:
        json.loads(first + second)
    except json.JSONDecodeError as error:
        is_cut = error.msg.startswith("Unterminated string")
        return is_cut or error.pos > len(first + second) - len(second.lstrip())
    except RecursionError:
        pass
    return True


def _wrapped(text: _Text) -> Generator[tuple[int, Any], None, dict[str, Any] | Bad | None]:
    """The numbered rows of the one list that an object holds, or nothing: then the object is returned, as a row."""
    pairs: list[tuple[str, Any]] = []
    wrapper = ""
    text.expect("{")
    while text.peek() != "}":
        if pairs or wrapper:
            text.expect(",")
        key = text.key()
        if key not in WRAPPERS or not text.has_objects():
            pairs.append((key, text.value()))
            continue
        if wrapper:
            raise MinipovidError(
                f"{text.path} holds rows under {wrapper} and under {key}; save those that are meant as a file of their "
                "own."
            )
        wrapper = key
        yield from enumerate(_elements(text), 1)
    text.expect("}")
    if wrapper:
        return None
    try:
        row = _distinct(pairs)
    except Bad as bad:
        return bad
    if wrong := next((value for value in row.values() if isinstance(value, Bad)), None):
        return wrong
    if row and all(isinstance(value, dict) for value in row.values()):  # by name, or pandas' table column by column
        raise MinipovidError(f"{text.path} is one object of objects and no list of rows; save it as a list of rows.")
    (only,) = row.values() if len(row) == 1 else (None,)
    if not (only and isinstance(only, list) and all(isinstance(each, dict) for each in only)):
        return row
    yield from enumerate(only, 1)
    return None


def within(path: Path, purpose: Purpose, key: str) -> Iterator[Any]:
    """What the list at this key of one JSON object holds: see `lists`."""
    return (element for _, element in lists(path, purpose, key))


def lists(path: Path, purpose: Purpose, *keys: str) -> Iterator[tuple[str, Any]]:
    """What the lists at these keys of one JSON object hold, {"info": {...}, "annotations": [...]}, each with its key.

    In order, and as sparing of memory. Raises MinipovidError where the file is no such object, or lacks a key.
    """
    missing = set(keys)
    with opened(path, purpose.what) as file:
        text = _Text(file, path, "a JSON object")
        text.expect("{")
        while missing:
            key = text.key()
            if text.peek() == "[":
                for element in _elements(text):
                    if isinstance(element, Bad):
                        raise text.wrong(str(element))
                    if key in keys:
                        yield key, element
            else:
                text.value()
            missing.discard(key)
            if missing:
                text.expect(",")


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

    def __init__(self, file: IO[str], path: Path, kind: str) -> None:
        self.file, self.path, self.kind, self.buffer, self.at = file, path, kind, "", 0

    def peek(self) -> str:
        """The next character that is not white, or "" at the end."""
        while True:
            self.at = _WHITE.match(self.buffer, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def has_objects(self) -> bool:
        """Whether a list of objects comes next."""
        self.peek()
        while True:
            match = _OBJECTS.match(self.buffer, self.at)
            if match is None or match.end() < len(self.buffer) or not self._more():
                return match is not None and match[0][-1] == "{"

    def expect(self, character: str) -> None:
        there = self.peek()
        if there != character:
            raise self.wrong(f"{character!r} was expected and {there or 'the end'!r} stands there")
        self.at += 1

    def key(self) -> str:
        """The next key of an object, and the colon behind it."""
        if self.peek() != '"':
            raise self.wrong("a key in quotes was expected")
        key = str(self.value())
        self.expect(":")
        return key

    def value(self) -> Any:
        """The next value, or Bad. A parser's error may only mean that the chunk ends too soon: then with more text."""
        self.peek()
        while True:
            try:
                value, end = _decoded(self.buffer, self.at)
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
        return MinipovidError(f"{self.path} is not {self.kind}: {why}, before {self.buffer[self.at :][:40]!r}.")


_WHITE = re.compile(r"[ \t\n\r]*")
_OBJECTS = re.compile(r"\[[ \t\n\r]*\{?")


def _table(file: IO[str], path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a table with a header; ",", ";" or a tab between the cells, whichever the header has most of, or what
    a line "sep=;" before it says, which spreadsheets write and do not count."""
    csv.field_size_limit(LONGEST)
    header = next((line for line in file if line.strip()), "")
    delimiter = max(",;\t", key=header.count)
    if told := _SEPARATOR.fullmatch(header):
        delimiter, header = told[1], file.readline()
    lines = chain([header], file)
    names = [name.strip() for name in next(csv.reader(lines, delimiter=delimiter, strict=True), [])]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise MinipovidError(f"{path} has two columns {twice[0]}; give each a name of its own.")
    for number, cells in enumerate(_rows_of_cells(lines, delimiter), 2):
        if isinstance(cells, Bad):
            yield number, cells
        elif not any(map(str.strip, cells)) and (len(names) > 1 or cells != [""]):  # of one column, "" is a row
            continue
        elif len(cells) == len(names):
            yield number, Cells(zip(names, cells, strict=True))
        else:
            why = f"the row has {len(cells)} cells, the header {len(names)}; a text with a comma in it needs quotes"
            yield number, Bad(why)


def _rows_of_cells(lines: Iterator[str], delimiter: str) -> Iterator[list[str] | Bad]:
    """The cells of each row, or why it has none. Raises csv.Error where nobody can know which row a line belongs to: a
    quote that is never closed would swallow all up to the next one."""
    read: list[str] = []  # of this row

    def noted() -> Iterator[str]:
        for line in lines:
            read.append(line)
            yield line

    cells_of = csv.reader(noted(), delimiter=delimiter, strict=True)
    while True:
        read.clear()
        try:
            yield next(cells_of)
        except StopIteration:
            return
        except csv.Error as error:
            why = f"{error} ({short(read[0])}); a quote within a cell in quotes is written twice"
            if "".join(read).count('"') % 2:
                raise csv.Error(why) from None
            yield Bad(why)


_SEPARATOR = re.compile(r'"?sep=(.)"?[\r\n]*', re.IGNORECASE)


def is_absent(value: object) -> bool:
    """Whether a cell holds nothing: null, or the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and value != value)


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
    try:
        shorthand = repr(value)
    except RecursionError:
        shorthand = f"a {type(value).__name__} of many levels"
    return shorthand if len(shorthand) <= 60 else shorthand[:57] + "..."
