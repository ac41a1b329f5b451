"""What changed, in sentences that claim no more than the intervals do.

    verdict = ReportVerdict.of(results)
    verdict.headline            # "It hallucinates less."
    verdict.findings[0].text    # "False yes on adversarial questions fell from 41.2 % to 11.0 % (-30.2 points, ..."

A rate that fell because the model says less is no cure, so what a silent model loses (recall, coverage, words) is told
whenever a rate is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from minipovid.evaluate.statistics import Change
from minipovid.report import numbers, surroundings, tables
from minipovid.report.numbers import Unit
from minipovid.report.runs import ExamScores, Results, Scored

ChangeKind = Literal["better", "worse", "unclear", "shift"]  # shift: a clear change that is neither, as of words
_ORDER = ("better", "worse", "shift", "unclear")
_FIRST = "adversarial"  # the questions that POPE is read by, where it has several kinds


@dataclass(frozen=True)
class FigureFinding:
    """One figure's change."""

    exam: ExamScores
    figure: str
    kind: ChangeKind
    is_rate: bool  # of hallucination
    is_coverage: bool  # what a silent model loses
    sentence: str
    test: str
    change: Change

    @property
    def text(self) -> str:
        return f"{self.sentence} ({self.test})."


@dataclass(frozen=True)
class ReportVerdict:
    """The headline, a sentence that bounds it, and the changes behind it."""

    headline: str
    bounds: str
    findings: Sequence[FigureFinding]

    @classmethod
    def of(cls, results: Results) -> ReportVerdict:
        findings = [finding for exam in results.exams for finding in _findings(exam)]
        if findings:
            price = ", but on held-out pairs it prefers the rejected answers." if _is_turned(results) else "."
            return cls(_headline(findings).rstrip(".") + price, _bounds(results, findings), findings)
        if not results.exams:
            return cls("Nothing was examined yet.", "", [])
        if any(scored.why_not for exam in results.exams for scored in exam.scores):
            return cls("These results cannot be compared.", "", [])
        return cls("These are the scores; there is nothing to hold them against yet.", "", [])


def _findings(exam: ExamScores) -> Iterator[FigureFinding]:
    """Of the exam's main result: the rates of hallucination, and what a silent model would lose."""
    scored = exam.main
    if scored is None:
        return
    for figure in shown(exam, scored):
        change = scored.changes[figure]
        change_kind = kind(figure, scored, tables.unit(exam, figure))
        if change_kind != "unclear" or numbers.last(figure) != "words":
            of = _is_rate(scored, figure), scored.result.is_coverage(figure)
            yield FigureFinding(exam, figure, change_kind, *of, *_in_words(exam, figure, change_kind, scored), change)


def shown(exam: ExamScores, scored: Scored) -> list[str]:
    """The figures of a verdict: of the overview, and what a silent model would lose; one kind of questions."""
    overview = scored.result.headline()
    names = [name for name in scored.result.figures if name in overview or scored.result.is_coverage(name)]
    names = [name for name in names if name in scored.changes]
    rates = [name for name in names if _is_rate(scored, name)]
    chosen = rates or [name for name in names if not scored.result.is_coverage(name)]
    guards = sorted(filter(scored.result.is_coverage, names), key=lambda name: name == "words")
    return [name for name in (*_one_kind(chosen), *_one_kind(guards))]


def _one_kind(names: Sequence[str]) -> list[str]:
    """Of figures that are there for several kinds of questions, the hardest kind alone."""
    hardest = [name for name in names if name.partition("/")[0] == _FIRST or "/" not in name]
    return hardest or list(names)[:4]


def _is_rate(scored: Scored, figure: str) -> bool:
    return scored.result.is_lower_better(figure)


def kind(figure: str, scored: Scored, unit: Unit) -> ChangeKind:
    """What the change of a figure is, as far as its interval says; one that is printed as 0 is none."""
    change = scored.changes[figure]
    if not tables.is_clear(change) or unit.change(change.value).strip("0.") == "":
        return "unclear"
    if numbers.last(figure) == "words":
        return "shift"
    return "better" if (change.value < 0) == _is_rate(scored, figure) else "worse"


