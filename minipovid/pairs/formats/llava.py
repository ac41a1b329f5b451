"""LLaVA's instruction data (LLaVA-Instruct-150K and all that is made like it): good answers, seeds of pairs.

    [{"id": "000000033471", "image": "000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A bus."}, ...]}, ...]

A conversation gives one seed, its first exchange: later questions lean on the answers before them ("and its colour?").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.images import embedded
from minipovid.pairs.conversations import exchange, turns_of
from minipovid.pairs.pair import BadRow, Seed
from minipovid.pairs.reading import identity, known, pairs_of, rows


def seeds(path: Path) -> Iterator[Seed | BadRow]:
    yield from pairs_of(rows(path), _seed, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("image", "conversations"), ("id",))


def _seed(row: dict[str, Any]) -> Seed:
    image = embedded.of(row, "image")
    turns = [turn for turn in turns_of(row, "conversations") if turn.role != "system" or turn.text.strip()]
    prompt, answer = exchange(turns[:2], "conversations")
    return Seed(identity(row), image, prompt, answer)
