"""The result table: one row for each figure of each sitting, as cells for the terminal, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minipovid.evaluate.statistics import Change
from minipovid.report import numbers
from minipovid.report.numbers import Unit
from minipovid.report.runs import Exam, Results, Scored


def unit(exam: Exam, figure: str) -> Unit:
    return numbers.unit_of(figure, exam.label_of(figure), [each.result.figures[figure] for each in _with(exam, figure)])


def _with(exam: Exam, figure: str) -> list[Scored]:
    return [each for each in exam.sittings if figure in each.result.figures]


def rows(book: Results) -> list[dict[str, str]]:
    """As the terminal and a model card show it. The columns of the comparison are there where anything is compared."""
    found = [_cells(exam, figure, sitting) for exam, figure, sitting in _cases(book)]
    used = {column for row in found for column, cell in row.items() if cell}
    return [{column: cell for column, cell in row.items() if column in used} for row in found]


def _cases(book: Results) -> Iterator[tuple[Exam, str, Scored]]:
    for exam in book.exams:
        for figure in exam.figures:
            for sitting in _with(exam, figure):
                yield exam, figure, sitting


def _cells(exam: Exam, figure: str, sitting: Scored) -> dict[str, str]:
    shown, interval, change = unit(exam, figure), sitting.result.figures[figure], sitting.changes.get(figure)
    return {
        "benchmark": exam.label,
        "figure": figure,
        "who": sitting.name,
        "value": shown.value(interval.value),
        "95 %": numbers.span(shown, interval),
        "change": shown.change(change.value) if change else "",
        "its 95 %": numbers.span(shown, change) if change else "",
        "p": numbers.chance(change.p).removeprefix("p ").removeprefix("= ") if change else "",
    }


def remarks(book: Results) -> list[str]:
    """What a reader of the table must know: what was not understood, not judged, not compared, and how it was asked."""
    found = [line for exam in book.exams for sitting in exam.sittings for line in remarks_on(sitting)]
    for exam in book.exams:
        protocols = dict.fromkeys(sitting.result.protocol for sitting in exam.sittings)
        found.append(f"{exam.label}: asked as {' and '.join(protocols)}.")
        found += [f"{exam.label}: {note}" for note in notes(exam)]
    return found


def notes(exam: Exam) -> list[str]:
    """The benchmark's own, each once."""
    return list(dict.fromkeys(note for sitting in exam.sittings for note in sitting.result.notes))


def remarks_on(sitting: Scored) -> Iterator[str]:
    result = sitting.result
    of = f"of {result.questions:,} answers to {result.label}"
    if result.unparsed:
        yield f"{sitting.name}: {result.unparsed:,} {of} could not be read."
    if result.judge_failed:
        yield f"{sitting.name}: no judge replied about {result.judge_failed:,} {of}; they do not count."
    if sitting.why_not:
        yield f"Not compared: {sitting.why_not}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table; what could end a cell is escaped."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_")


def as_dict(book: Results) -> list[dict[str, Any]]:
    """Every figure of every sitting, unrounded."""
    return [
        {
            "benchmark": exam.label,
            "run": sitting.run.name,
            "backend": sitting.result.backend,
            "protocol": sitting.result.protocol,
            "questions": sitting.result.questions,
            "unparsed": sitting.result.unparsed,
            "judge_failed": sitting.result.judge_failed,
            "figures": sitting.result.brief()["figures"],
            "against": sitting.against.name if sitting.against else None,
            "changes": {name: _as_dict(change) for name, change in sitting.changes.items()},
        }
        for exam in book.exams
        for sitting in exam.sittings
    ]


def _as_dict(change: Change) -> dict[str, float | None]:
    """JSON knows no nan."""
    return {name: None if math.isnan(value) else value for name, value in change._asdict().items()}


def is_clear(change: Change) -> bool:
    """Does its interval leave only one direction?"""
    return change.low > 0 or change.high < 0
