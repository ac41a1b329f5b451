"""The benchmarks' shelf is walked: whatever stands there keeps what intervals, reports and the command line rely on.

A benchmark brings an example, tests/evaluate/examples/NAME with its files in small and example.json:

    read       what of the folder a user would name
    options    sets of options under which all of this must hold
    answers    by the question's id; `replies` are a judge's, null where none replied
    totals     sums of counts that no answer here brings about, where a figure needs them
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks, results, statistics
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Benchmark, Exam, Judging, Mode

EXAMPLES = Path(__file__).parent / "examples"
NAMES = shelf.names("evaluate.benchmarks")


class Example(NamedTuple):
    """A benchmark under one set of options, and its example."""

    benchmark: Benchmark
    folder: Path
    told: Mapping[str, Any]

    @property
    def exam(self) -> Exam:
        return self.benchmark.read(self.folder / self.told["read"])

    @property
    def judges(self) -> bool:
        return isinstance(self.benchmark, Judging) and bool(self.benchmark.judge)

    def answers(self) -> list[Answer]:
        """With the judge's replies, where it is asked."""
        texts, replies = self.told["answers"], self.told["replies"] if self.judges else {}
        return [Answer(each, texts[each.id], replies.get(each.id)) for each in self.exam.questions]


def examples(name: str) -> list[Example]:
    file = EXAMPLES / name / "example.json"
    assert file.is_file(), f"{name} stands on the shelf without an example; write {file}"
    told = json.loads(file.read_text(encoding="utf-8"))
    return [Example(benchmarks.build(name, options), file.parent, told) for options in told["options"]]


each_benchmark = pytest.mark.parametrize("name", NAMES)
each_example = pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in NAMES for number in range(len(examples(name)))]
)


def names(figures: Mapping[str, float]) -> set[str]:
    """As `headline` means them: f1 of adversarial/f1."""
    return {name.rpartition("/")[2] for name in figures}


def figures_of(example: Example, answers: Sequence[Answer]) -> dict[str, float]:
    return example.benchmark.figures(benchmarks.total(example.benchmark.grade(answers).units))


