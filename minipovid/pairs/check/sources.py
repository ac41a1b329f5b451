"""Who made the answers, and where rows mark what is wrong, of which kind it is."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from minipovid.pairs.pair import Pair

SHOWN = 20  # makers; a data set that names one per row has no fewer


class SourceCounts(NamedTuple):
    """Counts of pairs."""

    sources: dict[str, int]  # "ground truth / rule v1": who wrote the chosen and the rejected half
    others: int  # of makers that are not shown
    marked: int  # pairs with spans
    kinds: dict[str, int]  # pairs that have a span of the kind


class Sources:
    def __init__(self) -> None:
        self.sources: Counter[tuple[str, str]] = Counter()
        self.kinds: Counter[str] = Counter()
        self.marked = 0

    def see(self, pair: Pair) -> None:
        self.sources[pair.source.get("chosen", "unknown"), pair.source.get("rejected", "unknown")] += 1
        self.marked += bool(pair.spans)
        self.kinds.update({span.kind for span in pair.spans})

    def summary(self) -> SourceCounts:
        sources = {" / ".join(names): count for names, count in self.sources.most_common(SHOWN)}
        others = self.sources.total() - sum(sources.values())
        return SourceCounts(sources, others, self.marked, dict(self.kinds.most_common(SHOWN)))
