"""What an examination came to, and the files that keep it.

RUN/eval/<label>.<backend>.jsonl   question, answer, verdict per line
         <label>.<backend>.json    the Result: protocol, figures with intervals, and the sums' units, from which a
                                   report compares two runs without the benchmark's files
RUN/scores.json                    {"<label>.<backend>": {"protocol": ..., "headline": [names], "figures":
                                       {name: [value, low, high]}}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.evaluate import benchmarks, statistics
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Benchmark, Counts, Grades, Label, Mark
from minipovid.evaluate.statistics import Change, Interval
from minipovid.recipe import run_folder
from minipovid.recipe.strict import validated

ANSWERS, WORDS = "_answers", "_words"  # counts that every benchmark gets


@dataclass(frozen=True)
class Result:
    """One benchmark through one backend."""

    label: str
    benchmark: str
    options: Mapping[str, Any]
    backend: str
    protocol: str  # "pope/official/3f2a9c01": scores with the same one can be compared
    identity: Mapping[str, Any]  # what the protocol's digest stands for, and who answered
    pictures: str  # their folder
    questions: int
    unparsed: int
    judge_failed: int
    notes: Sequence[str]
    figures: Mapping[str, Interval]
    units: Mapping[str, Counts] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.label}.{self.backend}"

    @cached_property
    def built(self) -> Benchmark:
        return benchmarks.build(self.benchmark, self.options)

    def headline(self) -> dict[str, Interval]:
        """The figures of an overview, in the benchmark's order, and the words of an answer: silence is no truth."""
        wanted = [*self.built.headline, "words"]
        return {
            name: interval
            for head in wanted
            for name, interval in self.figures.items()
            if name.rpartition("/")[2] == head
        }

    def is_lower_better(self, figure: str) -> bool:
        return figure.rpartition("/")[2] in self.built.lower_is_better

    def is_coverage(self, figure: str) -> bool:
        """Does a silent model lose it? Words are counted for every benchmark."""
        last = figure.rpartition("/")[2]
        return last == "words" or last in self.built.coverage

    def label_of(self, figure: str) -> Label:
        last = figure.rpartition("/")[2]
        if last == "words":
            return Label("words per answer", "who says less gets less wrong: read it beside every rate")
        return self.built.labels.get(last, Label())

    def changes(self, after: Result) -> dict[str, Change]:
        """Of every figure, from this result to another. Raises MinipovidError where they are not comparable."""
        if self.protocol != after.protocol or self.units.keys() != after.units.keys():
            raise MinipovidError(
                f"{self.name} and {after.name} cannot be compared: they were examined as {self.protocol} and "
                f"{after.protocol}."
            )
        return statistics.paired(self.units, after.units, figures_of(self.built))

    def brief(self) -> dict[str, Any]:
        """What scores.json says of it."""
        figures = {  # JSON knows no nan
            name: [None if math.isnan(each) else each for each in interval] for name, interval in self.figures.items()
        }
        counts = {"questions": self.questions, "unparsed": self.unparsed, "judge_failed": self.judge_failed}
        return {"protocol": self.protocol, **counts, "headline": list(self.headline()), "figures": figures}

    def as_dict(self) -> dict[str, Any]:
        figures = self.brief()["figures"]
        return {**asdict(self), "figures": figures}


def figures_of(benchmark: Benchmark) -> statistics.Figures:
    """The benchmark's figures, and how many words an answer has."""

    def figures(totals: Counts) -> dict[str, float]:
        own = {name: value for name, value in totals.items() if name not in (ANSWERS, WORDS)}
        words = benchmarks.share(totals.get(WORDS, 0.0), totals.get(ANSWERS, 0.0))
        return {**benchmark.figures(own), "words": words}

    return figures


def graded(benchmark: Benchmark, answers: Sequence[Answer]) -> Grades:
    """The benchmark's own grades, each unit with the number of its answers and of their words."""
    grades = benchmark.grade(answers)
    units = {unit: dict(counts) for unit, counts in grades.units.items()}
    for answer, mark in zip(answers, grades.marks, strict=True):
        counts = units.setdefault(mark.unit, {})
        counts[ANSWERS] = counts.get(ANSWERS, 0.0) + 1
        counts[WORDS] = counts.get(WORDS, 0.0) + len(answer.text.split())
    return Grades(grades.marks, units)


def count(marks: Sequence[Mark]) -> dict[str, int]:
    verdicts = [mark.verdict for mark in marks]
    return {"questions": len(marks), "unparsed": verdicts.count(UNPARSED), "judge_failed": verdicts.count(FAILED)}


def write(run: Path, result: Result, answers: Sequence[Answer], marks: Sequence[Mark]) -> None:
    """The three files; scores.json tells of every result in RUN/eval."""
    with finished(run / run_folder.EVAL / f"{result.name}.jsonl") as draft, draft.open("w", encoding="utf-8") as file:
        for answer, mark in zip(answers, marks, strict=True):
            row = {"id": answer.question.id, "image": str(answer.question.image), "prompt": answer.question.prompt}
            row |= {"answer": answer.text} | ({} if answer.judgement is None else {"judgement": answer.judgement})
            file.write(json.dumps({**row, **mark._asdict()}, ensure_ascii=True) + "\n")
    with finished(run / run_folder.EVAL / f"{result.name}.json") as draft:
        draft.write_text(json.dumps(result.as_dict(), default=str) + "\n", encoding="utf-8")
    scores = {each.name: each.brief() for each in read(run)}
    with finished(run / run_folder.SCORES) as draft:
        draft.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")


def read(run: Path) -> Iterator[Result]:
    """Every result of a run, by name. Raises MinipovidError for a damaged one."""
    for path in sorted((run / run_folder.EVAL).glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            figures = {
                name: Interval(*(math.nan if each is None else float(each) for each in interval))
                for name, interval in content.pop("figures").items()
            }
            _ = validated(Result, {**content, "figures": figures}, path.name).built
            result = Result(**content, figures=figures)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, MinipovidError):
            raise MinipovidError(
                f"{path} is damaged, or of another version; remove it and run `minipovid eval` again."
            ) from None
        yield result


def rows(run: Path, result: Result) -> list[dict[str, Any]]:
    """The answers of a result: id, image, prompt, answer, verdict, right, wrong, unit."""
    lines = (run / run_folder.EVAL / f"{result.name}.jsonl").read_text(encoding="utf-8").splitlines()
    parsed = [json.loads(line) for line in lines]
    return [row for row in parsed if isinstance(row, dict) and {"id", "prompt", "answer", "verdict"} <= row.keys()]
