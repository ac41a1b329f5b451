"""Figures in words and digits: what they are called, and how much of them is worth printing.

What is printed is ASCII, so that a terminal of any kind shows it; the page sets the true minus sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from minipovid.evaluate.statistics import Change, Interval

# What the benchmarks call their figures, and what a reader may call them. A figure without an entry keeps its name.
_NAMES = {
    "false_yes": "false yes",
    "yes_ratio": "share of yes",
    "f1": "F1",
    "mean_f1": "mean F1",
    "chair_s": "CHAIR_s",
    "chair_i": "CHAIR_i",
    "chair_s_refine": "CHAIR_s, refined",
    "chair": "CHAIR",
    "cover": "coverage",
    "obj_rec": "object recall",
    "hal": "answers with a hallucination",
    "cog": "cognition (imagined objects)",
    "amber": "AMBER score",
    "a_acc": "accuracy per answer",
    "q_acc": "accuracy per question",
    "f_acc": "accuracy per figure",
    "words": "words per answer",
    "hallucination_rate": "hallucination rate",
    "img_accuracy": "accuracy, questions with a picture",
}
_MEANINGS = {
    "false_yes": "questions about something absent that were answered yes",
    "chair_s": "descriptions that name something absent",
    "chair_i": "named things that are absent",
    "recall": "of what is there, the share that is found",
    "cover": "of what is there, the share that is named",
    "obj_rec": "of what is there, the share that is named",
    "words": "who says less gets less wrong: read it beside every rate",
}
_SCORES = ("words", "len", "score", "rating")  # no shares, whatever their size


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


def unit_of(name: str, intervals: Sequence[Interval]) -> Unit:
    """Shares are printed as percent; a score of 0 to 6, or words, as they are."""
    if last(name) in _SCORES:
        return WORDS if last(name) == "words" else PLAIN
    values = [number for interval in intervals for number in interval if not math.isnan(number)]
    return PERCENT if all(0 <= number <= 1 for number in values) else PLAIN


def last(name: str) -> str:
    """adversarial/false_yes -> false_yes."""
    return name.rpartition("/")[2]


def called(name: str) -> str:
    """adversarial/false_yes -> "false yes, adversarial"."""
    group, _, figure = name.rpartition("/")
    plain = _NAMES.get(figure, figure.replace("_", " "))
    return f"{plain}, {group.replace('_', ' ')}" if group else plain


def spoken(name: str) -> str:
    """adversarial/false_yes -> "false yes on adversarial questions"."""
    group, _, figure = name.rpartition("/")
    return f"{called(figure)} on {group.replace('_', ' ')} questions" if group else called(figure)


def meaning(name: str) -> str:
    """One clause that says what the figure counts; empty where the name says it."""
    return _MEANINGS.get(last(name), "")


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
