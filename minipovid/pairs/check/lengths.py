"""Is one side longer? A length that tells the sides apart is learnt before anything about pictures is."""

from __future__ import annotations

from typing import NamedTuple

from minipovid.pairs.pair import Pair

TELL = 0.75  # of the pairs; from here on a rule that looks at no picture orders too many of them rightly
GAP = 0.25  # of the shorter side's mean
ENOUGH = 50  # pairs; of fewer, shares say little


class LengthGap(NamedTuple):
    """Characters of the two sides."""

    pairs: int
    chosen: float  # mean characters
    rejected: float
    rejected_longer: float  # share of the pairs
    equal: float  # share of the pairs

    @property
    def by_length(self) -> float:
        """The share that `the longer one is the better one` (or its contrary) orders rightly; a tie counts half."""
        longer = self.rejected_longer + self.equal / 2
        return max(longer, 1 - longer)

    @property
    def gap(self) -> float:
        """How much longer the rejected answers are on average: 0.1 is a tenth, -0.1 says the chosen ones are."""
        low = min(self.chosen, self.rejected)
        return (self.rejected - self.chosen) / low if low else 0.0

    def warning(self) -> str | None:
        if self.pairs < ENOUGH or (self.by_length < TELL and abs(self.gap) < GAP):
            return None
        longer = "rejected" if self.gap > 0 else "chosen"
        return (
            f"length tells the sides apart: the {longer} answers are {abs(self.gap):.0%} longer on average, and length "
            f"alone orders {self.by_length:.0%} of the pairs (warned from {TELL:.0%} or a gap of {GAP:.0%}); training "
            "may teach length and nothing else."
        )


class Lengths:
    """Running sums."""

    def __init__(self) -> None:
        self.pairs = self.chosen = self.rejected = self.longer = self.equal = 0

    def see(self, pair: Pair) -> None:
        chosen, rejected = len(pair.chosen), len(pair.rejected)
        self.pairs += 1
        self.chosen += chosen
        self.rejected += rejected
        self.longer += rejected > chosen
        self.equal += rejected == chosen

    def summary(self) -> LengthGap:
        sums = (self.chosen, self.rejected, self.longer, self.equal)
        return LengthGap(self.pairs, *(each / max(self.pairs, 1) for each in sums))
