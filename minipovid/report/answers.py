"""What both models answered, the most telling pictures first: what was mended, then what got worse, then what stayed.

An answer that is right or wrong is mended where it was wrong and is right; a description where it has fewer marks on
words that name what is not there. How many there are of each kind is counted over all answers, not over those shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

from minipovid.evaluate.benchmarks import FAILED, UNPARSED
from minipovid.recipe import run_folder
from minipovid.report import pictures
from minipovid.report.runs import ExamScores, Results, Scored
from minipovid.report.texts import marked

CaseKind = Literal["fixed", "new", "still"]
KINDS: Mapping[CaseKind, str] = {"fixed": "Fixed", "new": "Newly wrong", "still": "Still wrong"}
PICTURES, EACH = 100, 3  # shown at most: pictures, and answers about one
_WORSE = 40  # of the pictures, so many are kept for what got worse, if there are


@dataclass(frozen=True)
class ShownAnswer:
    text: Markup
    verdict: str
    right: bool | None


@dataclass(frozen=True)
class Case:
    """A question with the answer before, if there is any, and after."""

    label: str
    prompt: str
    kind: CaseKind
    weight: int  # how many wrong words, or answers, it is about
    before: ShownAnswer | None
    after: ShownAnswer


@dataclass
class PictureCard:
    """A picture and what was said of it."""

    name: str
    path: Path | None
    cases: list[Case] = field(default_factory=list)
    picture: str = ""

    @property
    def kind(self) -> CaseKind:
        """What it is shown for."""
        kinds = {case.kind for case in self.cases}
        return next(kind for kind in KINDS if kind in kinds)

    def weight(self, kind: CaseKind) -> int:
        return sum(case.weight for case in self.cases if case.kind == kind)


@dataclass(frozen=True)
class Album:
    """The cards that are shown, and how many answers there are of each kind."""

    cards: Sequence[PictureCard]
    counts: Mapping[CaseKind, int]
    compared: bool
    missing: int  # pictures that could not be found

    @classmethod
    def of(cls, results: Results, limit: int = PICTURES) -> Album:
        cards: dict[str, PictureCard] = {}
        counts: Counter[CaseKind] = Counter()
        compared = any(exam.main for exam in results.exams)
        for exam in results.exams:
            for name, path, case in _cases(exam, compared):
                counts[case.kind] += 1
                cards.setdefault(str(path or name), PictureCard(name, path)).cases.append(case)
        chosen = _chosen(list(cards.values()), limit)
        for card in chosen:
            card.cases = _telling(card.cases)
            card.picture = pictures.thumbnail(card.path)
        return cls(chosen, counts, compared, sum(not card.picture for card in chosen))


def _chosen(cards: Sequence[PictureCard], limit: int) -> list[PictureCard]:
    """By kind; neither what was mended nor what got worse may take all the room."""
    by: dict[CaseKind, list[PictureCard]] = {kind: [] for kind in KINDS}
    for card in cards:
        by[card.kind].append(card)
    for kind, own in by.items():
        own.sort(key=lambda card: -card.weight(kind))
    n_new = min(len(by["new"]), limit * _WORSE // PICTURES)
    fixed = by["fixed"][: limit - n_new]
    new = by["new"][: limit - len(fixed)]
    return [*fixed, *new, *by["still"][: limit - len(fixed) - len(new)]]


def _telling(cases: Sequence[Case]) -> list[Case]:
    """The most telling, one of each kind at least. What a benchmark asks again, with the same answers, comes once."""
    ordered = sorted(cases, key=lambda case: (list(KINDS).index(case.kind), -case.weight, -len(case.after.text)))
    distinct = list({(case.prompt, case.before, case.after): case for case in ordered}.values())
    firsts = [next((case for case in distinct if case.kind == kind), None) for kind in KINDS]
    room = EACH - sum(case is not None for case in firsts)
    others = [case for case in distinct if case not in firsts][:room]
    return [case for case in distinct if case in firsts or case in others]


def _cases(exam: ExamScores, compared: bool) -> Iterator[tuple[str, Path | None, Case]]:
    """(picture, its file, case) of every answer with something wrong in it, before or after."""
    scored = exam.main if compared else exam.scores[-1]
    if scored is None:
        return
    before: Sequence[Any] = scored.against.rows if scored.against else [None] * len(scored.rows)
    if len(before) != len(scored.rows):
        return
    for old, new in zip(before, scored.rows, strict=True):
        if old is not None and old["id"] != new["id"]:
            continue
        case = _case(exam.label, old, new)
        if case is not None:
            yield str(new["image"]), _file(scored, str(new["image"])), case


def _file(scored: Scored, name: str) -> Path | None:
    """Where the pictures lie, or where those from inside data files were put."""
    if not name:
        return None
    roots = [
        Path(scored.result.pictures),
        *(each.run.folder / run_folder.EVAL / "images" for each in (scored, scored.against) if each),
    ]
    return pictures.find(name, *roots)


def _case(label: str, old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Case | None:
    was, now = 0 if old is None else _faults(old), _faults(new)
    if not was and not now or not all(map(_is_read, [new] if old is None else [old, new])):
        return None
    kind: CaseKind = "fixed" if now < was else "new" if now > was else "still"
    before = None if old is None else _shown(old)
    weight = abs(now - was) or now
    return Case(label, str(new["prompt"]), "still" if old is None else kind, weight, before, _shown(new))


def _faults(row: Mapping[str, Any]) -> int:
    """Marked words; of an answer that is right or wrong, whether it is wrong."""
    return len(row.get("wrong") or ()) or int(row.get("right") is False)


def _is_read(row: Mapping[str, Any]) -> bool:
    """Not where nobody knows: no judge replied, or its reply says nothing."""
    return row.get("right") is not None or row["verdict"] not in (FAILED, UNPARSED)


def _shown(row: Mapping[str, Any]) -> ShownAnswer:
    spans = [(int(start), int(end)) for start, end in row.get("wrong") or ()]
    return ShownAnswer(marked(str(row["answer"]), spans), str(row["verdict"]), row.get("right"))
