"""How sure is a score, and is one model really better than another?

    intervals(units, figures)            # every figure with its 95 % interval
    paired(before, after, figures)       # every figure's change, its interval, and how likely chance alone gives it
    mcnemar(right_before, right_after)   # the exact test on answers that are right or wrong

Units (a picture with all its questions) are drawn again with replacement, ROUNDS times, and the figures computed anew
from the sums of what was drawn: the percentile bootstrap (Efron 1979) over clusters, since answers about one picture
are not independent. A figure that is 0 for every unit has the interval 0 to 0, which says nothing about rare events.
In a paired comparison both models get the same draw. The draws are seeded: the same answers give
the same intervals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minipovid.common.arrays import Doubles
from minipovid.evaluate.benchmarks import Counts

ROUNDS = 2000
CONFIDENCE = 0.95
_AT_ONCE = 100  # rounds whose draws are held in memory together

Figures = Callable[[Counts], Mapping[str, float]]


class Interval(NamedTuple):
    """A figure and its 95 % interval; nan where it cannot be computed (nothing to divide by, one unit)."""

    value: float
    low: float
    high: float


class Change(NamedTuple):
    """after - before; `p` is two-sided: how often chance alone would give a change as large."""

    value: float
    low: float
    high: float
    p: float


def intervals(units: Mapping[str, Counts], figures: Figures, seed: int = 0) -> dict[str, Interval]:
    """The figures of the sums over all units, with intervals."""
    names, matrix = _matrix(units, None)
    values = figures(_named(names, matrix.sum(0)))
    drawn = [figures(_named(names, sums)) for sums in _draws(len(units), matrix, seed)]
    return {
        name: Interval(value, *_middle([each.get(name, math.nan) for each in drawn])) for name, value in values.items()
    }


def paired(
    before: Mapping[str, Counts], after: Mapping[str, Counts], figures: Figures, seed: int = 0
) -> dict[str, Change]:
    """The change of every figure that both have. Raises ValueError where the units are not the same."""
    if before.keys() != after.keys():
        raise ValueError("the two were not asked about the same units")
    columns = sorted({name for units in (before, after) for counts in units.values() for name in counts})
    (names, one), (_, two) = _matrix(before, columns), _matrix({key: after[key] for key in before}, columns)
    both, half = np.concatenate([one, two], 1), len(names)

    def change(sums: Doubles) -> dict[str, float]:
        old, new = figures(_named(names, sums[:half])), figures(_named(names, sums[half:]))
        return {name: value - old[name] for name, value in new.items() if name in old}

    values = change(both.sum(0))
    drawn = [change(sums) for sums in _draws(len(before), both, seed)]
    changes = {}
    for name, value in values.items():
        column = [each.get(name, math.nan) for each in drawn]
        changes[name] = Change(value, *_middle(column), _p(column))
    return changes


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """The exact two-sided p of McNemar's test (1947): are as many answers lost as won?"""
    won = sum(new and not old for old, new in zip(before, after, strict=True))
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    n, least = won + lost, min(won, lost)
    log_ways = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1)]
    return min(1.0, 2 * sum(math.exp(ways - n * math.log(2)) for ways in log_ways))


def _matrix(units: Mapping[str, Counts], columns: Sequence[str] | None) -> tuple[list[str], Doubles]:
    """The counts' names, and the counts [units, names]."""
    names = list(columns) if columns is not None else sorted({name for counts in units.values() for name in counts})
    table = [[counts.get(name, 0.0) for name in names] for counts in units.values()]
    return names, np.array(table, np.float64).reshape(len(table), len(names))


def _draws(units: int, matrix: Doubles, seed: int) -> Iterator[Doubles]:
    """The sums [names] of ROUNDS draws of as many units."""
    rng = np.random.default_rng(seed)
    for start in range(0, ROUNDS if units > 1 else 0, _AT_ONCE):
        times = rng.multinomial(units, np.full(units, 1 / units), size=min(_AT_ONCE, ROUNDS - start))
        yield from times @ matrix


def _named(names: Sequence[str], sums: Doubles) -> dict[str, float]:
    """Counts that nothing was added to are left out, as when answers are summed one by one."""
    return {name: value for name, value in zip(names, sums.tolist(), strict=True) if value}


def _middle(drawn: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of what was drawn, without draws that had nothing to divide by."""
    known = [value for value in drawn if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _p(drawn: Sequence[float]) -> float:
    """Two-sided, from how often the drawn change has either sign; never 0, for there were only so many draws."""
    known = [value for value in drawn if not math.isnan(value)]
    if not known:
        return math.nan
    below, above = (sum(value <= 0 for value in known), sum(value >= 0 for value in known))
    return min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1))
