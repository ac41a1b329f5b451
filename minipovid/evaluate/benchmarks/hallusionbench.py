"""HallusionBench: does the model look, or does it say what it always says? (Guan et al., arXiv 2310.14566)

The same question is put about a picture, about an edited one and, where it can be, without any. HallusionBench.json is
a JSON list; `filename` is null where the question is about text alone:

    {"category": "VS", "subcategory": "table", "visual_input": "2", "set_id": "7", "figure_id": "2", "question_id": "0",
     "question": "According to the table, is the number of gold medals of Norway 16 in winter Olympics in 2022?",
     "gt_answer": "1", "gt_answer_details": "The number of gold medals of Norway is 16.",
     "filename": "./VS/table/7_2.png"}

VD questions depend on the picture; VS questions have one as a supplement (figure 0 is without), and there whoever does
not know is right to say so. What was done to a picture is its `visual_input`: 1 nothing, 2 edited.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode
from minipovid.evaluate.reading.replies import plain, says_yes
from minipovid.inference.backends import Question

NAME = "HallusionBench.json"
PUBLISHED = "ca6e0fb677dd56e5"  # the beginning of its SHA-256
PARTS = ("VD", "VS")
KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
# The groups of answers that are right only together: which answers, and what the members share beside their set.
GROUPS = {"question": "question_id", "easy": "question_id", "hard": "question_id", "figure": "figure_id"}
_ASKED = (
    "a question of HallusionBench; it needs category (VD or VS), subcategory, set_id, figure_id, question_id, "
    "visual_input (0, 1 or 2), question, gt_answer (0 or 1), gt_answer_details and filename"
)
_BLANKS = ("the question", "the correct answer", "the answer to read")
_KNOW = r"(?:answer(?:ed)?|determin\w+|tell|say|verif\w+|confirm\w*|judge|know)"
_UNSURE = re.compile(
    rf"\b(?:can(?:not| not|'t)|(?:im|not )possible to|unable to|not able to)(?: \w+ly)? (?:be )?{_KNOW}\b"
    r"|\bi (?:do not|don't) (?:know|have)\b|\b(?:not |un)(?:sure|certain|clear)\b"
    r"|\b(?:not enough|insufficient|no) (?:information|context|data)\b"
)
_REPLY = re.compile(r"\b(incorrect|(?:not|isn't)(?: \w+)? correct|correct(?! answer)|unclear)\b")

PROMPT = """You check what somebody answered to a question. You get the question, the correct answer and the answer \
that was given; the picture that the question may be about you do not need.

Reply with one word:
correct - the answer that was given agrees with the correct one, however short it is
incorrect - it contradicts the correct one
unclear - it does not say, or says both, or says that it cannot know

