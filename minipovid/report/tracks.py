"""Figures as dots with whiskers on a track, drawn by the page's own boxes so that they fit any width.

All tracks of a group share one scale, which begins at 0. Positions are percent of the track.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minipovid.report import numbers, tables, verdict
from minipovid.report.numbers import PERCENT, Unit
from minipovid.report.runs import ExamScores, Results, Scored
from minipovid.report.svg import Scale, label

_Figure = tuple[ExamScores, str]  # a benchmark, and what it calls one of its figures


@dataclass(frozen=True)
class TrackMark:
    """One result's dot."""

    name: str
    value: str
    span: str
    at: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class Track:
    """A figure."""

    title: str
    meaning: str
    exam: str
    marks: Sequence[TrackMark]


@dataclass(frozen=True)
class Group:
    """Tracks on one scale; ticks are (percent of the track, text)."""

    title: str
    hint: str
    ticks: Sequence[tuple[float, str]]
    rows: Sequence[Track]


def colours(results: Results) -> dict[Scored, int]:
    """The first colour is that of what others are held against."""
    numbered = {run: number for number, run in enumerate(results.runs)}
    shift = 1 if len(results.runs) == 1 else 0
    return {
        scored: 0 if scored.is_before else 1 + (numbered[scored.run] + shift - 1) % 3
        for exam in results.exams
        for scored in exam.scores
    }


def groups(results: Results) -> list[Group]:
    """The verdict's figures, before and after: rates of hallucination, what should stay high, and what is no share."""
    rates, shares, others = list[_Figure](), list[_Figure](), list[_Figure]()
    for exam in results.exams:
        for figure in verdict.shown(exam, exam.main) if exam.main else ():
            is_share = tables.unit(exam, figure) is PERCENT
            is_rate = exam.main is not None and exam.main.result.is_lower_better(figure)
            (others if not is_share else rates if is_rate else shares).append((exam, figure))
    is_coverage = all(exam.main.result.is_coverage(figure) for exam, figure in shares if exam.main)
    titles = (
        ("Hallucination", "lower is better", rates),
        ("Coverage" if is_coverage else "Accuracy and coverage", "higher is better", shares),
        ("Length", "shorter answers can hide what a rate does not show", others),
    )
    return [_group(title, hint, cases, colours(results)) for title, hint, cases in titles if cases]


def _group(title: str, hint: str, cases: Sequence[_Figure], colour: dict[Scored, int]) -> Group:
    mains = {case: case[0].main for case in cases}
    pairs = {case: [each for each in (main and main.against, main) if each] for case, main in mains.items()}
    highs = [each.result.figures[figure].high for (_, figure), both in pairs.items() for each in both]
    unit = tables.unit(*cases[0])
    finite = [high * unit.scale for high in highs if not math.isnan(high)]
    scale = Scale.round([0, *(finite or [1])], 0, 100)
    rows = [
        Track(
            numbers.called(figure, exam.label_of(figure)),
            exam.label_of(figure).meaning,
            exam.label,
            list(_marks(exam, figure, pairs[exam, figure], scale, colour)),
        )
        for exam, figure in cases
    ]
    return Group(title, hint, [(scale(tick), label(tick) + unit.sign.strip()) for tick in scale.ticks()], rows)


def _marks(
    exam: ExamScores, figure: str, scores: Sequence[Scored], scale: Scale, colour: dict[Scored, int]
) -> Iterator[TrackMark]:
    unit: Unit = tables.unit(exam, figure)
    for scored in scores:
        interval = scored.result.figures.get(figure)
        if interval is not None and not math.isnan(interval.value):
            low, high = (interval.value if math.isnan(bound) else bound for bound in interval[1:])
            at, start, end = (scale(number * unit.scale) for number in (interval.value, low, high))
            text, span = unit.value(interval.value), numbers.span(unit, interval)
            yield TrackMark(scored.name, text, span, at, start, end, colour[scored])


def small(exam: ExamScores, figure: str, colour: dict[Scored, int]) -> list[TrackMark]:
    """All results of a share on a track from 0 to 100 %; nothing for what is no share."""
    if tables.unit(exam, figure) is not PERCENT:
        return []
    scores = [each for each in exam.scores if figure in each.result.figures]
    return list(_marks(exam, figure, scores, Scale.exact([0, 100], 0, 100), colour))
