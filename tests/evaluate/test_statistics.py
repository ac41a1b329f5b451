"""Intervals and paired tests: known answers, coverage over many samples, a slow twin, exact tails by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest

from minipovid.evaluate import statistics
from minipovid.evaluate.benchmarks import Counts
from minipovid.evaluate.statistics import intervals, mcnemar, paired


def share(totals: Counts) -> dict[str, float]:
    return {"share": totals.get("hits", 0.0) / totals["n"] if totals.get("n") else math.nan}


def units(hits: list[int], n: int = 1) -> dict[str, dict[str, float]]:
    return {str(i): {"hits": float(each), "n": float(n)} for i, each in enumerate(hits)}


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    """100 of 400: 0.25 +- 1.96 * sqrt(0.25 * 0.75 / 400) = 0.25 +- 0.0424."""
    found = intervals(units([1] * 100 + [0] * 300), share)["share"]
    assert found.value == 0.25
    assert (found.low, found.high) == pytest.approx((0.2076, 0.2924), abs=0.005)


def test_answers_about_one_picture_are_not_independent() -> None:
    """100 pictures with 10 equal answers each are as sure as 100 answers, not as 1,000."""
    one = intervals(units([1] * 50 + [0] * 50), share)["share"]
    ten = intervals(units([10] * 50 + [0] * 50, n=10), share)["share"]
    assert (ten.low, ten.high) == pytest.approx((one.low, one.high))
    independent = intervals(units([1] * 500 + [0] * 500), share)["share"]
    assert independent.high - independent.low < 0.4 * (ten.high - ten.low)


def test_the_same_answers_give_the_same_interval() -> None:
    some = units([index * index % 7 for index in range(101)], n=7)
    assert intervals(some, share) == intervals(some, share)
    assert intervals(some, share, seed=1) != intervals(some, share)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    """A ratio of two sums over clusters, 200 samples of 80 clusters: between 90 and 99 % must cover."""
    rng = random.Random(0)
    covered = 0
    for _ in range(200):
        sample = {}
        for unit in range(80):
            n = rng.randint(1, 8)
            rate = rng.choice([0.1, 0.5])  # 0.3 on average, and answers of a cluster go together
            sample[str(unit)] = {"hits": float(sum(rng.random() < rate for _ in range(n))), "n": float(n)}
        found = intervals(sample, share)["share"]
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 198


def test_against_a_slow_twin() -> None:
    """The same bootstrap, unit by unit with another generator: ends within a quarter of a standard error."""
    rng = random.Random(5)
    sample = {str(i): {"hits": float(rng.randint(0, 4)), "n": 4.0} for i in range(60)}
    rows = list(sample.values())
    drawn = []
    for _ in range(4000):
        picked = [rng.choice(rows) for _ in rows]
        drawn.append(sum(row["hits"] for row in picked) / sum(row["n"] for row in picked))
    drawn.sort()
    found = intervals(sample, share)["share"]
    error = float(np.std(drawn))
    assert abs(found.low - drawn[100]) < error / 4 and abs(found.high - drawn[3900]) < error / 4


def test_what_cannot_be_divided_is_nan_and_says_so() -> None:
    found = intervals({"a": {"x": 1.0}}, share)["share"]
    assert all(math.isnan(each) for each in found)
    alone = intervals(units([1]), share)["share"]  # one unit: whatever is drawn, it is that
    assert alone.value == 1.0 and math.isnan(alone.low) and math.isnan(alone.high)
    assert intervals({}, lambda totals: {"none": 0.0})["none"].value == 0.0


def test_a_figure_that_a_draw_lacks_is_left_out_of_it() -> None:
    """Of 3 units one holds a category; draws without it have no such figure."""
    some = {"a": {"x/n": 1.0}, "b": {"y/n": 1.0}, "c": {"y/n": 1.0}}

    def figures(totals: Counts) -> dict[str, float]:
        return {name: 1.0 for name in totals}

    assert intervals(some, figures)["x/n"] == (1.0, 1.0, 1.0)


def test_a_paired_change_is_surer_than_two_intervals() -> None:
    """Before 60 of 200, after 40, all of the 40 among the 60: the change is -0.1, and no draw has it at 0."""
    before, after = units([1] * 60 + [0] * 140), units([1] * 40 + [0] * 160)
    change = paired(before, after, share)["share"]
    assert change.value == pytest.approx(-0.1)
    assert -0.15 < change.low < change.high < -0.05 and change.p == pytest.approx(2 / 2001)
    one, other = intervals(before, share)["share"], intervals(after, share)["share"]
    assert other.high > one.low  # the two by themselves overlap


def test_no_change_has_no_small_p() -> None:
    """50 won, 50 lost: p is near 1. All the same: exactly 1."""
    before = units([1] * 50 + [0] * 50 + [1] * 100)
    after = units([0] * 50 + [1] * 50 + [1] * 100)
    assert paired(before, after, share)["share"].p > 0.8
    assert paired(before, before, share)["share"] == (0.0, 0.0, 0.0, 1.0)


def test_p_is_uniform_under_no_difference() -> None:
    """120 pairs of samples of one rate: about 5 % below 0.05."""
    rng = random.Random(2)
    small = 0
    for _ in range(120):
        one, two = ([int(rng.random() < 0.3) for _ in range(100)] for _ in range(2))
        small += paired(units(one), units(two), share)["share"].p < 0.05
    assert small <= 13  # the 99.5 % quantile of Binomial(120, 0.05)


def test_other_units_are_refused() -> None:
    with pytest.raises(ValueError, match="not asked about the same units"):
        paired(units([1]), units([1, 0]), share)


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 * 1 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (3, 3, 1.0),  # 2 * (1 + 6 + 15 + 20) / 64 is above 1
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_by_hand(won: int, lost: int, p: float) -> None:
    before = [False] * won + [True] * lost + [True, False] * 7
    after = [True] * won + [False] * lost + [True, False] * 7
    assert mcnemar(before, after) == pytest.approx(p)


def test_mcnemar_on_many_answers() -> None:
    """6,000 answers, 300 won and 400 lost: the normal approximation with continuity gives z = 99 / sqrt(700) = 3.74."""
    before = [False] * 300 + [True] * 400 + [True] * 5300
    after = [True] * 300 + [False] * 400 + [True] * 5300
    assert mcnemar(before, after) == pytest.approx(math.erfc(99 / math.sqrt(700) / math.sqrt(2)), rel=0.05)


def test_rounds_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Mapping[str, float]] = []

    def figures(totals: Counts) -> dict[str, float]:
        calls.append(totals)
        return share(totals)

    intervals(units([1, 0]), figures)
    assert len(calls) == statistics.ROUNDS + 1
