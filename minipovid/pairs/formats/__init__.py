"""HOW PAIRS ARE WRITTEN DOWN: one file per format, named as in the recipe's `data.format`.

A file defines `read`, `seeds` or both, and `claims` where it can tell its rows; nothing else anywhere lists it:

    def read(path: Path) -> Iterator[Pair | BadRow]      pairs, for recipes and every command that takes pairs
    def seeds(path: Path) -> Iterator[Seed | BadRow]     good answers alone, of which a maker makes pairs
    def claims(row: Mapping[str, Any]) -> int            how many of a row's columns are this format's; 0: not mine

Rows come in the file's order, one at a time, for a file may be larger than memory. What cannot be used is a BadRow that
says why, and the rest goes on; MinipovidError is for a file that as a whole is not this format. A picture stays what
its row says, a path or the bytes themselves (images/embedded.py): a reader opens none. A file without `claims` is only
recognised where no other format claims anything, by trying to read it.

pairs/reading.py has what readers share: with it a format is a function from a row to a Pair or Seed. trl.py is a good
neighbour to begin from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from minipovid.common import shelf
from minipovid.common.data_files import Bad, short
from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import BadRow, Pair, Seed
from minipovid.pairs.reading import rows

Ability = Literal["read", "seeds"]
HEAD = 20  # rows that a format is recognised by
COLUMNS = 12  # that a sentence names


class PairReader(Protocol):
    """A module on this shelf that reads pairs: `data.format: povid` is povid.py."""

    def read(self, path: Path) -> Iterator[Pair | BadRow]:
        """Every row of the file, in order. Raises MinipovidError where the file as a whole is not this format."""


def formats(ability: Ability = "read") -> list[str]:
    """The formats on the shelf that can do this."""
    return [name for name in shelf.names("pairs.formats") if _own(shelf.load("pairs.formats", name), ability)]


def _own(module: Any, ability: str) -> Any:
    """The module's function of that name; one that it only imports is no ability of its format."""
    function = getattr(module, ability, None)
    return function if getattr(function, "__module__", None) == module.__name__ else None


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
        if isinstance(row, Pair):
            seed = Seed(row.id, row.image, row.prompt, row.chosen)
            yield seed._replace(source=row.source.get("chosen", seed.source))
        else:
            yield row


def detect(path: Path, ability: Ability = "read") -> str:
    """The format of a file or folder, by its first rows. Raises MinipovidError where none, or more than one, fits.

    Each format that can do this (or, for seeds, reads pairs) says how many of a row's columns are its own, and the one
    that knows most of them is it. Those that do not say are asked last, to read it.
    """
    able = dict.fromkeys([*formats(ability), *formats()] if ability == "seeds" else formats())
    modules = {name: shelf.load("pairs.formats", name) for name in able}
    head = _head(path)
    silent = {name: module for name, module in modules.items() if not hasattr(module, "claims")}
    scores = {name: sum(map(module.claims, head)) for name, module in modules.items() if name not in silent}
    if not any(scores.values()):
        scores = {name: _good(module, path) for name, module in silent.items()}
    best = [name for name, score in scores.items() if score == max(scores.values()) > 0]
    if len(best) == 1:
        return best[0]
    fits = f"the formats {' and '.join(best)} fit" if best else "no format fits"
    raise MinipovidError(f"{path}: {fits} {_described(path)}; name one of {', '.join(sorted(modules))}.")


def _head(path: Path) -> list[dict[str, Any]]:
    """The first rows, or as many of them as are objects."""
    try:
        return [row for _, row in islice(rows(path), HEAD) if isinstance(row, dict)]
    except MinipovidError:
        if path.is_dir():  # a folder without a table may still be a format's own
            return []
        raise


def _described(path: Path) -> str:
    """What the first row is, for the sentence that no format knows it."""
    try:
        number, row = next(rows(path), ("", None))
    except MinipovidError:
        return "a folder that holds no rows"
    if isinstance(row, dict):
        shown = [short(name) if len(name) > 60 else name for name in list(row)[:COLUMNS]]
        more = f" and {len(row) - COLUMNS:,} more" if len(row) > COLUMNS else ""
        return f"the columns {', '.join(shown)}{more}" if row else f"row {number}, an object without columns"
    if isinstance(row, Bad):
        return f"row {number} ({row})"
    return f"row {number}, which is {short(row)} and no object" if number else "a file that holds no rows"


def _good(module: Any, path: Path) -> int:
    """How many of the first rows a format can use that does not say which rows are its own."""
    act = _own(module, "read") or module.seeds
    try:
        return sum(not isinstance(row, BadRow) for row in islice(act(path), HEAD))
    except MinipovidError:
        return 0
