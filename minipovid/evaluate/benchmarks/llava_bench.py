"""LLaVA-Bench (in the wild): how good is an answer beside GPT-4's? (Liu et al., arXiv 2304.08485, section 5.1)

A judge that reads a description of each of 24 pictures gives two marks from 1 to 10, to GPT-4's answer and to the
model's, for 60 questions; the score is the ratio of their means. The folder holds three files of JSON lines, and
pictures, there or in images/:

    questions.jsonl      {"question_id": 0, "image": "001.jpg", "text": "What is this place?", "category": "conv"}
    context.jsonl        {"image": "001.jpg", "caption": "A harbour at dusk."}
    answers_gpt4.jsonl   {"question_id": 0, "text": "A harbour.", "answer_id": "Qd3..."}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode
from minipovid.evaluate.reading.replies import plain
from minipovid.inference.backends import Question

ITEMS = 60
CATEGORIES = ("conv", "detail", "complex")
_ASKED = "a question of LLaVA-Bench; it needs question_id, image, text and category (conv, detail or complex)"
_SEEN = "a description of LLaVA-Bench; it needs image and caption"
_SAID = "a reference answer of LLaVA-Bench; it needs question_id and text"
_LABEL = re.compile(r"\b(?:assistant|answer)\s*[12]\b", re.IGNORECASE)
_OUT_OF_TEN = re.compile(r"\s*/\s*10(?:\.0+)?(?![\d.])")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w%])")

SYSTEM = "You compare answers of assistants, fairly and to the point."
RULE = """Two assistants answered the question above, which a user asked about a picture. You cannot see the picture; \
the context describes it in words. Mark each answer from 1 to 10: a higher mark for one that helps the user more, that \
keeps to the question, that is right, and that goes into as much detail as is wanted.
Write the two marks first, the first assistant's before the second's, with one space between them and nothing else on \
that line. Below it, explain the marks. Which answer stands first must make no difference."""


class Rule(NamedTuple):
    """What the judge is told for a category, and what it calls those who answered."""

    role: str
    prompt: str


@dataclass(frozen=True)
class Benchmark:
    """`official` is LLaVA's eval_gpt_review_bench.py and summarize_gpt_review.py.

    `rule` names LLaVA's rule.json, `system` is the judge's system message: the package has its own wording of both.
    `reference` is the file with the answers to compare with.
    """

    mode: Mode = "official"
    suffix: str = ""
    max_tokens: benchmarks.Count = 1024
    rule: str = ""
    system: str = SYSTEM
    reference: str = "answers_gpt4.jsonl"
    judge_tokens: benchmarks.Count = 1024

    source: ClassVar[str] = "the folder huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
    headline: ClassVar[Sequence[str]] = ("score",)
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    coverage: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {"score": benchmarks.Label(is_score=True)}
    judge: ClassVar[str] = "gpt-4-0314"

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        file = benchmarks.file_in(path, self.source, "questions.jsonl")
        context, answers = self._beside(file, "context.jsonl"), self._beside(file, self.reference)
        captions = {row["image"]: row["caption"] for row in _rows(context, _SEEN, "image", "caption")}
        rows = _rows(file, _ASKED, "question_id", "image", "text", "category")
        references = self._references(answers, rows)
        questions = [
            self._question(file, row, captions, reference) for row, reference in zip(rows, references, strict=True)
        ]
        ids: set[str] = set()
        for question in questions:
            if question.id in ids:
                raise MinipovidError(f"{file} has the question_id {question.id} twice; remove one.")
            ids.add(question.id)
        _ = self._rules
        files = [file, context, answers, *benchmarks.named(self.rule)]
        return Exam(questions, files, self._notes(file, len(questions)))

    def _notes(self, file: Path, count: int) -> list[str]:
        notes = ["LLaVA-Bench (in the wild), 60 questions."]
        if count != ITEMS:
            notes = [f"{file.name} has {count:,} questions, and LLaVA-Bench {ITEMS}."]
        if not self.rule or self.system == SYSTEM:
            notes.append(
                "What the judge is told is minipovid's own wording of the published rule, so the score is not "
                "official; llava_bench.rule=rule.json and llava_bench.system=TEXT take the official ones."
            )
        return notes

    def _beside(self, file: Path, name: str) -> Path:
        path = file.parent / Path(name).expanduser()
        if not path.is_file():
            raise MinipovidError(f"There is no {path}; LLaVA-Bench needs it beside {file.name}: take {self.source}.")
        return path

    def _references(self, file: Path, questions: Sequence[Mapping[str, Any]]) -> list[str]:
        """Officially by line, robustly by id."""
        rows = _rows(file, _SAID, "question_id", "text")
        if self.mode == "official":
            if len(rows) != len(questions):
                raise MinipovidError(
                    f"{file} has {len(rows):,} answers to {len(questions):,} questions, and they belong together line "
                    "by line; take the file that belongs to the questions."
                )
            return [row["text"] for row in rows]
        by_id = {row["question_id"]: row["text"] for row in rows}
        missing = next((row["question_id"] for row in questions if row["question_id"] not in by_id), None)
        if missing is not None:
            raise MinipovidError(
                f"{file} has no answer to question {missing}; take the file that belongs to the questions."
            )
        return [by_id[row["question_id"]] for row in questions]

    def _question(self, file: Path, row: Mapping[str, Any], captions: Mapping[str, Any], reference: str) -> Question:
        name, image = str(row["question_id"]), row["image"]
        if row["category"] not in CATEGORIES:
            raise MinipovidError(f"{file}: question {name} is not {_ASKED}.")
        if image not in captions:
            raise MinipovidError(f"{file}: the picture {image} of question {name} is not described in context.jsonl.")
        truth = {
            "category": row["category"],
            "question": row["text"],
            "context": self._context(captions[image]),
            "reference": reference,
        }
        return Question(name, benchmarks.in_images(file, image), row["text"] + self.suffix, truth, self.max_tokens)

    def _context(self, caption: str | Sequence[str]) -> str:
        """The sentences of a list, a line each.

        The published captions are plain texts, and the official script treats them as lists of their letters: the
        judge reads one letter a line. That is kept officially, and not robustly.
        """
        return caption if self.mode == "robust" and isinstance(caption, str) else "\n".join(caption)

    # --- the judge ---

    @cached_property
    def _rules(self) -> Mapping[str, Rule]:
        """By category."""
        if not self.rule:
            return dict.fromkeys(CATEGORIES, Rule("Assistant", RULE))
        try:
            tree = json.loads(benchmarks.wording(self.rule, ""))
            rules = {each: tree[f"llava_bench_{each}"] for each in CATEGORIES}
            return {each: Rule(rule["role"] + "", rule["prompt"] + "") for each, rule in rules.items()}
        except (ValueError, LookupError, TypeError):
            raise MinipovidError(
                f"{self.rule} is not LLaVA's rule.json; it needs llava_bench_conv, llava_bench_detail and "
                "llava_bench_complex, each with role and prompt."
            ) from None

    def ask(self, answer: Answer, attempt: int) -> benchmarks.Request | None:
        """Once, as the official script does."""
        if attempt:
            return None
        truth = answer.question.truth
        role, prompt = self._rules[truth["category"]]
        sections = [
            f"[Context]\n{truth['context']}",
            f"[Question]\n{truth['question']}",
            f"[{role} 1]\n{truth['reference']}\n\n[End of {role} 1]",
            f"[{role} 2]\n{answer.text}\n\n[End of {role} 2]",
            f"[System]\n{prompt}",
        ]
        user = "".join(f"{section}\n\n" for section in sections)
        return benchmarks.Request([("system", self.system), ("user", user)], 0.2, self.judge_tokens)

    def understands(self, answer: Answer, reply: str) -> bool:
        return self._reads(reply) is not None

    def _reads(self, reply: str) -> tuple[float, float] | None:
        return official_marks(reply) if self.mode == "official" else robust_marks(reply)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """What could not be read is -1 and -1 officially, and averaged in; robustly it is left out."""
        tally, marks = benchmarks.Tally(), []
        for answer in answers:
            image = answer.question.image
            both = None if answer.judgement is None else self._reads(answer.judgement)
            verdict = FAILED if answer.judgement is None else UNPARSED if both is None else "{:g} : {:g}".format(*both)
            if verdict == UNPARSED and self.mode == "official":
                both = (-1.0, -1.0)
            counts = {} if both is None else dict(zip(_KINDS, (1.0, *both), strict=True))
            tally.add(image, **{f"{answer.question.truth['category']}/{kind}": n for kind, n in counts.items()})
            marks.append(Mark(image, verdict))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """In the script's units, 100 for an answer as good as the reference: `score`, and one for each category.

        `reference` and `model` are ten times the mean marks. Officially means are rounded to three decimals before
        they are divided, and all to one in the end.
        """
        figures: dict[str, float] = {}
        for name in ("", *sorted({key.partition("/")[0] for key in totals})):
            keys = [key for key in totals if key.startswith(f"{name}/")] if name else list(totals)
            sums = {kind: sum(totals[key] for key in keys if key.endswith(f"/{kind}")) for kind in _KINDS}
            means = [self._rounded(benchmarks.share(sums[kind], sums["answers"]), 3) for kind in ("reference", "model")]
            figures[name or "score"] = self._rounded(benchmarks.share(means[1], means[0]) * 100, 1)
            if not name:
                figures |= {
                    kind: self._rounded(mean * 10, 1) for kind, mean in zip(("reference", "model"), means, strict=True)
                }
        return figures

    def _rounded(self, value: float, digits: int) -> float:
        return round(value, digits) if self.mode == "official" else value


_TYPES: Mapping[str, type | tuple[type, ...]] = {"question_id": (int, str), "caption": (str, list)}
_KINDS = ("answers", "reference", "model")


def _rows(file: Path, what: str, *columns: str) -> list[dict[str, Any]]:
    """Raises MinipovidError for a row that lacks a column."""
    rows = []
    for number, row in benchmarks.objects(file, what):
        if not all(isinstance(row.get(column), _TYPES.get(column, str)) for column in columns):
            raise MinipovidError(f"{file}: row {number} is not {what}.")
        rows.append(row)
    return rows


def official_marks(reply: str) -> tuple[float, float] | None:
    """The first line, if it is two numbers with one space or one comma between them."""
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    try:
        return (float(words[0]), float(words[1])) if len(words) == 2 else None
    except ValueError:
        return None


def robust_marks(reply: str) -> tuple[float, float] | None:
    """The two numbers of the first line that has any, or of the first two lines that have one each; 0 to 10 both."""
    text = _OUT_OF_TEN.sub("", _LABEL.sub("", plain(reply)))
    lines = [numbers for line in text.splitlines() if (numbers := [float(each) for each in _NUMBER.findall(line)])]
    if len(lines) > 1 and len(lines[0]) == len(lines[1]) == 1:
        lines = [lines[0] + lines[1]]
    first, second = lines[0] if lines and len(lines[0]) == 2 else (benchmarks.NAN, benchmarks.NAN)
    return (first, second) if 0 <= first <= 10 and 0 <= second <= 10 else None