def test_the_whole_shelf_is_seen() -> None:
    files = {path.stem for path in Path(benchmarks.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(NAMES) == files == {path.name for path in EXAMPLES.iterdir()} and len(files) >= 10


@each_benchmark
def test_the_file_says_what_it_is(name: str) -> None:
    """The paper, where the files come from, and what a row of them looks like; every option has a default."""
    module = shelf.load("evaluate.benchmarks", name)
    made = module.Benchmark
    assert re.search(r"\(.* et al\., arXiv \d{4}\.\d{5}", module.__doc__), "the docstring names no paper"
    assert re.search(r'^    .*["\t{|]|^    \w.*  ', module.__doc__, re.MULTILINE), "the docstring shows no row"
    assert is_dataclass(made) and made.__dataclass_params__.frozen and made.__doc__
    assert made.source and not made.source.endswith(".") and "\n" not in made.source
    assert getattr(made, "version", 1) >= 1
    built = benchmarks.build(name, {})
    assert built == benchmarks.build(name, asdict(built))
    json.dumps(asdict(built))  # the options are a part of the protocol
    for mode in Mode.__args__ if "mode" in {field.name for field in fields(made)} else ():
        assert benchmarks.build(name, {"mode": mode}).mode == mode
    for method, parameters in (("read", ["path"]), ("grade", ["answers"]), ("figures", ["totals"])):
        assert [*inspect.signature(getattr(built, method)).parameters] == parameters


@each_benchmark
def test_options_are_checked(name: str) -> None:
    for options in ({"nonsense": 1}, {next(field.name for field in fields(benchmarks.build(name, {}))): object()}):
        with pytest.raises(MinipovidError, match=rf"^{name}: ") as error:
            benchmarks.build(name, options)
        assert str(error.value).count("\n") == 0


@each_benchmark
def test_figures_that_are_named_can_be_had(name: str) -> None:
    """The overview, what is better when low, what silence loses and the labels: none of them names a figure that never
    comes."""
    found: set[str] = set()
    for example in examples(name):
        found |= names(figures_of(example, example.answers()))
        found |= names(
            {key: 0 for totals in example.told.get("totals", []) for key in example.benchmark.figures(totals)}
        )
        made = example.benchmark
    named = {*made.headline, *made.lower_is_better, *made.coverage, *made.labels}
    assert made.headline and len(set(made.headline)) == len(made.headline)
    assert named <= found, f"{named - found} of {sorted(found)}"
    assert not made.lower_is_better & made.coverage
    for label in made.labels.values():
        assert any(label) and not label.meaning.endswith(".") and label.meaning[:1] == label.meaning[:1].lower()


@each_example
def test_questions(name: str, number: int) -> None:
    example = examples(name)[number]
    exam = example.exam
    assert len(exam.questions) >= 3 and len({question.id for question in exam.questions}) == len(exam.questions)
    for question in exam.questions:
        assert question.prompt and question.max_tokens >= 1 and not Path(question.image).is_absolute()
        assert question.truth
    assert exam.files and all(file.is_file() for file in exam.files)
    assert exam.notes and all(note.endswith(".") and "\n" not in note for note in exam.notes)
    again = [(question.id, question.image, question.prompt) for question in example.exam.questions]
    assert again == [(question.id, question.image, question.prompt) for question in exam.questions]


@each_example
def test_grading_is_pure_and_knows_no_order(name: str, number: int) -> None:
    """Marks go with their answers, units with their marks, and a unit is the same whatever else is graded with it: else
    a bootstrap over units would be none."""
    example = examples(name)[number]
    answers = example.answers()
    grades = example.benchmark.grade(answers)
    assert example.benchmark.grade(answers) == grades
    backwards = example.benchmark.grade(answers[::-1])
    assert [*backwards.marks][::-1] == [*grades.marks] and same(backwards.units, grades.units)
    assert len(grades.marks) == len(answers) and {mark.unit for mark in grades.marks} == set(grades.units)
    for unit in grades.units:
        own = [answer for answer, mark in zip(answers, grades.marks, strict=True) if mark.unit == unit]
        alone = example.benchmark.grade(own)
        assert same(alone.units, {unit: grades.units[unit]})
        assert [*alone.marks] == [mark for mark in grades.marks if mark.unit == unit]
    for answer, mark in zip(answers, grades.marks, strict=True):
        assert mark.verdict and all(0 <= start < end <= len(answer.text) for start, end in mark.wrong)
        assert mark.right is None or mark.verdict != FAILED


def same(one: Mapping[str, Mapping[str, float]], other: Mapping[str, Mapping[str, float]]) -> bool:
    """To rounding: sums are added up in another order."""
    assert one.keys() == other.keys()
    return all(one[unit] == pytest.approx(dict(other[unit])) for unit in one)


@each_example
def test_figures_of_nothing_and_of_silence(name: str, number: int) -> None:
    """Nothing to divide by is nan and no crash, whatever part of the units a bootstrap draws."""
    example = examples(name)[number]
    for value in example.benchmark.figures({}).values():
        assert math.isnan(value)
    silent = [Answer(answer.question, "", None) for answer in example.answers()]
    assert all(isinstance(value, float) for value in figures_of(example, silent).values())
    for answers in (silent, example.answers()):
        grades = results.graded(example.benchmark, answers)
        intervals = statistics.intervals(grades.units, results.figures_of(example.benchmark))
        assert "words" in intervals
        for interval in intervals.values():
            assert math.isnan(interval.value) or math.isnan(interval.low) or interval.low <= interval.high


@each_example
def test_a_judge_is_asked_until_it_is_understood(name: str, number: int) -> None:
    """A few times at the most, about each answer; no reply at all is FAILED and nobody knows; a reply that says nothing
    is not understood."""
    example = examples(name)[number]
    if not example.judges:
        assert not any(mark.verdict == FAILED for mark in example.benchmark.grade(example.answers()).marks)
        return
    judging: Any = example.benchmark
    for answer in example.answers():
        asked = [judging.ask(answer, attempt) for attempt in range(1000)]
        end = asked.index(None)
        assert asked[end:] == [None] * (1000 - end)
        for request in asked[:end]:
            assert request.turns[-1][0] in ("user", "system") and all(text for _, text in request.turns)
            assert request.max_tokens >= 1 and request.temperature >= 0
    unanswered = [Answer(answer.question, "A long enough answer.", None) for answer in example.answers()]
    grades = example.benchmark.grade(unanswered)
    assert [(mark.verdict, mark.right) for mark in grades.marks] == [(FAILED, None)] * len(unanswered)
    assert isinstance(judging.understands(unanswered[0], "?"), bool)
    odd = [Answer(answer.question, answer.text, "?") for answer in unanswered]
    if not judging.understands(odd[0], "?"):
        assert {mark.verdict for mark in example.benchmark.grade(odd).marks} == {UNPARSED}


@pytest.mark.parametrize("content", ["", "not a benchmark\n", '[{"surprise": 1}]', '{"surprise": 1}\n', "[[1]]", "{}"])
@each_benchmark
def test_a_wrong_file_is_refused_in_one_sentence(name: str, content: str, tmp_path: Path) -> None:
    """In the place of each of its files, and where all are missing."""
    (example, *_) = examples(name)
    for file in example.exam.files:
        if file.suffix == ".txt":
            continue  # a list of words may be any text
        copy = tmp_path / f"{file.name} is wrong"
        for own in example.folder.iterdir():
            copy.mkdir(exist_ok=True)
            (copy / own.name).write_bytes(own.read_bytes())
        (copy / file.name).write_text(content)
        try:
            exam = example.benchmark.read(copy / example.told["read"])
        except MinipovidError as error:
            assert str(error).endswith(".") and "\n" not in str(error)
        else:  # an empty file has no questions, which selection refuses; an empty list of words is one
            assert not exam.questions or content == "{}"
    (tmp_path / "empty").mkdir()
    with pytest.raises(MinipovidError) as error:
        _ = example.benchmark.read(tmp_path / "empty").questions
    assert str(error.value).endswith(".") and "\n" not in str(error.value)
