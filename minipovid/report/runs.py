"""Which examinations there are, and what each is held against.

    results = Results.of([Path("runs/demo")])
    for exam in results.exams:                # one benchmark, everybody who sat it
        for scored in exam.scores: scored.name, scored.result, scored.against

The first of several runs is what the others are held against. A single run is held against what it began with: the
model in RUN/base (`minipovid demo` writes it), or the results of `eval --backend hf --weights base`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import results
from minipovid.evaluate.benchmarks import Label
from minipovid.evaluate.results import Result
from minipovid.evaluate.statistics import Change, mcnemar
from minipovid.recipe import run_folder

HF_BASE = "hf-base"  # the backend that asks the model before training


@dataclass(frozen=True)
class NamedRun:
    """A run folder under the name that the report gives it."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Pairing:
    """The right and wrong answers of two results, question by question."""

    part: str  # of the questions: "adversarial"; "" for all
    both: int
    mended: int
    lost: int
    neither: int
    p: float  # McNemar's exact test


@dataclass(frozen=True, eq=False)
class Scored:
    """One result of one run, and the one that it is held against, if there is any."""

    run: NamedRun
    result: Result
    is_before: bool
    against: Scored | None = None
    changes: Mapping[str, Change] = field(default_factory=dict)  # of every figure; empty where against nothing
    why_not: str = ""  # one sentence, where there is something to hold it against but the two cannot be compared

    @property
    def name(self) -> str:
        """Who answered: "demo (gguf-q4_k_m)"."""
        return f"{self.run.name} ({self.result.backend})"

    @property
    def way(self) -> str:
        """How it was asked: a base model through transformers is asked as the trained one is."""
        return self.result.backend.removesuffix(f"-{run_folder.BASE}")

    @cached_property
    def rows(self) -> list[dict[str, object]]:
        """The answers; none where the file is gone or damaged."""
        try:
            return list(results.rows(self.run.folder, self.result))
        except (OSError, ValueError, RecursionError):
            return []

    def pairings(self) -> Iterator[Pairing]:
        """All questions that are right or wrong, and by part where the figures are: adversarial/3 is of adversarial."""
        if self.against is None or len(self.rows) != len(self.against.rows):
            return
        both = [
            (str(old["id"]), bool(old["right"]), bool(new["right"]))
            for old, new in zip(self.against.rows, self.rows, strict=True)
            if old["id"] == new["id"] and old.get("right") is not None and new.get("right") is not None
        ]
        figures = {name.rpartition("/")[0] for name in self.result.figures} - {""}
        parts = [part for part in dict.fromkeys(id.partition("/")[0] for id, _, _ in both) if part in figures]
        for part in parts if len(parts) > 1 else [""]:
            own = [(old, new) for id, old, new in both if not part or id.partition("/")[0] == part]
            if own:
                right_twice, mended, lost, neither = (own.count(case) for case in _CASES)
                p = mcnemar([old for old, _ in own], [new for _, new in own])
                yield Pairing(part, right_twice, mended, lost, neither, p)


_CASES = ((True, True), (False, True), (True, False), (False, False))


@dataclass(frozen=True, eq=False)
class ExamScores:
    """One benchmark: who sat it, the one before first."""

    label: str
    scores: Sequence[Scored]

    @property
    def figures(self) -> list[str]:
        """Those of the overview that any result has, in the benchmark's order."""
        return list(dict.fromkeys(name for scored in self.scores for name in scored.result.headline()))

    def label_of(self, figure: str) -> Label:
        """What the benchmark calls it."""
        return next(each.result for each in self.scores if figure in each.result.figures).label_of(figure)

    @property
    def main(self) -> Scored | None:
        """The result that the headline is about: of the last run, the most alike in how it was asked."""
        compared = [scored for scored in self.scores if scored.against]
        alike = [each for each in compared if each.against and each.against.way == each.way]
        last = [each for each in alike or compared if each.run == (alike or compared)[-1].run]
        return next(iter(last), None)


@dataclass(frozen=True)
class Results:
    runs: Sequence[NamedRun]  # as they were named, and RUN/base before a single one that has it
    exams: Sequence[ExamScores]

    @classmethod
    def of(cls, folders: Sequence[Path]) -> Results:
        """Raises MinipovidError where a folder is no run."""
        runs = _runs(folders)
        by_run = {run: list(results.read(run.folder)) for run in runs}
        labels = list(dict.fromkeys(result.label for own in by_run.values() for result in own))
        return cls(runs, [ExamScores(label, _scores(label, by_run)) for label in labels])

    @property
    def last(self) -> NamedRun:
        return self.runs[-1]

    @property
    def title(self) -> str:
        """The run, or all of them; a run's own base goes without saying."""
        own = self.runs[self.runs[0].name == run_folder.BASE and len(self.runs) == 2 :]
        *others, last = (run.name for run in own)
        return f"{', '.join(others)} and {last}" if others else last


def _runs(folders: Sequence[Path]) -> list[NamedRun]:
    for folder in folders:
        if not any((folder / name).exists() for name in run_folder.PARTS):
            raise run_folder.no_run(folder)
    if len(folders) == 1 and (folders[0] / run_folder.BASE / run_folder.EVAL).is_dir():
        return [NamedRun(run_folder.BASE, folders[0] / run_folder.BASE), NamedRun(_called(folders[0]), folders[0])]
    names = [_called(folder) for folder in folders]
    twice = {name for name in names if names.count(name) > 1}
    return [
        NamedRun(f"{folder.resolve().parent.name}/{name}" if name in twice else name, folder)
        for name, folder in zip(names, folders, strict=True)
    ]


def _called(folder: Path) -> str:
    return folder.resolve().name


def _scores(label: str, by_run: Mapping[NamedRun, Sequence[Result]]) -> list[Scored]:
    """Those of the first run, and of base models within runs, and then the others held against them."""
    those = [(run, result) for run, own in by_run.items() for result in own if result.label == label]
    first = next(iter(by_run)) if len(by_run) > 1 else None
    before = [Scored(*each, True) for each in those if each[0] == first or each[1].backend == HF_BASE]
    known = {each.result.name for each in before if each.run != first}
    after = [each for each in those if each[0] != first and each[1].name not in known]
    return before + [_compared(Scored(*each, False), before) for each in after]


def _compared(scored: Scored, before: Sequence[Scored]) -> Scored:
    """Held against the one that was asked in the same way, else against the first that can be compared."""
    reasons = []
    for other in sorted(before, key=lambda each: each.way != scored.way):
        try:
            changes = other.result.changes(scored.result)
        except MinipovidError as error:
            reasons.append(str(error))
        else:
            return replace(scored, against=other, changes=changes)
    return replace(scored, why_not=reasons[0] if reasons else "")