def _in_words(exam: ExamScores, figure: str, kind: ChangeKind, scored: Scored) -> tuple[str, str]:
    """What changed from what to what, and what speaks for it."""
    assert scored.against is not None
    unit, change = tables.unit(exam, figure), scored.changes[figure]
    old, new = (each.result.figures[figure].value for each in (scored.against, scored))
    name = numbers.spoken(figure, exam.label_of(figure)) + (
        f" ({exam.label})" if scored.result.is_coverage(figure) else ""
    )
    test = (
        f"{unit.change(change.value)}{unit.difference}, 95 % {numbers.span(unit, change)}, {numbers.chance(change.p)}"
    )
    if kind == "unclear":
        return f"{_capital(name)}: no clear change, {unit.value(old)} before and {unit.value(new)} after", test
    verb = "fell" if change.value < 0 else "rose"
    return f"{_capital(name)} {verb} from {unit.value(old)} to {unit.value(new)}", test


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_turned(results: Results) -> bool:
    """Whether verify found that the trained model likes the rejected answers more than its base does."""
    told = surroundings.proof(results.last.folder)
    return told is not None and surroundings.TURNED in told.faults


def _headline(findings: Sequence[FigureFinding]) -> str:
    rates = [finding.kind for finding in findings if finding.is_rate]
    others = {finding.kind for finding in findings if not finding.is_rate} - {"shift", "unclear"}
    if not rates:
        text = {frozenset(("better",)): "It answers better", frozenset(("worse",)): "It answers worse"}
        return text.get(frozenset(others), "Some figures rose and some fell" if others else "No clear change") + "."
    return _of_rates(rates) + _price(findings, "better" in rates)


def _of_rates(kinds: Sequence[ChangeKind]) -> str:
    """As strong as the figures are of one mind: what only some of them say is said of some."""
    fell, rose = kinds.count("better"), kinds.count("worse")
    if fell and rose:
        return "Some hallucination fell and some rose"
    if fell == len(kinds) or rose == len(kinds):
        return "It hallucinates less" if fell else "It hallucinates more"
    if fell or rose:
        return f"{'Less' if fell else 'More'} hallucination by {fell or rose} of {len(kinds)} measures"
    return "No clear change in hallucination"


def _price(findings: Sequence[FigureFinding], fell: bool) -> str:
    """What it cost, where it did: a model that says less hallucinates less."""
    guards = [finding for finding in findings if finding.is_coverage]
    kinds = {finding.kind for finding in guards if numbers.last(finding.figure) != "words"}
    if "worse" in kinds:
        return f", {'but' if fell else 'and'} it misses more of what is there."
    if "better" in kinds:
        return f", {'and' if fell else 'but'} it finds more of what is there."
    shorter = any(finding.kind == "shift" and finding.change.value < 0 for finding in guards)
    return ", and it says less." if shorter else "."


def _bounds(results: Results, findings: Sequence[FigureFinding]) -> str:
    """How far the headline reaches, in one or two sentences."""
    mains = {finding.exam.label: finding.exam.main for finding in findings}
    counts = [f"{each.result.questions:,} answers to {label}" for label, each in mains.items() if each]
    first = next(each for each in mains.values() if each and each.against)
    assert first.against is not None
    text = f"{first.name} against {first.against.name}: {', '.join(counts)}."
    losses = []
    for each in findings:
        is_share = each.is_coverage and numbers.last(each.figure) != "words"
        if each.kind == "unclear" and is_share and each.change.low < 0:
            name = numbers.spoken(each.figure, each.exam.label_of(each.figure))
            unit = tables.unit(each.exam, each.figure)
            losses.append(f"{name} by more than {unit.plain(-each.change.low)}{unit.difference or unit.sign}")
    return f"{text} A loss of {', '.join(losses)} is unlikely." if losses else text
