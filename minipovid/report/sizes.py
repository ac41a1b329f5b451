"""What quantisation costs: every backend of one run side by side, its file's size against its rates of hallucination.

Each is held against the most exact one that was asked, transformers if it was, else the largest file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from minipovid.common.errors import MinipovidError
from minipovid.evaluate.statistics import Change, Interval
from minipovid.report import numbers, svg, tables
from minipovid.report.runs import HF_BASE, ExamScores, Results, Scored


@dataclass(frozen=True)
class SizeCell:
    """A figure of one backend, and its change against the reference."""

    value: str
    span: str
    change: str  # "" for the reference
    change_span: str
    is_clear: bool


@dataclass(frozen=True)
class SizeRow:
    """One way to run the model."""

    name: str
    size: str  # of the language model's file; "" where there is none
    cells: Sequence[SizeCell | None]


@dataclass(frozen=True)
class Sizes:
    """The table of one benchmark, with a chart for each figure of which sizes are known."""

    label: str
    figures: Sequence[str]
    backends: Sequence[SizeRow]
    charts: Sequence[tuple[str, Markup]]
    agreement: str  # one sentence: do they agree?


def of(results: Results) -> list[Sizes]:
    """Of the last run; nothing where it was asked in one way alone."""
    sizes = []
    for exam in results.exams:
        own = [each for each in exam.scores if each.run == results.last and each.result.backend != HF_BASE]
        if len(own) > 1:
            sizes.append(_sizes(exam, sorted(own, key=lambda each: -(n_bytes(each) or math.inf))))
    return sizes


def n_bytes(scored: Scored) -> int | None:
    """Of the language model's GGUF, as it was when it answered: the first of its files."""
    by = scored.result.identity.get("answered_by") or {}
    files = by.get("files") if isinstance(by, dict) else None
    try:
        return int(files[0][1]) if files else None
    except (TypeError, ValueError, IndexError, KeyError):
        return None


def _sizes(exam: ExamScores, own: Sequence[Scored]) -> Sizes:
    figures = _figures(exam, own[0])
    changes = [_changes(own[0], other) for other in own]
    backends = [
        SizeRow(
            each.result.backend,
            numbers.size(size) if (size := n_bytes(each)) else "",
            [_cell(exam, figure, each, change.get(figure)) for figure in figures],
        )
        for each, change in zip(own, changes, strict=True)
    ]
    rates = [figure for figure in figures if own[0].result.is_lower_better(figure)] or figures[:1]
    charts = [chart for figure in rates[:2] if (chart := _chart(exam, figure, own))]
    names = {figure: numbers.called(figure, exam.label_of(figure)) for figure in figures}
    return Sizes(exam.label, list(names.values()), backends, charts, _agreement(own, names, changes))


def _figures(exam: ExamScores, scored: Scored) -> list[str]:
    """Rates of hallucination first; of several kinds of questions the hardest alone."""
    rates = [name for name in exam.figures if scored.result.is_lower_better(name)]
    hardest = [name for name in rates if name.startswith("adversarial/")] or rates
    others = [
        name
        for name in ("adversarial/accuracy", "mean_f1", "accuracy", "recall", "cover", "words")
        if name in exam.figures
    ]
    return [*hardest, *others][:4]


def _changes(reference: Scored, other: Scored) -> dict[str, Change]:
    if reference is other:
        return {}
    try:
        return reference.result.changes(other.result)
    except MinipovidError:
        return {}


def _cell(exam: ExamScores, figure: str, scored: Scored, change: Change | None) -> SizeCell | None:
    interval = scored.result.figures.get(figure)
    if interval is None:
        return None
    unit = tables.unit(exam, figure)
    texts = (unit.change(change.value), numbers.span(unit, change)) if change else ("", "")
    return SizeCell(
        unit.value(interval.value), numbers.span(unit, interval), *texts, bool(change and tables.is_clear(change))
    )


def _chart(exam: ExamScores, figure: str, own: Sequence[Scored]) -> tuple[str, Markup] | None:
    unit = tables.unit(exam, figure)
    points = [
        svg.Point(
            each.result.backend.removeprefix("gguf-"), size / 1e6, *_scaled(each.result.figures[figure], unit.scale), 1
        )
        for each in own
        if (size := n_bytes(each)) and figure in each.result.figures and not math.isnan(each.result.figures[figure].low)
    ]
    if len(points) < 2:
        return None
    title = numbers.called(figure, exam.label_of(figure))
    before = exam.main.against.result.figures.get(figure) if exam.main and exam.main.against else None
    level = (
        None
        if before is None or math.isnan(before.value)
        else (f"before: {unit.value(before.value)}", before.value * unit.scale)
    )
    return title, svg.whiskers(title, points, unit.sign, "MB", level)


def _scaled(interval: Interval, scale: float) -> tuple[float, float, float]:
    return interval.value * scale, interval.low * scale, interval.high * scale


def _agreement(own: Sequence[Scored], called: Mapping[str, str], changes: Sequence[dict[str, Change]]) -> str:
    """Whether any interval of a change leaves only one direction."""
    names = [
        f"{each.result.backend} ({name})"
        for each, change in zip(own, changes, strict=True)
        for figure, name in called.items()
        if figure in change and tables.is_clear(change[figure])
    ]
    reference = own[0].result.backend
    if not any(changes):
        return f"None of them can be compared with {reference}: they were asked otherwise."
    if names:
        return f"Beyond chance, against {reference}: {', '.join(names)}."
    return f"No difference to {reference} is beyond chance: every interval of a change includes 0."
