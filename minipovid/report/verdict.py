"""What changed, in sentences that claim no more than the intervals do.

    said = Verdict.of(book)
    said.headline            # "It hallucinates less."
    said.findings[0].text    # "False yes on adversarial questions fell from 41.2 % to 11.0 % (-30.2 points, ..."

A rate that fell because the model says less is no cure, so what a silent model loses (recall, coverage, words) is told
whenever a rate is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from minipovid.evaluate.statistics import Change
from minipovid.report import numbers, tables
from minipovid.report.runs import Exam, Results, Scored

Kind = Literal["better", "worse", "unclear", "shift"]  # shift: a clear change that is neither, as of words
_ORDER = ("better", "worse", "shift", "unclear")
_FIRST = "adversarial"  # the questions that POPE is read by, where it has several kinds


@dataclass(frozen=True)
class Finding:
    """One figure's change."""

    exam: Exam
    figure: str
    kind: Kind
    is_rate: bool  # of hallucination
    is_coverage: bool  # what a silent model loses
    said: str
    test: str
    change: Change

    @property
    def text(self) -> str:
        """In one sentence."""
        return f"{self.said} ({self.test})."


@dataclass(frozen=True)
class ReportVerdict:
    """The headline, a sentence that bounds it, and the changes behind it."""

    headline: str
    bounds: str
    findings: Sequence[Finding]

    @classmethod
    def of(cls, book: Results) -> ReportVerdict:
        found = [finding for exam in book.exams for finding in _findings(exam)]
        if not found:
            return cls(_without(book), "", [])
        return cls(_headline(found), _bounds(book, found), found)


def _without(book: Results) -> str:
    if not book.exams:
        return "Nothing was examined yet."
    if any(sitting.why_not for exam in book.exams for sitting in exam.sittings):
        return "These results cannot be compared."
    return "These are the scores; there is nothing to hold them against yet."


def _findings(exam: Exam) -> Iterator[Finding]:
    """Of the exam's main sitting: the rates of hallucination, and what a silent model would lose."""
    sitting = exam.main
    if sitting is None:
        return
    for figure in shown(exam, sitting):
        change = sitting.changes[figure]
        said = kind(figure, sitting)
        if said != "unclear" or numbers.last(figure) != "words":
            of = _is_rate(sitting, figure), sitting.result.is_coverage(figure)
            yield Finding(exam, figure, said, *of, *_told(exam, figure, said, sitting), change)


def shown(exam: Exam, sitting: Scored) -> list[str]:
    """The figures of a verdict: of the overview, and what a silent model would lose; one kind of questions."""
    overview = sitting.result.headline()
    names = [name for name in sitting.result.figures if name in overview or sitting.result.is_coverage(name)]
    names = [name for name in names if name in sitting.changes]
    rates = [name for name in names if _is_rate(sitting, name)]
    chosen = rates or [name for name in names if not sitting.result.is_coverage(name)]
    guards = sorted(filter(sitting.result.is_coverage, names), key=lambda name: name == "words")
    return [name for name in (*_one_kind(chosen), *_one_kind(guards))]


def _one_kind(names: Sequence[str]) -> list[str]:
    """Of figures that are there for several kinds of questions, the hardest kind alone."""
    kept = [name for name in names if name.partition("/")[0] == _FIRST or "/" not in name]
    return kept or list(names)[:4]


def _is_rate(sitting: Scored, figure: str) -> bool:
    return sitting.result.is_lower_better(figure)


def kind(figure: str, sitting: Scored) -> Kind:
    """What the change of a figure is, as far as its interval says."""
    change = sitting.changes[figure]
    if not tables.is_clear(change):
        return "unclear"
    if numbers.last(figure) == "words":
        return "shift"
    return "better" if (change.value < 0) == _is_rate(sitting, figure) else "worse"


def _told(exam: Exam, figure: str, kind: Kind, sitting: Scored) -> tuple[str, str]:
    """What changed from what to what, and what speaks for it."""
    assert sitting.against is not None
    unit, change = tables.unit(exam, figure), sitting.changes[figure]
    old, new = (each.result.figures[figure].value for each in (sitting.against, sitting))
    name = numbers.spoken(figure, exam.label_of(figure)) + (
        f" ({exam.label})" if sitting.result.is_coverage(figure) else ""
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


def _headline(found: Sequence[Finding]) -> str:
    rates = [finding.kind for finding in found if finding.is_rate]
    others = {finding.kind for finding in found if not finding.is_rate} - {"shift", "unclear"}
    if not rates:
        said = {frozenset(("better",)): "It answers better", frozenset(("worse",)): "It answers worse"}
        return said.get(frozenset(others), "Some figures rose and some fell" if others else "No clear change") + "."
    return _of_rates(rates) + _price(found, "better" in rates)


def _of_rates(kinds: Sequence[Kind]) -> str:
    """As strong as the figures are of one mind: what only some of them say is said of some."""
    fell, rose = kinds.count("better"), kinds.count("worse")
    if fell and rose:
        return "Some hallucination fell and some rose"
    if fell == len(kinds) or rose == len(kinds):
        return "It hallucinates less" if fell else "It hallucinates more"
    if fell or rose:
        return f"{'Less' if fell else 'More'} hallucination by {fell or rose} of {len(kinds)} measures"
    return "No clear change in hallucination"


def _price(found: Sequence[Finding], fell: bool) -> str:
    """What it cost, where it did: a model that says less hallucinates less."""
    guards = [finding for finding in found if finding.is_coverage]
    kinds = {finding.kind for finding in guards if numbers.last(finding.figure) != "words"}
    if "worse" in kinds:
        return f", {'but' if fell else 'and'} it misses more of what is there."
    if "better" in kinds:
        return f", {'and' if fell else 'but'} it finds more of what is there."
    shorter = any(finding.kind == "shift" and finding.change.value < 0 for finding in guards)
    return ", and it says less." if shorter else "."


def _bounds(book: Results, found: Sequence[Finding]) -> str:
    """How far the headline reaches, in one or two sentences."""
    mains = {finding.exam.label: finding.exam.main for finding in found}
    told = [f"{each.result.questions:,} answers to {label}" for label, each in mains.items() if each]
    first = next(each for each in mains.values() if each and each.against)
    assert first.against is not None
    text = f"{first.name} against {first.against.name}: {', '.join(told)}."
    kept = [finding for finding in found if _is_kept(finding)]
    losses = ", ".join(
        f"{numbers.spoken(each.figure, each.exam.label_of(each.figure))} by more than {_loss(each)}" for each in kept
    )
    return f"{text} A loss of {losses} is unlikely." if losses else text


def _is_kept(finding: Finding) -> bool:
    is_share = finding.is_coverage and numbers.last(finding.figure) != "words"
    return finding.kind == "unclear" and is_share and finding.change.low < 0


def _loss(finding: Finding) -> str:
    unit = tables.unit(finding.exam, finding.figure)
    return f"{unit.plain(-finding.change.low)}{unit.difference or unit.sign}"
