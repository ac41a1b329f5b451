"""MM-Vet: recognition, reading, knowledge, space, arithmetic, in one question (Yu et al., arXiv 2308.02490, section 3)

A judge gives each of 218 answers a mark from 0 to 1. The file is one JSON object; pictures lie there or in images/:

    {"v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}}

<AND> stands between what must all be said, <OR> between what will do alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from minipovid.common import text_files
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode
from minipovid.evaluate.reading.replies import plain
from minipovid.inference.backends import Question

ITEMS = 218
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5)  # of the attempts; a sixth is made officially, and its reply never read
_ASKED = "a question of MM-Vet; it needs imagename, question, answer and capability (a list)"
_OUT_OF_ONE = re.compile(r"\s*/\s*1(?:\.0+)?(?![\d.])")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")

PROMPT = """You mark answers to questions about pictures. In each line of the table stand a question, the truth, an \
answer, and the mark that the answer gets: 0.0 for one that is all wrong, 1.0 for one that is all right, and 0.1, 0.2 \
and so on up to 0.9 between them. Where the truth has <AND> in it, an answer is all right only with everything that \
<AND> joins; where it has <OR>, any one of what <OR> joins is enough. Add the mark that the last line lacks, as a \
number alone.

Question | Truth | Answer | Mark
--- | --- | --- | ---
Which two fruits lie in the basket? | pear <AND> plum | There are apples in it. | 0.0
Which two fruits lie in the basket? | pear <AND> plum | A pear. | 0.5
Which two fruits lie in the basket? | pear <AND> plum | I see a pear and some cherries. | 0.5
Which two fruits lie in the basket? | pear <AND> plum | A plum beside a pear | 1.0
What is the shop called? | Blue Door <OR> The Blue Door | It is The Blue Door. | 1.0
Why is the drawing funny? | A snowman runs an ice cream van in a heat wave, and is worried about his own melting more \
than about his customers. | It shows a snowman who sells ice cream. | 0.4
Why is the drawing funny? | A snowman runs an ice cream van in a heat wave, and is worried about his own melting more \
than about his customers. | The joke is that the one who sells ice cream in the heat is made of snow himself: he looks \
at his dripping arms, not at those who wait. | 1.0
"""
AGAIN = "\nGive the mark as a number: "


@dataclass(frozen=True)
class Benchmark:
    """`official` is the authors' mm-vet_evaluator.py, with one run of the judge.

    `prompt` is the judge's, a file with the text before the last line; `again` what a repeated question ends with.
    The package has its own wording of both.
    """

    mode: Mode = "official"
    suffix: str = ""
    max_tokens: benchmarks.Count = 1024
    prompt: str = ""
    again: str = AGAIN
    judge_tokens: benchmarks.Count = 3

    source: ClassVar[str] = "mm-vet.json and images/ of the mm-vet.zip that github.com/yuweihao/MM-Vet names"
    headline: ClassVar[Sequence[str]] = ("total",)
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    coverage: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {}
    judge: ClassVar[str] = "gpt-4-0613"

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        file = benchmarks.file_in(path, self.source, "mm-vet.json")
        questions = [self._question(file, name, row) for name, row in _items(file)]
        _ = self._wording
        notes = ["MM-Vet, 218 questions, one run of the judge (the paper has the mean of five)."]
        if len(questions) != ITEMS:
            notes = [f"{file.name} has {len(questions):,} questions, and MM-Vet {ITEMS}."]
        if not self.prompt or self.again == AGAIN:
            notes.append(
                "The judge's prompt is minipovid's own wording of the published one, so the score is not official; "
                "mmvet.prompt=FILE and mmvet.again=TEXT take the official ones."
            )
        return Exam(questions, [file, *benchmarks.named(self.prompt)], notes)

    def _question(self, file: Path, name: str, row: Any) -> Question:
        try:
            truth = {
                "question": row["question"] + "",
                "answer": row["answer"] + "",
                "capabilities": sorted({str(each) for each in row["capability"]}),
            }
            image = benchmarks.in_images(file, row["imagename"])
            return Question(name, image, row["question"] + self.suffix, truth, self.max_tokens)
        except (KeyError, TypeError):
            raise MinipovidError(f"{file}: {name} is not {_ASKED}.") from None

    # --- the judge ---

    @cached_property
    def _wording(self) -> str:
        return benchmarks.wording(self.prompt, PROMPT)

    def ask(self, answer: Answer, attempt: int) -> benchmarks.Request | None:
        if attempt >= len(TEMPERATURES):
            return None
        truth = answer.question.truth
        wanted = truth["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        line = " | ".join([truth["question"], wanted, answer.text, ""])
        text = self._wording + "\n" + line + (self.again if attempt else "")
        return benchmarks.Request([("user", text)], TEMPERATURES[attempt], self.judge_tokens)

    def understands(self, answer: Answer, reply: str) -> bool:
        return self._reads(reply) is not None

    def _reads(self, reply: str) -> float | None:
        return official_mark(reply) if self.mode == "official" else robust_mark(reply)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """What could not be read is 0 officially, and left out robustly."""
        tally, marks = benchmarks.Tally(), []
        for answer in answers:
            image = answer.question.image
            mark = None if answer.judgement is None else self._reads(answer.judgement)
            verdict = FAILED if answer.judgement is None else UNPARSED if mark is None else f"{mark:g}"
            if verdict == UNPARSED and self.mode == "official":
                mark = 0.0
            tally.add(image, **({} if mark is None else _counts(answer.question.truth["capabilities"], mark)))
            marks.append(Mark(image, verdict))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """Mean marks, 0 to 1, of all questions and of those that need a capability; the paper has them times 100."""
        names = {"total": None} | {key.partition("/")[0]: None for key in totals}
        return {
            name: benchmarks.share(totals.get(f"{name}/marks", 0.0), totals.get(f"{name}/answers", 0.0))
            for name in names
        }


def _items(file: Path) -> list[tuple[str, Any]]:
    """Raises MinipovidError where the file is not an object of objects, or names a question twice."""
    try:
        pairs = json.loads(text_files.read(file, "questions"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise MinipovidError(f"{file} is not MM-Vet's mm-vet.json: {error}.") from None
    if not isinstance(pairs, _Pairs):
        raise MinipovidError(f'{file} is not MM-Vet\'s mm-vet.json: it should be one object, {{"v1_0": {{...}}, ...}}.')
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MinipovidError(f"{file} has the question {twice} twice; remove one.")
    return [(name, dict(row) if isinstance(row, _Pairs) else row) for name, row in pairs]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it is written, keys that occur twice and all."""


def _counts(capabilities: Sequence[str], mark: float) -> dict[str, float]:
    names = ("total", *capabilities)
    return {f"{name}/answers": 1 for name in names} | {f"{name}/marks": mark for name in names}


def official_mark(reply: str) -> float | None:
    """What stands before the first space, as a number from 0 to 1; nan is one as well, and spoils every sum."""
    try:
        mark = float(reply.split(" ")[0].strip())
    except ValueError:
        return None
    return None if mark > 1.0 or mark < 0.0 else mark


def robust_mark(reply: str) -> float | None:
    """The one number of the reply, if it is from 0 to 1; "0.5/1" is 0.5."""
    numbers = {float(number) for number in _NUMBER.findall(_OUT_OF_ONE.sub("", plain(reply)))}
    mark = numbers.pop() if len(numbers) == 1 else -1.0
    return mark if 0.0 <= mark <= 1.0 else None
