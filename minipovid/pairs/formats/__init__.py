"""HOW PAIRS ARE WRITTEN DOWN: one file per format, named as in the recipe's `data.format`.

A file holds any of these; nothing else anywhere lists it:

    def read(path) -> Iterator[Pair | BadRow]      a format of pairs, for recipes, `pairs import` and `pairs check`
    def seeds(path) -> Iterator[Seed | BadRow]     a format of good answers alone, from which a maker makes pairs
    def claims(row) -> int                         of a row's columns, how many are this format's own; 0: not mine

Here: what every reader asks of a row. A reader turns a row into a Pair or raises Bad; `checked` does the bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from minipovid.common import shelf
from minipovid.common.data_files import Bad as Bad
from minipovid.common.data_files import first
from minipovid.common.data_files import short as short
from minipovid.common.data_files import text as text
from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import BadRow, Pair

Ability = Literal["read", "seeds"]
HEAD = 20  # rows that a format is recognised by


class Seed(NamedTuple):
    """A picture, what is asked of it and a good answer: what a maker makes a Pair of.

    No Pair without its rejected half: every consumer of pairs counts on two answers that differ.
    """

    id: str
    image: str
    prompt: str
    answer: str
    source: str = "ground truth"  # who gave the answer


class Named(str):
    """An id that remembers the row it stood in: `where` names it in a sentence about the pair."""

    __slots__ = ("where",)
    where: str


class Unpaired(BadRow):
    """A sound row out of which the format's own rule makes no pair; it stops no run."""

    __slots__ = ()


class NoPair(Bad):
    """Why a sound row makes no pair; `checked` makes it Unpaired."""


Item = TypeVar("Item", Pair, Seed)


def checked(
    rows: Iterable[tuple[int | str, Any]], pair_of: Callable[[dict[str, Any]], Pair], foreign: bool = False
) -> Iterator[Pair | BadRow]:
    """Each (number, row) as a Pair or, with the sentence why not, as a BadRow. A row may be a Bad already.

    An id may come once: what is kept of a row (cached scores, noise) is kept under its id. In a `foreign` data set,
    which minds no such rule, an id that is empty or taken is made one of its own with the row's number.
    """
    return _checked(rows, lambda row: _sound(pair_of(row)), foreign)


def checked_seeds(
    rows: Iterable[tuple[int | str, Any]], seed_of: Callable[[dict[str, Any]], Seed]
) -> Iterator[Seed | BadRow]:
    """`checked` for seeds, whose data sets are always foreign."""
    return _checked(rows, lambda row: _fertile(seed_of(row)), foreign=True)


def _checked(
    rows: Iterable[tuple[int | str, Any]], item_of: Callable[[dict[str, Any]], Item], foreign: bool
) -> Iterator[Item | BadRow]:
    seen: set[str] = set()
    for number, row in rows:
        name = row.get("id") if isinstance(row, dict) else None
        place = f"row {number} (id {name})" if isinstance(name, (str, int)) else f"row {number}"
        try:
            yield _unique(_item(row, item_of), seen, place, f"row {number}" if foreign else None)
        except NoPair as why:
            yield Unpaired(place, str(why))
        except Bad as bad:
            yield BadRow(place, str(bad))


def _item(row: Any, item_of: Callable[[dict[str, Any]], Item]) -> Item:
    if isinstance(row, Bad):
        raise row
    if not isinstance(row, dict):
        raise Bad(f"the row is {short(row)}, not an object in braces")
    return item_of(row)


def _sound(pair: Pair) -> Pair:
    if not pair.prompt.strip():
        raise Bad("the question is empty")
    for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not answer.strip():
            raise Bad(f"the {side} answer is empty")
    if pair.chosen.strip() == pair.rejected.strip():
        raise Bad("the chosen and the rejected answer are equal, so there is nothing to prefer")
    return pair


def _fertile(seed: Seed) -> Seed:
    for what, words in (("question", seed.prompt), ("answer", seed.answer)):
        if not words.strip():
            raise Bad(f"the {what} is empty")
    return seed


