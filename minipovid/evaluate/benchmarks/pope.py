"""POPE: is this object in the picture? (Li et al., arXiv 2305.10355, section 4)

On COCO, one file per sampling rule, JSON lines despite the usual `.json`; give one, or the folder with all three:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a car in the image?", "label": "no"}

On your own pictures, a file that says what is in each, from which the questions are built by the paper's three rules:

    {"image": "kitchen.jpg", "objects": ["table", "bowl"]}

    random       absent objects, drawn evenly
    popular      the absent objects that are in most pictures
    adversarial  the absent objects that are most often together with those in the picture

Frequencies are counted over that file, or over corpus.jsonl beside it (rows with `objects`). objects.txt beside it, one
object per line, may name more objects than the pictures have. A picture with fewer than `each` objects is left out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

from minipovid.common import data_files, text_files
from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode
from minipovid.evaluate.reading.replies import says_yes
from minipovid.inference.backends import Question
from minipovid.pairs.lexicon import article

RULES = ("random", "popular", "adversarial")
# The COCO files by the beginning of their SHA-256: (published as, rule).
PUBLISHED = {
    "c16b65d2df6d70bb": ("August 2023", "random"),
    "5b16653023bf4f64": ("August 2023", "popular"),
    "1d8f0906a9b50c05": ("August 2023", "adversarial"),
    "ac25245170b975a5": ("November 2023", "random"),
    "72c1a8ad45d0c135": ("November 2023", "popular"),
    "420b3407db1fa9f1": ("November 2023", "adversarial"),
    "9e8b55064b579036": ("V-DPO's mixture", "random"),
    "047bff3adf102bcc": ("V-DPO's mixture", "popular"),
    "cc63c810141f6a7e": ("V-DPO's mixture", "adversarial"),
}
_OWN = "a picture with its objects; it needs image and objects, a list of names"
_ASKED = "a POPE question; it needs question_id, image, text and label (yes or no)"


@dataclass(frozen=True)
class Benchmark:
    """`official` is RUCAIBox's evaluate.py (and LLaVA's eval_pope.py); the suffix is LLaVA-1.5's.

    `each` (objects there, and as many that are not), `pictures` (the first so many) and `question` are for your own
    pictures.
    """

    mode: Mode = "official"
    suffix: str = "\nAnswer the question using a single word or phrase."
    max_tokens: benchmarks.Count = 128
    each: benchmarks.Count = 3
    pictures: benchmarks.Count | None = None
    question: str = "Is there {a} {object} in the image?"

    source: ClassVar[str] = "the folder output/coco of github.com/RUCAIBox/POPE"
    headline: ClassVar[Sequence[str]] = ("accuracy", "f1", "mean_f1", "false_yes")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(("false_yes",))
    coverage: ClassVar[frozenset[str]] = frozenset(("recall",))
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {
        "false_yes": benchmarks.Label("false yes", "questions about something absent that were answered yes"),
        "recall": benchmarks.Label(meaning="of what is there, the share that is found"),
        "yes_ratio": benchmarks.Label("share of yes"),
        "f1": benchmarks.Label("F1"),
        "mean_f1": benchmarks.Label("mean F1"),
    }

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        files = sorted(path.glob("*pope*.json*")) if path.is_dir() else [path]
        if not files:
            raise MinipovidError(f"{path} holds no POPE file (*pope*.json); take {self.source}.")
        if len(files) == 1 and "objects" in next(benchmarks.objects(files[0], _ASKED), ("", {}))[1]:
            return self._own(files[0])
        published = [_published(file) for file in files]
        versions = {version for version, _ in published}
        if len(versions) > 1:
            both = zip(files, published, strict=True)
            named = ", ".join(f"{file.name} is {version or 'unknown'}" for file, (version, _) in both)
            raise MinipovidError(f"{path} mixes versions of POPE ({named}); keep the files of one.")
        questions: list[Question] = []
        for file, (_, rule) in zip(files, published, strict=True):
            questions += self._questions(file, rule, f"{rule or file.stem}/" if len(files) > 1 else "")
        note = f"{path.name} is none of the published COCO files of POPE ({len(questions):,} questions)."
        if version := versions.pop():
            note = f"POPE on COCO as published in {version}, {len(questions):,} questions."
        return Exam(questions, files, [note])

    def _questions(self, file: Path, rule: str, prefix: str) -> Iterator[Question]:
        ids: set[str] = set()
        for number, row in benchmarks.objects(file, _ASKED):
            try:
                label = {"yes": "yes", "no": "no"}[row["label"].lower()]
                image, text = data_files.text(row, "image"), data_files.text(row, "text")
                truth = {"label": label, "category": row.get("category") or rule, "question": text}
                name = f"{prefix}{row['question_id']}"
                question = Question(name, image, text + self.suffix, truth, self.max_tokens)
            except (KeyError, AttributeError, TypeError, data_files.Bad):
                raise MinipovidError(f"{file}: row {number} is not {_ASKED}.") from None
            if question.id in ids:
                raise MinipovidError(f"{file}: row {number} has the question_id {question.id} of an earlier row.")
            ids.add(question.id)
            yield question

    def _own(self, file: Path) -> Exam:
        pictures = list(_annotated(file))
        if nameless := [number for number, (image, _) in enumerate(pictures, 1) if not image]:
            raise MinipovidError(f"{file}: picture {nameless[0]} has no image; name its file.")
        corpus = file.with_name("corpus.jsonl")
        counted = [names for _, names in _annotated(corpus)] if corpus.is_file() else [names for _, names in pictures]
        listed = file.with_name("objects.txt")
        names = sorted({name for names in counted for name in names})
        if listed.is_file():
            lines = text_files.read(listed, "list of objects").splitlines()
            names = [line.split(",")[0].strip() for line in lines if line.strip()]
        census = Census(counted)
        rich = [
            (image, there)
            for image, there in pictures[: self.pictures]
            if min(len(set(there)), len(set(names) - set(there))) >= self.each
        ]
        if not rich:
            raise MinipovidError(
                f"{file}: no picture has {self.each} objects, and as many absent; ask fewer: pope.each=1."
            )
        questions = [
            question
            for rule in RULES
            for number, row in enumerate(rich)
            for question in self._about(*row, rule, names, census, number)
        ]
        left = len(pictures[: self.pictures]) - len(rich)
        notes = [f"POPE's questions over {len(rich)} pictures of your own, by the paper's three rules."]
        notes += [f"{left} pictures with too few objects were left out."] if left else []
        return Exam(questions, [each for each in (file, corpus, listed) if each.is_file()], notes)

    def _about(
        self, image: str, there: Sequence[str], rule: str, names: Sequence[str], census: Census, number: int
    ) -> Iterator[Question]:
        """Yes and no in turn; what is asked about that is there is the same under every rule."""
        present = random.Random(f"{Path(image).stem} present").sample(list(there), self.each)
        absent = census.absent(there, rule, names, self.each, f"{Path(image).stem} absent")
        at = 2 * self.each * number
        for pair in zip(present, absent, strict=True):
            for name, label in zip(pair, ("yes", "no"), strict=True):
                at += 1
                text = self.question.replace("{a}", article(name)).replace("{object}", name)
                truth = {"label": label, "category": rule, "question": text}
                yield Question(f"{rule}/{at}", image, text + self.suffix, truth, self.max_tokens)

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        tally, marks = benchmarks.Tally(), []
        for answer in answers:
            truth = answer.question.truth["label"] == "yes"
            reading = official_yes(answer.text) if self.mode == "official" else says_yes(answer.text)
            cell = f"{'unread' if reading is None else 'yes' if reading else 'no'} of {'yes' if truth else 'no'}"
            tally.add(answer.question.image, **{f"{answer.question.truth['category']}/{cell}": 1})
            verdict = UNPARSED if reading is None else "yes" if reading else "no"
            marks.append(Mark(answer.question.image, verdict, reading is truth))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """Shares in [0, 1]. With several rules, each by itself, and `mean_f1`, LLaVA's headline, their mean F1."""
        by_rule: dict[str, dict[str, float]] = {}
        for key, count in totals.items():
            rule, _, cell = key.rpartition("/")
            by_rule.setdefault(rule, {})[cell] = count
        if len(by_rule) == 1:
            return _metrics(*by_rule.values())
        metrics = {rule: _metrics(counts) for rule, counts in by_rule.items()}
        mean = {"mean_f1": sum(each["f1"] for each in metrics.values()) / len(metrics)} if metrics else {}
        return mean | {f"{rule}/{name}": value for rule, each in metrics.items() for name, value in each.items()}


