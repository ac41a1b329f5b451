"""What every reader of a data set asks of its rows, so that a format is little more than a function from row to pair.

    yield from pairs_of(rows(path), _pair, foreign=True)        # _pair(row) -> Pair, or raises Bad with the reason

`pairs_of` does the bookkeeping: bad rows get their place and their sentence, ids are unique, no side is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from minipovid.common import data_files
from minipovid.common.data_files import Bad, Numbered, Purpose, is_absent, short
from minipovid.pairs.pair import BadRow, Pair, Seed, Unpaired

PAIRS = Purpose("pairs", "data.path must name the pairs")


def rows(path: Path) -> Iterator[Numbered]:
    """Every row of a file or folder of shards with its number: data_files.rows, for pairs."""
    return data_files.rows(path, PAIRS)


class Named(str):
    """An id that remembers the row it stood in: `where` names it in a sentence about the pair."""

    __slots__ = ("where",)
    where: str


class NoPair(Bad):
    """Why a sound row makes no pair; `pairs_of` makes it Unpaired."""


PairOrSeed = TypeVar("PairOrSeed", Pair, Seed)


def pairs_of(
    rows: Iterable[tuple[int | str, Any]], pair_of: Callable[[dict[str, Any]], PairOrSeed], foreign: bool = False
) -> Iterator[PairOrSeed | BadRow]:
    """Each (number, row) as a Pair or Seed or, with the sentence why not, as a BadRow. A row may be a Bad already.

    An id may come once: what is kept of a row (cached scores, noise) is kept under its id. In a `foreign` data set,
    which minds no such rule, an id that is empty or taken is made one of its own with the row's number.
    """
    seen: set[str] = set()
    for number, row in rows:
        name = identity(row) if isinstance(row, dict) else ""
        place = f"row {number} (id {name})" if name else f"row {number}"
        try:
            if isinstance(row, Bad):
                raise row
            if not isinstance(row, dict):
                raise Bad(f"the row is {short(row)}, not an object in braces")
            yield _unique(_sound(pair_of(row)), seen, place, f"row {number}" if foreign else None)
        except NoPair as why:
            yield Unpaired(place, str(why))
        except Bad as bad:
            yield BadRow(place, str(bad))


def _sound(item: PairOrSeed) -> PairOrSeed:
    if isinstance(item, Seed):
        texts = {"question": item.prompt, "answer": item.answer}
    else:
        texts = {"question": item.prompt, "chosen answer": item.chosen, "rejected answer": item.rejected}
    for what, words in texts.items():
        if not words.strip():
            raise Bad(f"the {what} is empty")
    if isinstance(item, Pair) and item.chosen.strip() == item.rejected.strip():
        raise Bad("the chosen and the rejected answer are equal, so there is nothing to prefer")
    return item


def _unique(item: PairOrSeed, seen: set[str], place: str, own: str | None) -> PairOrSeed:
    """The item, under an id that no earlier one has; a foreign id becomes that by its row's `own` name."""
    name = Named(item.id)
    while own is not None and (not name or name in seen):
        name = Named(f"{name} ({own})" if name else own)
    if name in seen:
        raise Bad(f"the id {str(name)!r} stands in an earlier row; give every row an id of its own")
    seen.add(name)
    name.where = place
    return item._replace(id=name) if isinstance(item, Seed) else replace(item, id=name)


def where(item: Pair | Seed, number: int) -> str:
    """The row that a pair or seed stood in, as its reader counted it, or `number`."""
    return getattr(item.id, "where", f"row {number} (id {item.id})")


def identity(row: Mapping[str, Any], key: str = "id") -> str:
    """row[key] as an id: text, or a number, of which pandas makes 17.0 where a row has none; "" where it is no id."""
    name = row.get(key)
    if isinstance(name, bool) or is_absent(name):
        return ""
    if isinstance(name, float):
        return str(int(name)) if name.is_integer() else str(name)
    if isinstance(name, str):
        return name.encode(errors="ignore").decode()
    return str(name) if isinstance(name, int) else ""


def known(row: Mapping[str, Any], required: Iterable[str], optional: Iterable[str] = ()) -> int:
    """For `claims`: how many of the row's columns these are, and 0 where one that is required is not there. A column
    that holds null is not there."""
    needed, there = set(required), {key for key, value in row.items() if not is_absent(value)}
    return len(there & (needed | set(optional))) if needed <= there else 0
