"""A table beside a folder of pictures: what a spreadsheet saves as CSV (between cells ",", ";" or a tab).

    image,prompt,chosen,rejected
    17.png,What is this?,A cat.,"A dog, sleeping."

Names may begin with a capital. An `id` column may stand among them, others are left alone. With `answer` instead of
the two answers it holds seeds, of which `minipovid pairs make` makes pairs. Rows are numbered as the spreadsheet shows
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Cells, text
from minipovid.images import embedded
from minipovid.pairs.conversations import answer, question
from minipovid.pairs.pair import BadRow, Pair, Seed
from minipovid.pairs.reading import identity, known, pairs_of, rows

SOURCE = {"chosen": "table", "rejected": "table"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def seeds(path: Path) -> Iterator[Seed | BadRow]:
    yield from pairs_of(rows(path), _seed, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    """A table is nobody else's, so one more than any other format could say of its row."""
    named = _named(row)
    columns = known(named, ("image", "prompt", "chosen", "rejected")) or known(named, ("image", "prompt", "answer"))
    return len(row) + 1 if columns and isinstance(row, Cells) else 0


def _named(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**{name.lower(): cell for name, cell in row.items()}, **row}


def _pair(cells: dict[str, Any]) -> Pair:
    row = _named(cells)
    chosen, rejected = (answer(text(row, side), side) for side in ("chosen", "rejected"))
    return Pair(identity(row), embedded.of(row, "image"), _prompt(row), chosen, rejected, SOURCE)


def _seed(cells: dict[str, Any]) -> Seed:
    row = _named(cells)
    return Seed(identity(row), embedded.of(row, "image"), _prompt(row), answer(text(row, "answer"), "answer"))


def _prompt(row: dict[str, Any]) -> str:
    return question(text(row, "prompt"), "prompt")
