"""One input, what minipovid makes of it, and what it means; and the dice that spell and damage texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from random import Random
from typing import Any

REFUSED = "must be refused"
WORDS = [
    "a cat",
    "two boats",
    "naïve",
    "日本の港",
    "🙂",
    "it's",
    'a "red" door',
    "x, y; z",
    "1.5",
    "Größe",
    "no",
    "=2+2",
]


def unlike(got: Any, want: Any) -> str:
    """Why the two are not the same; "" where they are."""
    return "" if got == want else "another meaning"


@dataclass
class Case:
    """`act` is minipovid's reading, which may raise; `want` the oracle's, or REFUSED."""

    made: str  # how the input was made, as findings are counted: "trl as csv, cut"
    shown: Any  # the input
    act: Callable[[], Any]
    want: Callable[[], Any]
    may_refuse: bool  # damaged, or spelled as no document promises
    differs: Callable[[Any, Any], str] = unlike


def shortened(value: object, length: int = 400) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= length else f"{text[: length * 2 // 3]} ... {text[-length // 3 :]}"


def words(dice: Random, most: int = 4) -> str:
    """A text without white space at its ends."""
    return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))


def parquet(rows: list[dict[str, Any]]) -> tuple[bytes, bool]:
    """(the file, whether a column had to become text, as pandas makes one of several types)."""
    import pyarrow
    import pyarrow.parquet

    def column(key: str) -> Any:
        cells = [row.get(key) for row in rows]
        try:
            pyarrow.parquet.write_table(pyarrow.table({key: cells}), BytesIO())
        except (pyarrow.ArrowException, OverflowError, UnicodeError, ValueError):
            changed.append(key)
            texts = [cell if isinstance(cell, (str, type(None))) else json.dumps(cell, default=repr) for cell in cells]
            return [text and text.encode("utf-8", "replace").decode() for text in texts]
        return cells

    changed: list[str] = []
    keys = dict.fromkeys(key for row in rows for key in row)
    file = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({key: column(key) for key in keys}), file)
    return file.getvalue(), bool(changed)


def harmed(dice: Random, data: bytes) -> tuple[str, bytes]:
    """(how, the bytes cut short, changed, or with something between them)."""
    how = dice.choice(["cut", "flipped", "inserted", "removed", "doubled"])
    at = dice.randrange(len(data)) if data else 0
    if how == "cut":
        return how, data[:at]
    if how == "flipped":
        return how, data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :] if data else b"\xff"
    if how == "inserted":
        junk = dice.choice(
            [b"\0", b"\xff", b"\xed\xa0\x80", b"\\", b'"', b"}", b"]", b"\x1a", b"\r", b",", b"\xe2\x80\xa8"]
        )
        return how, data[:at] + junk + data[at:]
    end = min(len(data), at + dice.randint(1, 20))
    return how, data[:at] + data[end:] if how == "removed" else data[:end] + data[at:]