def _unique(item: Item, seen: set[str], place: str, own: str | None) -> Item:
    """The item, under an id that no earlier one has; a foreign id becomes that by its row's `own` name."""
    name = Named(item.id)
    if own is not None and (not name or name in seen):
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
    """row[key] as an id, "" where there is none (`checked` finds one). Raises Bad where it is no id."""
    name = row.get(key)
    if name is None:
        return ""
    return str(name) if isinstance(name, int) and not isinstance(name, bool) else text(row, key)


def known(row: Mapping[str, Any], required: Iterable[str], optional: Iterable[str] = ()) -> int:
    """For `claims`: how many of the row's columns these are, and 0 where one that is required is not there."""
    needed = set(required)
    return len(set(row) & (needed | set(optional))) if needed <= set(row) else 0


def formats(ability: Ability = "read") -> list[str]:
    """The formats on the shelf that can do this."""
    return [name for name in shelf.names("pairs.formats") if _own(shelf.load("pairs.formats", name), ability)]


def _own(module: Any, ability: str) -> Any:
    """The module's function of that name; one that it only imports is no ability of its format."""
    found = getattr(module, ability, None)
    return found if getattr(found, "__module__", None) == module.__name__ else None


def reader(name: str) -> PairReader:
    """The reader of a format. Raises MinipovidError where nothing on the shelf bears the name or it reads no pairs."""
    module = shelf.load("pairs.formats", name)
    if not _own(module, "read"):
        known = ", ".join(formats())
        raise MinipovidError(f"{name} reads good answers, not pairs; the formats of pairs are {known}.")
    return module


def seeds(path: Path, name: str | None = None) -> Iterator[Seed | BadRow]:
    """The good answers of a data set in the format `name` (default: as recognised); of pairs, the chosen ones."""
    module = shelf.load("pairs.formats", name or detect(path, "seeds"))
    if read := _own(module, "seeds"):
        yield from read(path)
        return
    for row in reader(module.__name__.rpartition(".")[2]).read(path):
        yield row if isinstance(row, BadRow) else _chosen(row)


def _chosen(pair: Pair) -> Seed:
    seed = Seed(pair.id, pair.image, pair.prompt, pair.chosen)
    return seed._replace(source=pair.source.get("chosen", seed.source))


def detect(path: Path, ability: Ability = "read") -> str:
    """The format of a file or folder, by its first rows. Raises MinipovidError where none, or more than one, fits.

    Each format that can do this (or, for seeds, reads pairs) says how many of a row's columns are its own, and the one
    that knows most of them is it. Those that do not say are asked last, to read it.
    """
    able = dict.fromkeys([*formats(ability), *formats()] if ability == "seeds" else formats())
    modules = {name: shelf.load("pairs.formats", name) for name in able}
    rows = _head(path)
    scores = {name: _claimed(module, rows) for name, module in modules.items()}
    if not any(scores.values()):
        silent = {name: module for name, module in modules.items() if not hasattr(module, "claims")}
        scores = {name: _good(module, path) for name, module in silent.items()}
    best = [name for name, score in scores.items() if score == max(scores.values()) > 0]
    if len(best) == 1:
        return best[0]
    fits = f"the formats {' and '.join(best)} fit" if best else "no format fits"
    columns = f"the columns {', '.join(rows[0])}" if rows else "a file without columns"
    raise MinipovidError(f"{path}: {fits} {columns}; name one of {', '.join(sorted(modules))}.")


def _claimed(module: Any, rows: list[dict[str, Any]]) -> int:
    return sum(module.claims(row) for row in rows) if hasattr(module, "claims") else 0


def _head(path: Path) -> list[dict[str, Any]]:
    try:
        return first(path, HEAD)
    except MinipovidError:
        if path.is_dir():  # a folder without a table may still be a format's own
            return []
        raise


def _good(module: Any, path: Path) -> int:
    """How many of the first rows a format can use that does not say which rows are its own."""
    act = _own(module, "read") or module.seeds
    try:
        return sum(not isinstance(row, BadRow) for row in islice(act(path), HEAD))
    except MinipovidError:
        return 0


class PairReader(Protocol):
    """A module on the `pairs` shelf, named by the format: `data.format: povid` is `pairs/povid.py`."""

    def read(self, path: Path) -> Iterator[Pair | BadRow]:
        """Every row of the file, in order. Raises MinipovidError where the file as a whole is not this format."""
