"""The result table: one row for each figure of each result, as cells for the terminal, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minipovid.evaluate.statistics import Change
from minipovid.report import numbers
from minipovid.report.numbers import Unit
from minipovid.report.runs import ExamScores, Results, Scored


def unit(exam: ExamScores, figure: str) -> Unit:
    return numbers.unit_of(figure, exam.label_of(figure), [each.result.figures[figure] for each in _with(exam, figure)])


def _with(exam: ExamScores, figure: str) -> list[Scored]:
    return [each for each in exam.scores if figure in each.result.figures]


def rows(results: Results) -> list[dict[str, str]]:
    """As the terminal and a model card show it. The columns of the comparison are there where anything is compared."""
    table = [
        _cells(exam, figure, scored)
        for exam in results.exams
        for figure in exam.figures
        for scored in _with(exam, figure)
    ]
    used = {column for row in table for column, cell in row.items() if cell}
    return [{column: cell for column, cell in row.items() if column in used} for row in table]


def _cells(exam: ExamScores, figure: str, scored: Scored) -> dict[str, str]:
    shown, interval, change = unit(exam, figure), scored.result.figures[figure], scored.changes.get(figure)
    return {
        "benchmark": exam.label,
        "figure": figure,
        "who": scored.name,
        "value": shown.value(interval.value),
        "95 %": numbers.span(shown, interval),
        "change": shown.change(change.value) if change else "",
        "its 95 %": numbers.span(shown, change) if change else "",
        "p": numbers.chance(change.p).removeprefix("p ").removeprefix("= ") if change else "",
    }


def remarks(results: Results) -> list[str]:
    """What a reader of the table must know: what was not understood, not judged, not compared, and how it was asked."""
    lines = [line for exam in results.exams for scored in exam.scores for line in remarks_on(scored)]
    for exam in results.exams:
        protocols = dict.fromkeys(scored.result.protocol for scored in exam.scores)
        lines.append(f"{exam.label}: asked as {' and '.join(protocols)}.")
        lines += [f"{exam.label}: {note}" for note in notes(exam)]
    return lines


def notes(exam: ExamScores) -> list[str]:
    """The benchmark's own, each once."""
    return list(dict.fromkeys(note for scored in exam.scores for note in scored.result.notes))


def remarks_on(scored: Scored) -> Iterator[str]:
    result = scored.result
    of = f"of {result.questions:,} answers to {result.label}"
    if result.unparsed:
        yield f"{scored.name}: {result.unparsed:,} {of} could not be read."
    if result.judge_failed:
        yield f"{scored.name}: no judge replied about {result.judge_failed:,} {of}; they do not count."
    if scored.why_not:
        yield f"Not compared: {scored.why_not}"


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table; what could end a cell is escaped."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *([row[column] for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("_", "\\_")


def as_dict(results: Results) -> list[dict[str, Any]]:
    """Every figure of every result, unrounded."""
    return [
        {
            "benchmark": exam.label,
            "run": scored.run.name,
            "backend": scored.result.backend,
            "protocol": scored.result.protocol,
            "questions": scored.result.questions,
            "unparsed": scored.result.unparsed,
            "judge_failed": scored.result.judge_failed,
            "figures": scored.result.brief()["figures"],
            "against": scored.against.name if scored.against else None,
            "changes": {name: _as_dict(change) for name, change in scored.changes.items()},
        }
        for exam in results.exams
        for scored in exam.scores
    ]


def _as_dict(change: Change) -> dict[str, float | None]:
    """JSON knows no nan."""
    return {name: None if math.isnan(value) else value for name, value in change._asdict().items()}


def is_clear(change: Change) -> bool:
    """Does its interval leave only one direction?"""
    return change.low > 0 or change.high < 0
