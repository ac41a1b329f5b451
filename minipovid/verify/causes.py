"""Why a file answers otherwise than the trained model: one fault, computed and not guessed, as one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Cause(NamedTuple):
    fault: str  # in two or three words, for the table
    file: str  # where it lies
    sentence: str  # which file, what is wrong with it, what it should be
    is_cost: bool = False  # what rounding costs: a fault only where the answers are beyond tolerance

    @classmethod
    def of(cls, file: str, fault: str, what: str, is_cost: bool = False) -> Cause:
        return cls(fault, file, f"{file}: {fault}: {what}.", is_cost)


def distinct(causes: Iterable[Cause]) -> list[Cause]:
    """Each fault of each file once, the first sentence about it: rooms that look at different things agree."""
    first: dict[tuple[str, str], Cause] = {}
    for cause in causes:
        first.setdefault((cause.fault, cause.file), cause)
    return list(first.values())


def listed(things: Iterable[object], most: int = 4) -> str:
    """ "1, 2 and 3"; "1, 2, 3, 4 and 12 more"."""
    texts = [str(thing) for thing in things]
    if len(texts) > most:
        texts = [*texts[:most], f"{len(texts) - most} more"]
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1] if texts else ""]))
