"""Figures in words and digits: what they are called, and how much of them is worth printing.

What is printed is ASCII, so that a terminal of any kind shows it; the page sets the true minus sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from minipovid.evaluate.benchmarks import Label
from minipovid.evaluate.statistics import Change, Interval


class Unit(NamedTuple):
    """How a figure is printed: times `scale`, with so many decimals, and a sign behind it."""

    scale: float
    decimals: int
    sign: str
    difference: str  # what a change of it is counted in

    def value(self, number: float) -> str:
        return "n/a" if math.isnan(number) else self._digits(number, "") + self.sign

    def plain(self, number: float) -> str:
        """Without the sign behind it."""
        return self.value(number).removesuffix(self.sign)

    def change(self, number: float) -> str:
        return "n/a" if math.isnan(number) else self._digits(number, "+")

    def _digits(self, number: float, plus: str) -> str:
        """What rounds to 0 has no sign."""
        text = f"{number * self.scale:{plus}.{self.decimals}f}"
        return text if text.strip("+-0.") else text.lstrip("+-")


PERCENT, WORDS, PLAIN = Unit(100, 1, " %", " points"), Unit(1, 1, "", ""), Unit(1, 2, "", "")


def unit_of(name: str, label: Label, intervals: Sequence[Interval]) -> Unit:
    """Shares are printed as percent; a score of 0 to 6, or words, as they are."""
    if last(name) == "words":
        return WORDS
    values = [number for interval in intervals for number in interval if not math.isnan(number)]
    return PERCENT if not label.is_score and all(0 <= number <= 1 for number in values) else PLAIN


def last(name: str) -> str:
    """adversarial/false_yes -> false_yes."""
    return name.rpartition("/")[2]


def called(name: str, label: Label) -> str:
    """adversarial/false_yes -> "false yes, adversarial"."""
    group, _, figure = name.rpartition("/")
    plain = label.name or figure.replace("_", " ")
    return f"{plain}, {group.replace('_', ' ')}" if group else plain


def spoken(name: str, label: Label) -> str:
    """adversarial/false_yes -> "false yes on adversarial questions"."""
    group, _, figure = name.rpartition("/")
    return f"{called(figure, label)} on {group.replace('_', ' ')} questions" if group else called(figure, label)


def span(unit: Unit, interval: Interval | Change) -> str:
    """The bounds alone: "36.1 to 44.0"."""
    if math.isnan(interval.low):
        return "n/a"
    if isinstance(interval, Change):
        return f"{unit.change(interval.low)} to {unit.change(interval.high)}"
    return f"{unit.plain(interval.low)} to {unit.plain(interval.high)}"


def chance(p: float) -> str:
    """p = 0.031, or p < 0.001."""
    if math.isnan(p):
        return "p n/a"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def size(n_bytes: float) -> str:
    """As model cards write it: 4.08 GB, 350 MB."""
    scale, name, decimals = next(
        (each for each in ((1e9, "GB", 2), (1e6, "MB", 1)) if n_bytes >= each[0]), (1e3, "kB", 0)
    )
    return f"{n_bytes / scale:.{decimals}f} {name}"
