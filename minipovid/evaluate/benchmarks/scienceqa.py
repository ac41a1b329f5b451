"""ScienceQA: school questions with two to five choices, half of them about a picture (Lu et al., arXiv 2209.09513)

A folder as the authors' data/scienceqa: pid_splits.json, {"test": ["4", ...], ...}, and problems.json by those names:

    {"4": {"question": "Which of these states is farthest north?", "choices": ["Utah", "Iowa"], "answer": 1,
           "hint": "", "image": "image.png", "split": "test", ...}}

The picture of problem 4 is images/test/4/image.png there; with --images it is 4/image.png in that folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minipovid.common import text_files
from minipovid.common.errors import MinipovidError
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Count, Counts, Exam, Grades, Label, Mark, Mode, Tally, share
from minipovid.evaluate.reading.replies import BY_LETTER, LETTERS, chosen, lettered
from minipovid.inference.backends import Question

FILES = ("problems.json", "pid_splits.json")
_ASKED = (
    "a ScienceQA problem; it needs question, choices (2 to 5), answer (the right one's place), hint, image and split"
)
_MOST = 5  # choices, and the letters that the official script knows
_SENTENCE = re.compile(r"The answer is ([A-Z]).")


@dataclass(frozen=True)
class Benchmark:
    """`official` is LLaVA's eval_science_qa.py, with LLaVA-1.5's prompt. IMG accuracy is that about pictures."""

    mode: Mode = "official"
    split: str = "test"
    images_only: bool = True
    suffix: str = BY_LETTER
    max_tokens: Count = 1024

    source: ClassVar[str] = (
        "problems.json, pid_splits.json and images of github.com/lupantech/ScienceQA, data/scienceqa"
    )
    headline: ClassVar[Sequence[str]] = ("img_accuracy", "accuracy")
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    coverage: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[Mapping[str, Label]] = {"img_accuracy": Label("accuracy, questions with a picture")}

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        if not path.is_dir():
            raise MinipovidError(f"{path} is not a folder; ScienceQA is the folder with {' and '.join(FILES)}.")
        files = [path / name for name in FILES]
        problems, splits = (_loaded(file, self.source) for file in files)
        names = splits.get(self.split)
        if not isinstance(names, list):
            raise MinipovidError(f"{files[1]} has no split {self.split!r}; it has {', '.join(sorted(splits))}.")
        questions = list(self._questions(path, problems, names))
        about = "those about a picture" if self.images_only else "about a picture or not"
        return Exam(questions, files, [f"ScienceQA's split {self.split}: {len(questions):,} questions, {about}."])

    def _questions(self, folder: Path, problems: Mapping[str, Any], names: Sequence[Any]) -> Iterator[Question]:
        ids: set[str] = set()
        for name in map(str, names):
            if name in ids:
                raise MinipovidError(f"{folder / FILES[1]}: {self.split} holds problem {name} twice; keep one.")
            ids.add(name)
            try:
                question = self._question(folder, name, problems[name])
            except (KeyError, TypeError, ValueError, AttributeError):
                raise MinipovidError(f"{folder / FILES[0]}: {name} is not {_ASKED}.") from None
            if question.image or not self.images_only:
                yield question

    def _question(self, folder: Path, name: str, problem: Mapping[str, Any]) -> Question:
        """Raises KeyError, TypeError, ValueError or AttributeError where it is no problem."""
        choices, right = problem["choices"], problem["answer"]
        if not isinstance(choices, list) or not 2 <= len(choices) <= _MOST or right not in range(len(choices)):
            raise ValueError
        options = dict(zip(LETTERS, choices, strict=False))
        hint = problem["hint"].strip()
        prompt = (hint and f"Context: {hint}\n") + problem["question"] + lettered(options) + self.suffix
        image = f"{_pictures(folder, problem['split'])}{name}/{problem['image']}" if problem["image"] else ""
        truth = {"question": problem["question"], "options": options, "answer": LETTERS[right]}
        return Question(name, image, prompt, truth, self.max_tokens)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """Each question is a unit of its own: hardly two share a picture."""
        tally, marks = Tally(), []
        for answer in answers:
            question = answer.question
            text, options = answer.text, question.truth["options"]
            letter = official_letter(text) if self.mode == "official" else chosen(text, options)
            right = letter == question.truth["answer"]
            tally.add(question.id, answers=1, right=right)
            if question.image:
                tally.add(question.id, **{"img answers": 1, "img right": right})
            marks.append(Mark(question.id, letter or UNPARSED, right))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """Shares in [0, 1]; over all questions only where all were asked."""
        img = {"img_accuracy": share(totals.get("img right", 0.0), totals.get("img answers", 0.0))}
        everything = {"accuracy": share(totals.get("right", 0.0), totals.get("answers", 0.0))}
        return img if self.images_only else img | everything


def official_letter(answer: str) -> str | None:
    """A to E that is all of the answer or begins it with a dot and a space, or what one "The answer is X." calls it.

    The letter may be none of the choices, and is wrong then.
    """
    letter = answer[:1]
    if letter and letter in LETTERS[:_MOST] and (answer == letter or answer[1:3] == ". "):
        return letter
    named = _SENTENCE.findall(answer)
    return str(named[0]) if len(named) == 1 else None


def _loaded(file: Path, source: str) -> dict[str, Any]:
    if not file.exists():
        raise MinipovidError(f"There is no {file}; take {source}.")
    try:
        tree = json.loads(text_files.read(file, "questions"))
    except (ValueError, RecursionError) as error:
        raise MinipovidError(f"{file} cannot be read: {error}.") from None
    if not isinstance(tree, dict):
        raise MinipovidError(f"{file} is not ScienceQA's; take {source}.")
    return tree


def _pictures(folder: Path, split: str) -> str:
    """Where the split's pictures lie in the folder, and nowhere where they lie elsewhere: then --images names it."""
    return next((f"{place}/" for place in (f"images/{split}", split) if (folder / place).is_dir()), "")
