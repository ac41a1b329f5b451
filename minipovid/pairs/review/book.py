"""The rows of the pairs, in a temporary SQLite file: any of 100,000 is at hand, filtered and searched, in flat memory.

    with Book(source) as book:
        rows, matches, before = book.page(Filter(search="boat"), after=0)
        row = book.row(17)

Rows are numbered from 1 as they stand in the file, those that are no pairs left out and counted. Pictures that lie
inside the data file are kept in the cache folder, where training keeps them too.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.images.load import inside
from minipovid.pairs import formats
from minipovid.pairs.pair import Pair, Span
from minipovid.pairs.reading import where
from minipovid.pairs.review.decisions import LABELS, UNDECIDED, ReviewRow, State
from minipovid.pairs.source import PairSource

PAGE = 40  # rows of a list
EXCERPT = 120  # characters
CHOICES = 50  # sources and kinds that can be filtered by

_TABLES = """
CREATE TABLE rows (
    n INTEGER PRIMARY KEY, id TEXT UNIQUE, place TEXT, image TEXT, kept INTEGER, prompt TEXT, chosen TEXT,
    rejected TEXT, source TEXT, maker TEXT, spans TEXT, of TEXT, label TEXT, new_chosen TEXT, new_rejected TEXT,
    folded TEXT
);
CREATE TABLE kinds (n INTEGER, kind TEXT, PRIMARY KEY (kind, n)) WITHOUT ROWID;
"""
_INDEXES = "CREATE INDEX by_label ON rows (label, n); CREATE INDEX by_maker ON rows (maker, n);"


class FullRow(NamedTuple):
    """One row, whole."""

    n: int
    place: str
    image: str
    prompt: str
    source: dict[str, str]
    spans: tuple[Span, ...]
    row: ReviewRow
    state: State


@dataclass(frozen=True)
class Filter:
    """Which rows are looked at; "" is no condition."""

    state: str = ""
    maker: str = ""
    kind: str = ""
    search: str = ""

    def condition(self) -> tuple[str, list[str]]:
        """SQL and its values."""
        kind, search = "n IN (SELECT n FROM kinds WHERE kind = ?)", self.search.casefold()
        tests = (("label = ?", self.state), ("maker = ?", self.maker), (kind, self.kind), ("instr(folded, ?)", search))
        used = [(test, value) for test, value in tests if value]
        return " AND ".join(["1", *(test for test, _ in used)]), [value for _, value in used]


class Book:
    """Any thread may call."""

    def __init__(self, source: PairSource) -> None:
        """Raises MinipovidError where the file as a whole cannot be read, or holds no pair."""
        self.source, self.bad = source, 0
        self.store = Store(cache_folder() / "pictures")
        self.turn = threading.Lock()
        self.folder = tempfile.TemporaryDirectory(prefix="minipovid-review-")
        self.file = sqlite3.connect(Path(self.folder.name) / "rows.sqlite", check_same_thread=False)
        try:
            self.total = self._fill()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()

    def close(self) -> None:
        self.file.close()
        self.folder.cleanup()

    def _fill(self) -> int:
        self.file.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _TABLES)
        marks = ", ".join("?" * 16)
        with self.file:
            for number, pair in enumerate(formats.reader(self.source.format).read(self.source.path), 1):
                if not isinstance(pair, Pair):
                    self.bad += 1
                    continue
                columns = self._columns(pair, where(pair, number))
                added = self.file.execute(f"INSERT INTO rows VALUES ({marks})", columns)
                kinds = {(added.lastrowid, span.kind) for span in pair.spans}
                self.file.executemany("INSERT INTO kinds VALUES (?, ?)", kinds)
        self.file.executescript(_INDEXES)
        total = self._one("SELECT count(*) FROM rows")
        if not total:
            raise MinipovidError(f"{self.source.path} holds no usable pair; `minipovid pairs check` says why.")
        return int(total)

    def _columns(self, pair: Pair, place: str) -> tuple[Any, ...]:
        row, image, inside_file = ReviewRow.of_pair(pair), pair.image, isinstance(pair.image, Embedded)
        image = self.store.keep(image) if isinstance(image, Embedded) else placed(self.source.root, image)
        return (
            *(None, row.id, place, image, int(inside_file), pair.prompt, pair.chosen, pair.rejected),
            *(json.dumps(dict(pair.source)), maker(pair.source), json.dumps(pair.spans), row.of),
            *(UNDECIDED.label, None, None, _folded(row.id, pair.prompt, pair.chosen, pair.rejected)),
        )

    def row(self, n: int) -> FullRow | None:
        columns = "place, image, prompt, source, spans, id, of, chosen, rejected, label, new_chosen, new_rejected"
        rows = self._all(f"SELECT {columns} FROM rows WHERE n = ?", (n,))
        if not rows:
            return None
        place, image, prompt, source, spans, *row = rows[0]
        marks = tuple(Span(*span) for span in json.loads(spans))
        return FullRow(n, place, image, prompt, json.loads(source), marks, ReviewRow(*row[:4]), State(*row[4:]))

    def number(self, id: str) -> int | None:
        rows = self._all("SELECT n FROM rows WHERE id = ?", (id,))
        return int(rows[0][0]) if rows else None

    def find(self, id: str) -> ReviewRow | None:
        rows = self._all("SELECT id, of, chosen, rejected FROM rows WHERE id = ?", (id,))
        return ReviewRow(*rows[0]) if rows else None

    def settle(self, id: str, state: State) -> None:
        """Where the row stands from now on, also for filters and search."""
        with self.turn, self.file:
            row = self.file.execute("SELECT prompt, chosen, rejected FROM rows WHERE id = ?", (id,))
            prompt, *texts = row.fetchone()
            now = [new if new is not None else text for new, text in zip(state[1:], texts, strict=True)]
            self.file.execute(
                "UPDATE rows SET label = ?, new_chosen = ?, new_rejected = ?, folded = ? WHERE id = ?",
                (*state, _folded(id, prompt, *now), id),
            )

    def page(self, wanted: Filter, after: int = 0, before: int = 0) -> tuple[list[dict[str, Any]], int, int]:
        """(rows, how many match, how many of those stand before the first of these).

        The first PAGE behind row `after` or, where `before` is given, the last PAGE in front of that.
        """
        test, values = wanted.condition()
        side, order, edge = ("n < ?", "DESC", before) if before else ("n > ?", "ASC", after)
        columns = f"substr(prompt, 1, {EXCERPT}), substr(coalesce(new_rejected, rejected), 1, {EXCERPT})"
        query = f"SELECT n, id, label, {columns} FROM rows WHERE {test} AND {side} ORDER BY n {order} LIMIT {PAGE}"
        selection = self._all(query, (*values, edge))
        keys = ("n", "id", "state", "prompt", "rejected")
        rows = sorted((dict(zip(keys, row, strict=True)) for row in selection), key=lambda row: int(row["n"]))
        matches = self._one(f"SELECT count(*) FROM rows WHERE {test}", values)
        first = rows[0]["n"] if rows else edge
        return rows, matches, self._one(f"SELECT count(*) FROM rows WHERE {test} AND n < ?", (*values, first))

    def counts(self) -> dict[str, int]:
        """Rows in each state."""
        counts = dict(self._all("SELECT label, count(*) FROM rows GROUP BY label"))
        return {label: counts.get(label, 0) for label in LABELS}

    def choices(self) -> dict[str, list[str]]:
        """What can be filtered by, the most frequent first."""
        makers = self._all(f"SELECT maker FROM rows GROUP BY maker ORDER BY count(*) DESC LIMIT {CHOICES}")
        kinds = self._all(f"SELECT kind FROM kinds GROUP BY kind ORDER BY count(*) DESC LIMIT {CHOICES}")
        return {"makers": [each for (each,) in makers], "kinds": [each for (each,) in kinds]}

    def picture(self, n: int) -> Path | None:
        """The file of a row's picture, which may be missing; None where there is no such row.

        Raises MinipovidError for a name that leads out of the picture folder.
        """
        rows = self._all("SELECT image, kept FROM rows WHERE n = ?", (n,))
        if not rows:
            return None
        image, inside_file = rows[0]
        return inside(self.store.folder if inside_file else self.source.root, image)

    def _all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self.turn:
            return self.file.execute(query, values).fetchall()

    def _one(self, query: str, values: Sequence[Any] = ()) -> int:
        return int(self._all(query, values)[0][0])


def maker(source: Mapping[str, str]) -> str:
    """Who wrote the two halves, in a line."""
    return " / ".join(source.get(side, "unknown") for side in ("chosen", "rejected"))


def _folded(*texts: str) -> str:
    return "\n".join(texts).casefold()