def official_yes(answer: str) -> bool:
    """The official reading: no if the first sentence holds the word No, no or not; anything else is a yes."""
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def _metrics(counts: Mapping[str, float]) -> dict[str, float]:
    """The official ones, and `false_yes`, FP / (FP + TN): how often an absent object is affirmed."""
    tp, fp, tn, fn = (counts.get(cell, 0.0) for cell in ("yes of yes", "yes of no", "no of no", "no of yes"))
    n = sum(counts.values())
    precision, recall = benchmarks.share(tp, tp + fp), benchmarks.share(tp, tp + fn + counts.get("unread of yes", 0.0))
    return {
        "accuracy": benchmarks.share(tp + tn, n),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else benchmarks.NAN,
        "yes_ratio": benchmarks.share(tp + fp, n),
        "false_yes": benchmarks.share(fp, fp + tn + counts.get("unread of no", 0.0)),
    }


class Census:
    """How many pictures each object is in, and each two."""

    def __init__(self, pictures: Sequence[Sequence[str]]) -> None:
        self.alone: Counter[str] = Counter()
        self.together: Counter[frozenset[str]] = Counter()
        for names in pictures:
            self.alone.update(set(names))
            self.together.update(frozenset(pair) for pair in combinations(sorted(set(names)), 2))

    def absent(self, there: Sequence[str], rule: str, names: Sequence[str], count: int, seed: str) -> list[str]:
        """So many of `names` that are not there, as the rule wants them. Equal counts stay in the order of `names`."""
        missing = [name for name in names if name not in there]
        if rule == "random":
            return random.Random(seed).sample(missing, count)
        score: Mapping[str, Callable[[str], int]] = {
            "popular": lambda name: self.alone[name],
            "adversarial": lambda name: sum(self.together[frozenset((name, other))] for other in there),
        }
        return sorted(missing, key=lambda name: -score[rule](name))[:count]


def _annotated(file: Path) -> Iterator[tuple[str, list[str]]]:
    """(image, its objects) of each row; the image may be missing where only objects are counted."""
    for number, row in benchmarks.objects(file, _OWN):
        names: Any = row.get("objects")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise MinipovidError(f"{file}: row {number} is not {_OWN}.")
        yield str(row.get("image", "")), list(dict.fromkeys(names))


def _published(file: Path) -> tuple[str, str]:
    """(version, rule); the version is empty, and the rule by the file's name, where the file is not a published one."""
    known = PUBLISHED.get(digest(file).hex()[:16])
    return known or ("", next((rule for rule in RULES if rule in file.stem), ""))
