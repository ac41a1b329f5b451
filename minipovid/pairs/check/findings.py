"""What is wrong with rows: which kind of defect, where, why; all are counted, the first of each kind are named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

KEPT = 1_000  # rows that are named per kind of defect; all are counted
# What stops a training run, or teaches two contrary things; all other kinds are only worth knowing.
GRAVE = {
    *("unusable row", "missing or unreadable picture", "cannot be tokenised", "too long"),
    *("placeholder in the text", "special token in the text", "contradiction"),
}


class Finding(NamedTuple):
    """What is wrong with a row: which kind of defect, and one clause."""

    kind: str
    why: str


class Findings:
    """Every defect, counted; of each kind the first KEPT by row."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, list[tuple[str, str]]] = {}  # kind -> (row, why)

    def add(self, kind: str, place: str, why: str) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        first = self.first.setdefault(kind, [])
        if len(first) < KEPT:
            first.append((place, why))

    def take(self, place: str, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding.kind, place, finding.why)

    def sentences(self, grave: bool) -> Iterator[str]:
        for kind, count in self.counts.items():
            if (kind in GRAVE) is grave:
                place, why = self.first[kind][0]
                rows = "1 row" if count == 1 else f"{count:,} rows"
                yield f"{kind}: {rows}; the first is {place}: {why.rstrip('.')}."
