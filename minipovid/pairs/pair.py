"""The nouns of this room: a preference about a picture, a seed of which one is made, and a row that is neither."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

ANSWERS = ("chosen", "rejected")


class Span(NamedTuple):
    """Characters [start, end) of the rejected answer that were made wrong, and how: a POVID error family."""

    start: int
    end: int
    kind: str  # "object" | "relation" | "attribute"


@dataclass(frozen=True)
class Pair:
    """One preference: for this picture and prompt, `chosen` is better than `rejected`.

    `image` is relative to the image root. `source` says who made each half, for example
    {"chosen": "ground truth", "rejected": "rule"}.
    """

    id: str
    image: str
    prompt: str
    chosen: str
    rejected: str
    source: Mapping[str, str] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()

    def texts(self) -> Mapping[str, str]:
        """Its answers by name."""
        return {"chosen": self.chosen, "rejected": self.rejected}


class BadRow(NamedTuple):
    """A row that is no Pair: where it stands and one sentence that says why and what to do."""

    where: str  # "row 12" or "row 12 (id 000000393212)"
    why: str


class Unpaired(BadRow):
    """A sound row out of which the format's own rule makes no pair; it stops no run."""

    __slots__ = ()


class Seed(NamedTuple):
    """A picture, what is asked of it and a good answer: what a maker makes a Pair of.

    No Pair without its rejected half: every consumer of pairs counts on two answers that differ.
    """

    id: str
    image: str
    prompt: str
    answer: str
    source: str = "ground truth"  # who gave the answer