Question: {}
Correct answer: {}
Given answer: {}
One word:"""


@dataclass(frozen=True)
class Benchmark:
    """`scorer: judge` is the official script, but for the words it asks its judge with; `rule` reads yes and no.

    `official` counts what cannot be read as unclear, the script's third verdict, which is right where the question has
    no picture; read robustly it is wrong (rule) or left out (judge). `prompt` is the judge's, a file with {} three
    times. The bare question is what was published; how long an answer may be was not.
    """

    mode: Mode = "official"
    scorer: Literal["rule", "judge"] = "rule"
    suffix: str = ""
    max_tokens: benchmarks.Count = 512
    prompt: str = ""
    judge_tokens: benchmarks.Count = 1024

    source: ClassVar[str] = "HallusionBench.json and hallusion_bench.zip of github.com/tianyi-lab/HallusionBench"
    headline: ClassVar[Sequence[str]] = ("a_acc", "q_acc", "f_acc")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(("f_wrong", "f_inconsistent"))
    coverage: ClassVar[frozenset[str]] = frozenset()
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {
        "a_acc": benchmarks.Label("accuracy per answer"),
        "q_acc": benchmarks.Label("accuracy per question"),
        "f_acc": benchmarks.Label("accuracy per figure"),
    }

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        file = benchmarks.file_in(path, self.source, NAME)
        questions = list(self._questions(file))
        _ = self._wording
        files = [file, *([Path(self.prompt)] if self.prompt else [])]
        bare = sum(not question.image for question in questions)
        known = digest(file).hex().startswith(PUBLISHED)
        name = "HallusionBench as published in November 2023" if known else f"{file.name} is not the published file"
        note = f"{name}: {len(questions):,} questions, {bare:,} of them about no picture."
        return Exam(questions, files, [note, self._caution])

    def _questions(self, file: Path) -> Iterator[Question]:
        ids: set[str] = set()
        for number, row in benchmarks.objects(file, _ASKED):
            try:
                truth = _truth(row)
                image = "" if row["filename"] is None else PurePosixPath(row["filename"]).as_posix()
                question = Question(
                    "_".join(truth[key] for key in KEYS), image, row["question"] + self.suffix, truth, self.max_tokens
                )
            except (KeyError, TypeError, ValueError):
                raise MinipovidError(f"{file}: row {number} is not {_ASKED}.") from None
            if question.id in ids:
                raise MinipovidError(f"{file}: row {number} is {question.id}, as an earlier row is; keep one of them.")
            ids.add(question.id)
            yield question

    @property
    def _caution(self) -> str:
        """What is not official."""
        if self.scorer == "rule":
            return (
                "Answers are read by rule, yes or no, so the score is not official: the authors' script asks gpt-4 "
                "(hallusionbench.scorer=judge)."
            )
        if self.prompt:
            return "The judge decodes at temperature 0, the authors' at the default of OpenAI's API."
        return (
            "The judge's prompt is minipovid's own wording, so the score is not official; "
            "hallusionbench.prompt=FILE takes another."
        )

    # --- the judge ---

    @property
    def judge(self) -> str:
        return "gpt-4" if self.scorer == "judge" else ""

    @cached_property
    def _wording(self) -> str:
        return benchmarks.wording(self.prompt, PROMPT, *_BLANKS)

    def ask(self, answer: Answer, attempt: int) -> benchmarks.Request | None:
        """Once: at temperature 0 a judge only repeats itself."""
        if attempt or not self.judge:
            return None
        truth = answer.question.truth
        text = benchmarks.filled(self._wording, truth["question"], truth["details"], answer.text)
        return benchmarks.Request([("user", text)], 0.0, self.judge_tokens)

    def understands(self, answer: Answer, reply: str) -> bool:
        return self.mode == "official" or robust_verdict(reply) is not None

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        """A unit is a set, whose pictures and questions belong together: no group reaches beyond it."""
        tally, marks = benchmarks.Tally(), [self._mark(answer) for answer in answers]
        groups: dict[tuple[str, ...], list[bool | None]] = {}
        for answer, mark in zip(answers, marks, strict=True):
            truth = answer.question.truth
            tally.add(mark.unit, **({} if mark.right is None else _counts(truth, mark.right)))
            for kind in _kinds(truth):
                key = (kind, truth["category"], mark.unit, truth[GROUPS[kind]])
                groups.setdefault(key, []).append(mark.right)
        for (kind, part, unit, _), rights in groups.items():
            if None not in rights:  # else nobody knows
                state = "right" if all(rights) else "mixed" if any(rights) else "wrong"
                tally.add(unit, **{f"{part}/{kind}": 1, f"{part}/{kind} {state}": 1})
        return Grades(marks, tally.units)

    def _mark(self, answer: Answer) -> Mark:
        truth = answer.question.truth
        unit = "_".join(truth[key] for key in ("category", "subcategory", "set_id"))
        if self.judge:
            verdict = self._verdict(answer.judgement)
            right = verdict == "correct" or (verdict == "unclear" and _is_bare(truth))
            return Mark(unit, verdict, None if verdict in (FAILED, UNPARSED) else right)
        reading = rule(answer.text)
        if reading in ("yes", "no"):
            return Mark(unit, reading, (reading == "yes") == (truth["answer"] == "1"))
        return Mark(unit, reading, _is_bare(truth) and (reading == "unclear" or self.mode == "official"))

    def _verdict(self, reply: str | None) -> str:
        """correct, incorrect, unclear, UNPARSED or FAILED."""
        if reply is None:
            return FAILED
        if self.mode == "official":
            return official_verdict(reply)
        return robust_verdict(reply) or UNPARSED

    def figures(self, totals: Counts) -> dict[str, float]:
        """Shares in [0, 1]: of answers that are right (a); of questions answered rightly about each of their pictures
        (q), `easy` without and `hard` with edited pictures alone; of pictures with every answer right (f). VD and VS
        also by themselves. `f_inconsistent` and `f_wrong` are pictures with some, and with no right answer.

        The script's yes/no bias: `pct_diff`, the share of answers yes less that of truths; `fp_ratio`, what share of
        the wrong answers say yes (.5: no bias). It takes a wrong answer, unclear ones too, for the truth's opposite.
        """

        def ratio(part: str, whole: str, *parts: str) -> float:
            among = parts or PARTS
            return benchmarks.share(
                *(sum(totals.get(f"{each}/{name}", 0.0) for each in among) for name in (part, whole))
            )

        names = {"a": ("right", "answers"), "q": ("question right", "question"), "f": ("figure right", "figure")}
        return {
            **{f"{name}_acc": ratio(*keys) for name, keys in names.items()},
            "easy": ratio("easy right", "easy"),
            "hard": ratio("hard right", "hard"),
            "f_inconsistent": ratio("figure mixed", "figure"),
            "f_wrong": ratio("figure wrong", "figure"),
            "pct_diff": ratio("yes", "answers") - ratio("truth yes", "answers"),
            "fp_ratio": ratio("false yes", "mistakes"),
            **{f"{part.lower()}_{name}_acc": ratio(*keys, part) for part in PARTS for name, keys in names.items()},
        }


def _truth(row: Mapping[str, Any]) -> dict[str, str]:
    """Raises KeyError, TypeError or ValueError where something is missing or has a value that it cannot have."""
    truth = {key: str(row[key]) for key in (*KEYS, "visual_input")}
    truth |= {
        "question": row["question"] + "",
        "details": row["gt_answer_details"] + "",
        "answer": str(row["gt_answer"]),
    }
    allowed = {"category": PARTS, "visual_input": "012", "answer": "01"}
    if any(truth[key] not in tuple(values) for key, values in allowed.items()):
        raise ValueError
    return truth


def _is_bare(truth: Mapping[str, str]) -> bool:
    """Whether the question has no picture, so that not to know is right."""
    return truth["category"] == "VS" and truth["figure_id"] == "0"


def _kinds(truth: Mapping[str, str]) -> list[str]:
    """The groups that an answer belongs to."""
    picture = [] if _is_bare(truth) else ["figure"]
    return ["question", "hard" if truth["visual_input"] == "2" else "easy", *picture]


def _counts(truth: Mapping[str, str], right: bool) -> dict[str, float]:
    is_yes = truth["answer"] == "1"
    counts = {
        "answers": 1,
        "right": right,
        "truth yes": is_yes,
        "yes": right is is_yes,
        "mistakes": not right,
        "false yes": not right and not is_yes,
    }
    return {f"{truth['category']}/{name}": float(value) for name, value in counts.items()}


def official_verdict(reply: str) -> str:
    """incorrect, else correct, if the reply holds that word ("not correct" is correct), else unclear."""
    words = reply.lower()
    return next((word for word in ("incorrect", "correct") if word in words), "unclear")


def robust_verdict(reply: str) -> str | None:
    """The one verdict that the reply names."""
    words = _REPLY.findall(plain(reply).lower().replace("’", "'"))
    verdicts = {"incorrect" if word.endswith(" correct") else word for word in words}
    return verdicts.pop() if len(verdicts) == 1 else None


def rule(answer: str) -> str:
    """yes, no, unclear (it says that it does not know) or UNPARSED."""
    words = answer.casefold().replace("’", "'")
    if not re.match(r"\W*(?:yes|no)\b", words) and _UNSURE.search(words):
        return "unclear"
    reading = says_yes(answer)
    return UNPARSED if reading is None else "yes" if reading else "no"
