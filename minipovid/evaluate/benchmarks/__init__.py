"""HOW IT IS EXAMINED: one file per benchmark, named as on the command line; this page holds what they share.

    benchmark = build("pope", {"mode": "robust"})
    exam = benchmark.read(Path("coco_pope_adversarial.json"))
    grades = benchmark.grade(answers)
    benchmark.figures(total(grades.units))

A file here defines `Benchmark`, a frozen dataclass as the protocol below has it, and nothing else need be edited;
scienceqa.py is the neighbour to begin from, mmvet.py where a judge reads the answers (Judging). Its docstring names the
paper and shows a row of each file. It is pure: it reads its files and scores answers, and knows no model. `grade` and
`figures` are apart so that intervals and paired tests can draw the units again: every figure is a function of sums over
units.

A score is `official`, the official script's number with its quirks, or `robust`, which reads answers sensibly and says
how many it could not read. A benchmark raises its class variable `version` (1 where there is none) when it reads
answers otherwise than before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from minipovid.common import data_files, shelf, text_files
from minipovid.common.errors import MinipovidError
from minipovid.evaluate.reading.english import Mention
from minipovid.inference.backends import Question
from minipovid.recipe.schema import Count as Count  # an option that is a number of something
from minipovid.recipe.strict import validated

NAN = float("nan")
UNPARSED, FAILED = "unparsed", "failed"  # verdicts with a meaning of their own: not understood; no judge replied
_FILE = data_files.Purpose("benchmark's file", "name the benchmark's file")
Mode = Literal["official", "robust"]
Counts = Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What a backend answered, and what a judge replied about it; None where none was asked or none replied."""

    question: Question
    text: str
    judgement: str | None = None


class Mark(NamedTuple):
    """How one answer was read. What shares a `unit` (a picture, a set of questions) is not independent."""

    unit: str
    verdict: str  # "yes", "B", "2 of 5 absent", UNPARSED, FAILED, ...
    right: bool | None = None  # None: there is no such thing (a description), or nobody knows (FAILED)
    wrong: tuple[tuple[int, int], ...] = ()  # characters [start, end) of the answer that name what is not there


class Grades(NamedTuple):
    """All answers, graded: a mark for each, and what each unit adds to the sums that the figures are made of."""

    marks: Sequence[Mark]
    units: Mapping[str, Counts]


class Exam(NamedTuple):
    """A benchmark's questions, the files they came from, and what a reader should know of them."""

    questions: Sequence[Question]
    files: Sequence[Path]
    notes: Sequence[str] = ()  # one sentence each: which version, what is not official about it


class Label(NamedTuple):
    """What a reader calls a figure."""

    name: str = ""  # empty: as the benchmark calls it, with spaces
    meaning: str = ""  # one clause that says what it counts; empty where the name says it
    is_score: bool = False  # no share, whatever its size


class Benchmark(Protocol):
    """A file here has a frozen dataclass of this name; its fields are the options that users set."""

    source: ClassVar[str]  # where its files come from, as a clause: "output/coco of github.com/RUCAIBox/POPE"
    headline: ClassVar[Sequence[str]]  # figures of the overview; "f1" stands for "adversarial/f1" as well
    lower_is_better: ClassVar[Set[str]]  # likewise
    coverage: ClassVar[Set[str]]  # likewise: what a model loses that says less, such as recall
    labels: ClassVar[Mapping[str, Label]]  # likewise; a figure without one keeps its name

    def read(self, path: Path) -> Exam:
        """Raises MinipovidError where the file or folder is not this benchmark's, saying what it should be."""

    def grade(self, answers: Sequence[Answer]) -> Grades: ...

    def figures(self, totals: Counts) -> dict[str, float]:
        """From the sums of the units' counts; nan where the official script divides by zero."""


class Request(NamedTuple):
    """What a judge is asked: turns of (role, text), and how it decodes."""

    turns: Sequence[tuple[Literal["system", "user", "assistant"], str]]
    temperature: float = 0.0
    max_tokens: int = 1024


@runtime_checkable
class Judging(Protocol):
    """What a benchmark has beside that, where a judge model reads the answers.

    `ask` is called with attempt 0, 1, ... until it returns None or `understands` the reply to it.
    """

    @property
    def judge(self) -> str:
        """The official script's judge model; empty where no judge is asked, as the options are set."""

    def ask(self, answer: Answer, attempt: int) -> Request | None: ...

    def understands(self, answer: Answer, reply: str) -> bool: ...


# --- what they share ---


def build(name: str, options: Mapping[str, Any]) -> Benchmark:
    """The benchmark of a file on the shelf. Raises MinipovidError for an unknown name or option, or a wrong value."""
    module = shelf.load("evaluate.benchmarks", name)
    return validated(module.Benchmark, options, name, f"the benchmark {name}")  # type: ignore[no-any-return]


def total(units: Mapping[str, Counts]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for counts in units.values():
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


class Tally:
    """Counts by unit, while answers are graded."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, float]] = {}

    def add(self, unit: str, **counts: float) -> None:
        """A unit is there from its first answer on, even where that counts nothing."""
        sums = self.units.setdefault(unit, {})
        for name, value in counts.items():
            sums[name] = sums.get(name, 0.0) + value


def share(part: float, whole: float) -> float:
    """nan where there is nothing to divide by."""
    return part / whole if whole else NAN


def objects(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSON list, JSON lines or a table, with their numbers.

    Raises MinipovidError, saying that it should be `what`, for a row that is none.
    """
    for number, row in data_files.rows(path, _FILE):
        if not isinstance(row, dict):
            raise MinipovidError(f"{path}: row {number} is not {what}.")
        yield number, row


def described(unit: str, mentions: Sequence[Mention], absent: Sequence[Mention]) -> Mark:
    """The mark of a description: how many of the things that it names are not there, and where it names them."""
    where = tuple((mention.start, mention.end) for mention in absent if mention.end > mention.start)
    return Mark(unit, f"{len(absent)} of {len(mentions)} absent", None, where)


def file_in(path: Path, source: str, *names: str) -> Path:
    """The file itself, or the first of these names in a folder. Raises MinipovidError, saying where to get it."""
    if not path.is_dir():
        return path
    file = next((path / name for name in names if (path / name).is_file()), None)
    if file is None:
        raise MinipovidError(f"{path} holds no {' or '.join(names)}; take {source}.")
    return file


def in_images(file: Path, name: str) -> str:
    """A picture's path beside its data file: in the folder images/, as the archives unpack, or bare."""
    return f"images/{name}" if (file.parent / "images").is_dir() else name


def wording(file: str, own: str, *blanks: str) -> str:
    """A judge's prompt: the file's, or our own where none is named. Each {} in it is for one of the blanks.

    Raises MinipovidError where the file cannot be read or has another number of {}.
    """
    if not file:
        return own
    text = text_files.read(Path(file).expanduser(), "judge's prompt")
    if blanks and text.count("{}") != len(blanks):
        raise MinipovidError(f"The judge's prompt {file} needs {{}} {len(blanks)} times, for {', '.join(blanks)}.")
    return text


def named(*files: str) -> list[Path]:
    """Those of the options' files that are named."""
    return [Path(file).expanduser() for file in files if file]


def filled(wording: str, *texts: str) -> str:
    """The blanks filled in order; braces within a text stay what they are."""
    parts = wording.split("{}")
    return "".join(part + text for part, text in zip(parts, [*texts, ""], strict=True))
