"""HOW A PAIR IS MADE: one file per format or maker, named as in the recipe's `data.format`.

Here: what every reader asks of a row. A reader turns a row into a Pair or raises Bad; `checked` does the bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from minipovid.types import BadRow, Pair


class Bad(ValueError):
    """Why a row is no Pair, in one sentence; `checked` makes it a BadRow."""


def checked(rows: Iterable[tuple[int, Any]], pair_of: Callable[[dict[str, Any]], Pair]) -> Iterator[Pair | BadRow]:
    """Each (number, row) as a Pair or, with the sentence why not, as a BadRow. A row may be a Bad already.

    An id may come once: what is kept of a row (cached scores, noise) is kept under its id.
    """
    seen: set[str] = set()
    for number, row in rows:
        name = row.get("id") if isinstance(row, dict) else None
        where = f"row {number} (id {name})" if isinstance(name, (str, int)) else f"row {number}"
        try:
            yield _unique(_pair(row, pair_of), seen)
        except Bad as bad:
            yield BadRow(where, str(bad))


def _pair(row: Any, pair_of: Callable[[dict[str, Any]], Pair]) -> Pair:
    if isinstance(row, Bad):
        raise row
    if not isinstance(row, dict):
        raise Bad(f"the row is {short(row)}, not an object in braces")
    pair = pair_of(row)
    if not pair.prompt.strip():
        raise Bad("the question is empty")
    for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if not answer.strip():
            raise Bad(f"the {side} answer is empty")
    if pair.chosen.strip() == pair.rejected.strip():
        raise Bad("the chosen and the rejected answer are equal, so there is nothing to prefer")
    return pair


def _unique(pair: Pair, seen: set[str]) -> Pair:
    if pair.id in seen:
        raise Bad(f"the id {pair.id!r} stands in an earlier row; give every row an id of its own")
    seen.add(pair.id)
    return pair


def text(row: dict[str, Any], key: str) -> str:
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
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
