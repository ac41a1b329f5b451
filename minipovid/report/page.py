"""The page: everything gathered, and the template filled. The template escapes what it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from minipovid.common.errors import MinipovidError
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.report import answers, curves, noised, numbers, sizes, surroundings, tables, texts, tracks
from minipovid.report import verdict as verdicts
from minipovid.report.runs import ExamScores, Pairing, Results, Scored
from minipovid.report.verdict import ReportVerdict

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """A figure of one result in the table."""

    value: str
    span: str
    kind: str = ""  # better | worse | shift | unclear
    change: str = ""
    bounds: str = ""
    p: str = ""
    why_not: bool = False  # there is something to hold it against, but the two cannot be compared


@dataclass(frozen=True)
class FigureRow:
    """A figure's row in the result table."""

    title: str
    meaning: str
    marks: Sequence[tracks.TrackMark]
    cells: Sequence[Cell | None]


@dataclass(frozen=True)
class Head:
    """A result's column."""

    run: str
    backend: str
    questions: int
    colour: int
    against: str


@dataclass(frozen=True)
class ResultTable:
    label: str
    protocols: Sequence[str]
    heads: Sequence[Head]
    lines: Sequence[FigureRow]
    pairings: Sequence[tuple[str, Sequence[Pairing]]]
    remarks: Sequence[str]
    notes: Sequence[str]


def html(results: Results, verdict: ReportVerdict) -> str:
    recipe = _recipe(results.last.folder)
    logs = [curves.read(run, _stages(_recipe(run.folder))) for run in results.runs]
    charts = curves.charts(logs)
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    shown = {
        "title": results.title,
        "date": datetime.now(timezone.utc).strftime("%d %B %Y").lstrip("0"),
        "verdict": verdict,
        "groups": tracks.groups(results),
        "tables": [_table(exam, tracks.colours(results)) for exam in results.exams],
        "charts": charts,
        "warnings": [f"{log.run.name}: {warning}" for log in logs for warning in log.warnings],
        "noise": recipe.noise if recipe else None,
        "examples": noised.examples(results.last.folder, recipe) if recipe else [],
        "album": answers.Album.of(results),
        "kinds": answers.KINDS,
        "sizes": sizes.of(results),
        "proof": surroundings.proof(results.last.folder),
        "recipe": surroundings.recipe_text(recipe) if recipe else "",
        "environment": surroundings.environment(),
        "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": _json({chart.key: chart.data for chart in charts}),
    }
    shown["missing"] = _missing(shown, results)
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["set"] = typeset
    return environment.get_template("page.html").render(shown)


def typeset(text: str) -> Markup:
    """Numbers as they are printed on paper: a true minus sign, and no line broken before a percent sign."""
    text = re.sub(r"(?<![\w.])-(?=\d)", "\N{MINUS SIGN}", str(text))
    text = re.sub(r"(?<=\d) %", "\N{NARROW NO-BREAK SPACE}%", text)
    return escape(re.sub(r"p ([=<]) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text))


def _json(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can end that."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _recipe(run: Path) -> Recipe | None:
    try:
        return run_folder.recipe(run) if (run / run_folder.RECIPE).is_file() else None
    except MinipovidError:  # of another version, as may be: the rest of the report needs it not
        return None


def _stages(recipe: Recipe | None) -> list[str]:
    return [str(stage.loss["name"]) for stage in recipe.stages] if recipe else []


def _table(exam: ExamScores, colours: dict[Scored, int]) -> ResultTable:
    heads = [
        Head(
            each.run.name,
            each.result.backend,
            each.result.questions,
            colours[each],
            each.against.name if each.against else "",
        )
        for each in exam.scores
    ]
    lines = [
        FigureRow(
            numbers.called(figure, exam.label_of(figure)),
            exam.label_of(figure).meaning,
            tracks.small(exam, figure, colours),
            [_cell(exam, figure, each) for each in exam.scores],
        )
        for figure in exam.figures
    ]
    pairings = [(each.name, pairs) for each in exam.scores if (pairs := list(each.pairings()))]
    remarks = [remark for each in exam.scores for remark in tables.remarks_on(each)]
    notes = [texts.anonymous(note) for note in tables.notes(exam)]
    protocols = list(dict.fromkeys(each.result.protocol for each in exam.scores))
    return ResultTable(exam.label, protocols, heads, lines, pairings, remarks, notes)


def _cell(exam: ExamScores, figure: str, scored: Scored) -> Cell | None:
    interval = scored.result.figures.get(figure)
    if interval is None:
        return None
    unit, change = tables.unit(exam, figure), scored.changes.get(figure)
    value, span = unit.value(interval.value), numbers.span(unit, interval)
    if change is None:
        return Cell(value, span, why_not=bool(scored.why_not))
    texts = (unit.change(change.value), numbers.span(unit, change), numbers.chance(change.p))
    return Cell(value, span, verdicts.kind(figure, scored, unit), *texts)


def _missing(shown: dict[str, Any], results: Results) -> list[tuple[str, str]]:
    """(what is not here, which command makes it)."""
    compared = any(exam.main for exam in results.exams)
    cases = (
        (results.exams, "Scores", "minipovid eval RUN tinyworld"),
        (compared or not results.exams, "Before and after", "minipovid eval RUN tinyworld --backend hf --weights base"),
        (shown["charts"], "Training curves", "minipovid train RECIPE"),
        (shown["examples"], "Noised pictures", "minipovid train RECIPE"),
        (shown["sizes"], "Quantisation against hallucination", "minipovid eval RUN tinyworld --quant q4_k_m"),
        (shown["proof"], "What the files kept", "minipovid verify RUN"),
        (shown["recipe"], "The recipe", "minipovid train RECIPE"),
    )
    return [(what, command) for there, what, command in cases if not there]
