"""Figures as dots with whiskers on a track, drawn by the page's own boxes so that they fit any width.

All tracks of a group share one scale, which begins at 0. Positions are percent of the track.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minipovid.report import numbers, tables, verdict
from minipovid.report.numbers import PERCENT, Unit
from minipovid.report.runs import Exam, Results, Scored
from minipovid.report.svg import Scale, label


@dataclass(frozen=True)
class Mark:
    """One sitting's dot."""

    name: str
    value: str
    span: str
    at: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class Row:
    """A figure."""

    title: str
    told: str
    exam: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Group:
    """Tracks on one scale; ticks are (percent of the track, text)."""

    title: str
    told: str
    ticks: Sequence[tuple[float, str]]
    rows: Sequence[Row]


def colours(book: Results) -> dict[Scored, int]:
    """The first colour is that of what others are held against."""
    numbered = {run: number for number, run in enumerate(book.runs)}
    shift = 1 if len(book.runs) == 1 else 0
    return {
        sitting: 0 if sitting.is_before else 1 + (numbered[sitting.run] + shift - 1) % 3
        for exam in book.exams
        for sitting in exam.sittings
    }


def groups(book: Results) -> list[Group]:
    """The verdict's figures, before and after: rates of hallucination, what should stay high, and what is no share."""
    rates, shares, others = list[tuple[Exam, str]](), list[tuple[Exam, str]](), list[tuple[Exam, str]]()
    for exam in book.exams:
        for figure in verdict.shown(exam, exam.main) if exam.main else ():
            is_share = tables.unit(exam, figure) is PERCENT
            is_rate = exam.main is not None and exam.main.result.is_lower_better(figure)
            (others if not is_share else rates if is_rate else shares).append((exam, figure))
    is_coverage = all(exam.main.result.is_coverage(figure) for exam, figure in shares if exam.main)
    told = (
        ("Hallucination", "lower is better", rates),
        ("Coverage" if is_coverage else "Accuracy and coverage", "higher is better", shares),
        ("Length", "shorter answers can hide what a rate does not show", others),
    )
    return [_group(title, hint, cases, colours(book)) for title, hint, cases in told if cases]


def _group(title: str, told: str, cases: Sequence[tuple[Exam, str]], colour: dict[Scored, int]) -> Group:
    pairs = {case: _both(case[0].main) for case in cases}
    highs = [each.result.figures[figure].high for (_, figure), both in pairs.items() for each in both]
    unit = tables.unit(*cases[0])
    finite = [high * unit.scale for high in highs if not math.isnan(high)]
    scale = Scale.round([0, *(finite or [1])], 0, 100)
    rows = [
        Row(
            numbers.called(figure, exam.label_of(figure)),
            exam.label_of(figure).meaning,
            exam.label,
            list(_marks(exam, figure, pairs[exam, figure], scale, colour)),
        )
        for exam, figure in cases
    ]
    return Group(title, told, [(scale(tick), label(tick) + unit.sign.strip()) for tick in scale.ticks()], rows)


def _both(main: Scored | None) -> list[Scored]:
    return [each for each in (main and main.against, main) if each]


def _marks(
    exam: Exam, figure: str, sittings: Sequence[Scored], scale: Scale, colour: dict[Scored, int]
) -> Iterator[Mark]:
    unit: Unit = tables.unit(exam, figure)
    for sitting in sittings:
        interval = sitting.result.figures.get(figure)
        if interval is not None and not math.isnan(interval.value):
            low, high = (interval.value if math.isnan(bound) else bound for bound in interval[1:])
            at, start, end = (scale(number * unit.scale) for number in (interval.value, low, high))
            text, span = unit.value(interval.value), numbers.span(unit, interval)
            yield Mark(sitting.name, text, span, at, start, end, colour[sitting])


def small(exam: Exam, figure: str, colour: dict[Scored, int]) -> list[Mark]:
    """All sittings of a share on a track from 0 to 100 %; nothing for what is no share."""
    if tables.unit(exam, figure) is not PERCENT:
        return []
    sittings = [each for each in exam.sittings if figure in each.result.figures]
    return list(_marks(exam, figure, sittings, Scale.exact([0, 100], 0, 100), colour))
