"""How much of the words the rejected answers change, and what kind of words where no span says it."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from minipovid.pairs import lexicon
from minipovid.pairs.injection import words
from minipovid.pairs.pair import Pair

LITTLE = 0.6  # of the words changed on average: such answers are two texts, not one with errors in it
LONGEST = 400  # words of an answer that are compared; difflib needs time by the square of what differs


class Wording(NamedTuple):
    """Over a sample of the pairs."""

    pairs: int
    changed: float  # mean share of the words, of both answers together, that the other one has not at that place
    low: float  # what 5 % of the pairs are below
    high: float  # what 5 % are above
    kinds: dict[str, int]  # of the pairs without spans, how many change a word that the lists know as one of the kind
    unspanned: int  # pairs without spans

    def warning(self) -> str | None:
        if self.changed <= LITTLE:
            return None
        return (
            f"the two answers share few words ({self.changed:.0%} differ, on average): which words are the errors, no "
            "loss can tell; answers rewritten with few changes teach more per pair."
        )


def wording(pairs: Sequence[Pair]) -> Wording:
    shares, kinds, unspanned = [], Counter[str](), 0
    for pair in pairs:
        chosen, rejected = (words(text)[:LONGEST] for text in pair.texts().values())
        share, new = _compared(chosen, rejected)
        shares.append(share)
        if not pair.spans:
            unspanned += 1
            kinds.update(_kinds(rejected, new))
    mean, low, high = (np.mean(shares), *np.percentile(shares, [5, 95])) if shares else (0.0, 0.0, 0.0)
    return Wording(len(pairs), float(mean), float(low), float(high), dict(kinds.most_common()), unspanned)


def _compared(chosen: list[str], rejected: list[str]) -> tuple[float, set[int]]:
    """(share of both sides' words without a partner, which of `rejected` have none)."""
    matcher = SequenceMatcher(None, chosen, rejected, autojunk=False)
    codes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    lone = sum(end - start + stop - first for _, start, end, first, stop in codes)
    new = {place for _, _, _, first, stop in codes for place in range(first, stop)}
    return lone / max(len(chosen) + len(rejected), 1), new


def _kinds(words: Sequence[str], new: set[int]) -> set[str]:
    """What the word lists say of the new words, or of a phrase that holds one ("left" in "on the left of")."""
    starts = [0, *accumulate(len(word) + 1 for word in words)]
    kinds = set[str]()
    for match in lexicon.swap_pattern().finditer(" ".join(words)):
        first, last = bisect_right(starts, match.start()) - 1, bisect_right(starts, match.end() - 1) - 1
        if not new.isdisjoint(range(first, last + 1)):
            kinds.add(lexicon.swaps()[match.group().lower()].kind)
    if any(words[place] in _names() for place in new):
        kinds.add("object")
    if any(words[place].isdigit() for place in new):
        kinds.add("attribute")
    return kinds


@cache
def _names() -> frozenset[str]:
    return frozenset(lexicon.things().names)
