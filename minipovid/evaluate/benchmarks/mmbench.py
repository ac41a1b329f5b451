"""MMBench: multiple choice about a picture, asked once for each order of the options (Liu et al., arXiv 2307.06281)

A table with tabs, the pictures within it as base64; an index that is equal modulo a million is the same question with
its options rotated, and `image` may then be the index of the row that has the picture:

    index    question           hint  A    B    C    D    answer  category        l2-category        image
    241      What animal is it?       cat  dog  cow       B       object_...      coarse_perception  /9j/4AAQSk...
    1000241  What animal is it?       dog  cow  cat       A       object_...      coarse_perception  241

CircularEval counts a question as right only if it is so in every order. Test files have no answers, and only the
authors' server can score them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar

from minipovid.common.data_files import Bad, short
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode
from minipovid.evaluate.reading.replies import BY_LETTER, LETTERS, chosen, lettered
from minipovid.images import embedded
from minipovid.images.embedded import Embedded
from minipovid.inference.backends import Question

TURN = 10**6  # how far apart the indices of a question's rotations are
# VLMEvalKit's files by their MD5.
PUBLISHED = {
    "b6caf1133a01c6bb705cf753bb527ed8": "MMBench_DEV_EN",
    "08b8fc3324a5ed74155350f57be69fbd": "MMBench_DEV_CN",
    "30c05be8f2f347a50be25aa067248184": "MMBench_DEV_EN_V11",
    "593f9b5f6bea453d870a798b34ae4f37": "MMBench_DEV_CN_V11",
}
KINDS = {"l2": "l2-category", "category": "category"}  # a figure's first word, and the column
_OF = "of "  # a count's first word: how many there were
_ASKED = "a question of MMBench; it needs index, question, A, B, answer (a letter) and image (a picture as base64)"
_MISSING = frozenset(("", "nan", "none", "null", "na", "n/a", "<na>", "#n/a"))  # what pandas or LLaVA take for no text
_SIGNS = re.compile(r"[.()\[\],:;!*#{}]")
_NAMED = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)
_LAST = 4  # words of an answer, among which its letter must be


@dataclass(frozen=True)
class Benchmark:
    """`official` is VLMEvalKit's reading and CircularEval, in its exact mode: no judge is asked. The prompt is LLaVA's;
    for the Chinese files its suffix is "\\n请直接回答选项字母。".
    """

    mode: Mode = "official"
    suffix: str = BY_LETTER
    max_tokens: benchmarks.Count = 1024

    source: ClassVar[str] = "MMBench_DEV_EN.tsv of github.com/open-compass/MMBench, or mmbench_dev_20230712.tsv"
    headline: ClassVar[Sequence[str]] = ("accuracy", "vanilla_accuracy")
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    coverage: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {}

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        tables = sorted(path.glob("*.tsv")) if path.is_dir() else [path]
        if len(tables) != 1:
            raise MinipovidError(f"{path} holds {len(tables)} tables (*.tsv); name one, as {self.source}.")
        file = tables[0]
        questions = _illustrated(file, list(self._questions(file)))
        groups = {question.truth["group"] for question in questions}
        if lost := groups - {question.id for question in questions}:
            raise MinipovidError(f"{file} has rotations of question {min(lost)}, but not itself; take the whole file.")
        known = PUBLISHED.get(_md5(file), f"{file.name}, which is not one of VLMEvalKit's files")
        counted = f"{known}: {len(groups):,} questions, in all orders of their options {len(questions):,}."
        notes = [counted, "An answer that is no option is wrong: no judge is asked what it means."]
        return Exam(questions, [file], notes)

    def _questions(self, file: Path) -> Iterator[Question]:
        """The image is an Embedded, each picture but once, or the index of another row."""
        ids: set[str] = set()
        pictures: dict[str, str] = {}
        for number, row in benchmarks.objects(file, _ASKED):
            try:
                question = self._question(row)
            except (KeyError, TypeError, ValueError, Bad) as error:
                why = f" ({error})" if isinstance(error, Bad) else ""
                raise MinipovidError(f"{file}: row {number} is not {_ASKED}{why}.") from None
            if not question.truth["answer"]:
                raise MinipovidError(
                    f"{file}: row {number} has no answer, as in MMBench's test files; take a dev file."
                )
            if question.id in ids:
                raise MinipovidError(f"{file}: row {number} has the index {question.id} of an earlier row; keep one.")
            ids.add(question.id)
            yield replace(question, image=pictures.setdefault(question.image, question.image))

    def _question(self, row: Mapping[str, Any]) -> Question:
        """Raises KeyError, TypeError, ValueError or Bad where it is none."""
        index, hint = int(row["index"]), _text(row, "hint")
        options = dict(takewhile(lambda option: option[1], ((letter, _text(row, letter)) for letter in LETTERS)))
        truth = {
            "question": row["question"],
            "group": str(index % TURN),
            "options": options,
            "answer": _text(row, "answer"),
            "kinds": [f"{name}/{kind}" for name, key in KINDS.items() if (kind := _text(row, key))],
        }
        if len(options) < 2 or truth["answer"] not in ("", *options) or not row["image"]:
            raise ValueError
        prompt = (hint and f"{hint}\n") + row["question"] + lettered(options) + self.suffix
        return Question(str(index), embedded.of(row, "image"), prompt, truth, self.max_tokens)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """A unit is a question in all its orders."""
        tally, marks = benchmarks.Tally(), []
        kinds: dict[str, list[str]] = {}
        for answer in answers:
            truth = answer.question.truth
            letter = (official_choice if self.mode == "official" else chosen)(answer.text, truth["options"])
            marks.append(Mark(truth["group"], letter or UNPARSED, letter == truth["answer"]))
            kinds.setdefault(truth["group"], truth["kinds"])
            tally.add(truth["group"], **_counts("vanilla_accuracy", letter == truth["answer"]))
        wrong = {mark.unit for mark in marks if not mark.right}
        for unit, names in kinds.items():
            for name in ("accuracy", *names):
                tally.add(unit, **_counts(name, unit not in wrong))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """Shares in [0, 1] by CircularEval, of all, of each l2-category and of each category; `vanilla_accuracy` counts
        every order by itself.
        """
        names = [key.removeprefix(_OF) for key in totals if key.startswith(_OF)]
        return {name: benchmarks.share(totals.get(f"right {name}", 0.0), totals[_OF + name]) for name in sorted(names)}


def _counts(name: str, right: bool) -> dict[str, float]:
    return {_OF + name: 1, f"right {name}": float(right)}


def official_choice(answer: str, options: Mapping[str, str]) -> str | None:
    """VLMEvalKit's can_infer: the only option's letter among the words, if it is one of the last four; else what
    "answer is X" names ("answer is dog" is a D); else the only option whose text is in an answer that is not long.
    """
    words = _SIGNS.sub(" ", answer).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and letters[0] not in words[:-_LAST]:
        return letters[0]
    if not letters and "Z" in words:
        return None  # there it stands for none of the options
    named = _NAMED.search(answer)
    if named and named[1].upper() in options:
        return named[1].upper()
    text = answer.lower()
    those = [letter for letter, option in options.items() if option.lower() in text]
    is_short = len(text) <= 2 * sum(map(len, options.values()))
    return those[0] if is_short and len(those) == 1 else None


def _illustrated(file: Path, questions: Sequence[Question]) -> list[Question]:
    """Every question with its picture."""
    images = {question.id: question.image for question in questions}
    illustrated = []
    for question in questions:
        image = question.image if isinstance(question.image, Embedded) else images.get(question.image)
        if not isinstance(image, Embedded):
            raise MinipovidError(
                f"{file}: the image of {question.id} is {short(question.image)}, which is neither base64 nor the index "
                "of a row that has a picture."
            )
        illustrated.append(replace(question, image=image))
    return illustrated


def _text(row: Mapping[str, Any], key: str) -> str:
    """A cell's text; empty where a table has nothing to say."""
    cell = row.get(key)
    text = "" if cell is None else str(cell)
    return "" if text.strip().casefold() in _MISSING else text


def _md5(file: Path) -> str:
    content = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as data:
        while chunk := data.read(1 << 20):
            content.update(chunk)
    return content.hexdigest()
