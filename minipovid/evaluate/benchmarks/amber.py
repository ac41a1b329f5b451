"""AMBER: descriptions, and yes/no questions about existence, attributes and relations. (Wang et al., arXiv 2311.07397)

The folder has the repository's query_generative.json, query_discriminative.json (or a folder query/ with them),
annotations.json, relation.json (words that may stand for a word) and safe_words.txt:

    {"id": 1005, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"}
    {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"}
    {"id": 1, "type": "generative", "truth": ["sky", "grass"], "hallu": ["cloud", "dog"]}

The script compares words by the similarity of spaCy's en_core_web_lg. Its words are a closed list, so a table of the
pairs above 0.8, made once, says the same; `similarity` names that file, two words per line with a comma between:

    import itertools, json, spacy
    nlp, relation = spacy.load("en_core_web_lg"), json.load(open("relation.json"))
    words = {word: nlp(word) for key, others in relation.items() for word in (key, *others)}
    for one, other in itertools.combinations(words, 2):
        if words[one].similarity(words[other]) > 0.8:
            print(one, other, sep=", ")
"""

from __future__ import annotations

import json
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, TypedDict

from minipovid.common import text_files
from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Counts, Exam, Grades, Mark, Mode, described
from minipovid.evaluate.reading import english
from minipovid.evaluate.reading.english import Mention, Names
from minipovid.evaluate.reading.replies import says_yes
from minipovid.inference.backends import Question

Similar = Callable[[str, str], bool]
AmberPart = Literal["generative", "discriminative"]
PARTS: tuple[AmberPart, ...] = ("generative", "discriminative")
# What annotations.json calls the questions, and what they are about.
KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
_ATTRIBUTES = ("state", "number", "action")
_GROUPS = {name: (name,) for name in ("existence", *_ATTRIBUTES, "relation")} | {"attribute": _ATTRIBUTES}
_START = 0.001  # metrics.txt: where every denominator of the script begins
_ASKED = "an AMBER question; it needs id, image and query"
_TOLD = "an AMBER annotation; it needs id, type and truth (yes or no, or a list of words), a description hallu too"
# The published files by the beginning of their SHA-256.
PUBLISHED = {
    "annotations.json": "db22a436c4836fbb",
    "relation.json": "c4c1491e9bbc3209",
    "safe_words.txt": "f92cf1123f4578a2",
    "query_generative.json": "b7e4c36596126ee3",
    "query_discriminative.json": "1502887ac020f4bb",
}


@dataclass(frozen=True)
class Benchmark:
    """`official` is the repository's inference.py; `robust` reads yes and no wherever they stand, finds nouns by the
    word list in any case and without NLTK, and rounds nothing.

    `part`: both, or one. `similarity`: which words are as good as the same: `equal`, or the table described above.
    `suffix` goes behind the yes/no questions: as published, none.
    """

    mode: Mode = "official"
    part: Literal["all", "generative", "discriminative"] = "all"
    similarity: str = "equal"
    suffix: str = ""
    max_tokens: benchmarks.Count = 1024

    source: ClassVar[str] = "the folder data of github.com/junyangwang0410/AMBER"
    headline: ClassVar[Sequence[str]] = ("chair", "cover", "hal", "cog", "accuracy", "f1", "amber")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(("chair", "hal", "cog"))
    coverage: ClassVar[frozenset[str]] = frozenset(("cover",))
    labels: ClassVar[Mapping[str, benchmarks.Label]] = {
        "chair": benchmarks.Label("CHAIR"),
        "cover": benchmarks.Label("coverage", "of what is there, the share that is named"),
        "hal": benchmarks.Label("answers with a hallucination"),
        "cog": benchmarks.Label("cognition (imagined objects)"),
        "amber": benchmarks.Label("AMBER score"),
        "recall": benchmarks.Label(meaning="of what is there, the share that is found"),
        "f1": benchmarks.Label("F1"),
    }

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        folder = path if path.is_dir() else path.parent
        parts = PARTS if self.part == "all" else (self.part,)
        annotations = _annotations(self._file(folder, "annotations.json"))
        queries = {part: self._file(folder, f"query_{part}.json", f"query/query_{part}.json") for part in parts}
        files = [folder / "annotations.json", *queries.values()]
        scenes = None
        if "generative" in parts:
            lists = self._file(folder, "relation.json"), self._file(folder, "safe_words.txt")
            files += [*lists, *([] if self.similarity == "equal" else [Path(self.similarity).expanduser()])]
            scenes = _scenes(*lists, similar_words(self.similarity), self.mode)
        questions = [question for file in queries.values() for question in self._questions(file, annotations, scenes)]
        ids: set[str] = set()
        for question in questions:
            if question.id in ids:
                raise MinipovidError(
                    f"{folder} asks question {question.id} twice; take its files as they were published."
                )
            ids.add(question.id)
        return Exam(questions, files, list(self._notes(files, len(questions), scenes is not None)))

    def _file(self, folder: Path, *names: str) -> Path:
        return benchmarks.file_in(folder, self.source, *names)

    def _questions(self, file: Path, annotations: Mapping[str, Truth], scenes: Scenes | None) -> Iterator[Question]:
        for number, row in benchmarks.objects(file, _ASKED):
            image, query, truth = row.get("image"), row.get("query"), annotations.get(str(row.get("id")))
            if not isinstance(image, str) or not isinstance(query, str):
                raise MinipovidError(f"{file}: row {number} is not {_ASKED}.")
            if truth is None:
                raise MinipovidError(
                    f"{file}: row {number} has the id {row.get('id')}, which annotations.json has not."
                )
            suffix = self.suffix if "kind" in truth else ""
            known = {**truth, "scenes": scenes, "question": query}
            yield Question(str(row["id"]), image, query + suffix, known, self.max_tokens)

    def _notes(self, files: Sequence[Path], count: int, described: bool) -> Iterator[str]:
        known = [file for file in files if file.name in PUBLISHED]
        other = [file.name for file in known if digest(file).hex()[:16] != PUBLISHED[file.name]]
        yield f"AMBER, {count:,} questions" + (
            f"; not as published: {', '.join(other)}." if other else ", as published."
        )
        if described and self.mode == "robust":
            yield "Nouns are found by minipovid's own rules, not by NLTK."
        if described and self.similarity == "equal":
            yield "Words are compared for equality: without en_core_web_lg's similar words no figure is official."

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        tally = benchmarks.Tally()
        marks = [
            self._replied(each, tally) if "kind" in each.question.truth else _described(each, tally) for each in answers
        ]
        return Grades(marks, tally.units)

    def _replied(self, answer: Answer, tally: benchmarks.Tally) -> Mark:
        """A yes or no. The script's positive class is no; what is neither is wrong, and no "no"."""
        unit, kind = answer.question.image, answer.question.truth["kind"]
        truth = answer.question.truth["label"] == "yes"
        reading = {"Yes": True, "No": False}.get(answer.text) if self.mode == "official" else says_yes(answer.text)
        cells = {"asked": True, "right": reading is truth, "no": not truth, "said": reading is False}
        cells["both"] = cells["no"] and cells["said"]
        tally.add(unit, **{f"{kind}/{cell}": float(is_so) for cell, is_so in cells.items()})
        return Mark(unit, UNPARSED if reading is None else "yes" if reading else "no", reading is truth)

    def figures(self, totals: Counts) -> dict[str, float]:
        """The script's percentages, each rounded as there, as shares; `amber` is (1 - chair + f1) / 2.

        Attribute pools state, number and action.
        """
        percent: dict[str, float] = {}
        if "responses" in totals:
            sums = defaultdict(float, totals)  # a count that is 0 may be left out
            percent["chair"] = self._percent(sums["absent"], sums["nouns"])
            percent["cover"] = self._percent(sums["covered"], sums["truth"])
            percent["hal"] = 100 - self._percent(sums["clean"], sums["responses"])
            percent["cog"] = self._percent(sums["imagined"], sums["hallu"])
            percent = {name: self._rounded(value) for name, value in percent.items()}
        if any(name.endswith("/asked") for name in totals):
            percent |= self._of(totals, sorted(set(KINDS.values())), "")
            for group, kinds in _GROUPS.items():
                percent |= self._of(totals, kinds, f"{group}_")
        if "chair" in percent and "f1" in percent:
            percent["amber"] = (100 - percent["chair"] + percent["f1"]) / 2
        return {name: round(value / 100, 12) for name, value in percent.items()}

    def _of(self, totals: Counts, kinds: Sequence[str], prefix: str) -> dict[str, float]:
        """The four figures of some kinds of questions, in percent."""
        questions, right, no, replies, both = (
            sum(totals.get(f"{kind}/{cell}", 0.0) for kind in kinds)
            for cell in ("asked", "right", "no", "said", "both")
        )
        starts = 3 if prefix == "attribute_" else 1  # the script adds up three denominators that each began at 0.001
        accuracy = self._rounded(self._percent(right, questions, starts))
        precision = self._rounded(self._percent(both, replies, starts))
        recall = self._rounded(self._percent(both, no, starts))
        f1 = self._f1(precision, recall, 0.001 if prefix == "existence_" else 0.0001)
        named = {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}
        return {prefix + name: value for name, value in named.items()}

    def _percent(self, part: float, whole: float, begun: int = 1) -> float:
        return part / (whole + begun * _START) * 100 if self.mode == "official" else benchmarks.share(part, whole) * 100

    def _rounded(self, percent: float) -> float:
        return round(percent, 1) if self.mode == "official" else percent

    def _f1(self, precision: float, recall: float, small: float) -> float:
        """Of the rounded percentages, with something small in the denominator instead of a check."""
        if self.mode == "robust":
            return benchmarks.share(2 * precision * recall, precision + recall)
        p, r = precision / 100, recall / 100
        return round(2 * p * r / (p + r + small) * 100, 1)


# --- descriptions ---


class Scenes(NamedTuple):
    """What every description is read with: the words that may stand for a word, those that are never wrong, which are
    as good as the same, and the nouns of a text that AMBER knows."""

    relation: Mapping[str, Sequence[str]]
    safe: Set[str]
    similar: Similar
    nouns: Callable[[str], Sequence[Mention]]

    def standing_for(self, words: Sequence[str]) -> list[tuple[str, int]]:
        """Every word that may stand for one of these, and which that is, in the script's order."""
        others = [(other, at) for at, word in enumerate(words) for other in self.relation.get(word, ())]
        return others + [(word, at) for at, word in enumerate(words)]


class NounGrades(NamedTuple):
    """The nouns that name what is not there, and which of the truth and of the feared words were named."""

    absent: Sequence[Mention]
    covered: Set[int]
    imagined: Set[int]


def graded_nouns(nouns: Sequence[Mention], truth: Sequence[str], hallu: Sequence[str], scenes: Scenes) -> NounGrades:
    """Noun by noun as the script does it: the same word, else a similar one; a feared word is noted too."""
    there, feared = scenes.standing_for(truth), scenes.standing_for(hallu)
    absent: list[Mention] = []
    covered: set[int] = set()
    imagined: set[int | None] = set()
    for noun in nouns:
        if noun.name in scenes.safe:
            continue
        at = _first(there, noun.name, operator.eq)
        if at is None:
            imagined |= {_first(feared, noun.name, same) for same in (operator.eq, scenes.similar)}
            at = _first(there, noun.name, scenes.similar)
        if at is None:
            absent.append(noun)
        else:
            covered.add(at)
    return NounGrades(absent, covered, {at for at in imagined if at is not None})


def _first(listed: Sequence[tuple[str, int]], noun: str, same: Similar) -> int | None:
    return next((at for word, at in listed if same(noun, word)), None)


def _described(answer: Answer, tally: benchmarks.Tally) -> Mark:
    unit, truth = answer.question.image, answer.question.truth
    nouns = truth["scenes"].nouns(answer.text)
    grades = graded_nouns(nouns, truth["truth"], truth["hallu"], truth["scenes"])
    tally.add(unit, responses=1, clean=not grades.absent, nouns=len(nouns), absent=len(grades.absent))
    tally.add(unit, covered=len(grades.covered), truth=len(truth["truth"]))
    tally.add(unit, imagined=len(grades.imagined), hallu=len(truth["hallu"]))
    return described(unit, nouns, grades.absent)


def tagged_nouns(text: str, known: Set[str]) -> list[Mention]:
    """As the script finds them, capitals kept: what NLTK tags as a noun, by WordNet's lemma, if AMBER knows it."""
    grammar = english.grammar()
    tagged = grammar.tags(grammar.tokens(text))
    places = english.places(text, [token for token, _ in tagged])
    nouns = [
        Mention(grammar.lemma(token, "n"), start, end, token)
        for (token, tag), (start, end) in zip(tagged, places, strict=True)
        if tag.startswith("NN")
    ]
    return [noun for noun in nouns if noun.name in known]


# Words of the list that are a noun, as a rule, only behind one of these.
_RARELY = frozenset(("can", "drink", "hot", "leave", "sound", "support", "switch", "watch"))
_ARTICLES = frozenset(("a", "an", "the", "one", "another", "his", "her", "its", "their", "of"))


def listed_nouns(text: str, names: Names) -> list[Mention]:
    """Our way: the words of the list, in any case and number."""
    return [
        mention
        for mention in names.within(text)
        if mention.word not in _RARELY or {word.casefold() for word in text[: mention.start].split()[-1:]} & _ARTICLES
    ]


# --- the files ---


class Truth(TypedDict, total=False):
    """What annotations.json says of an id: of a yes/no question kind and label, of a description the other two."""

    kind: str
    label: str
    truth: Sequence[str]
    hallu: Sequence[str]


def _annotations(file: Path) -> dict[str, Truth]:
    annotations: dict[str, Truth] = {}
    for number, row in benchmarks.objects(file, _TOLD):
        kind, truth, hallu = row.get("type"), row.get("truth"), row.get("hallu", [])
        if kind == "generative" and isinstance(truth, list) and isinstance(hallu, list):
            annotations[str(row.get("id"))] = {"truth": truth, "hallu": hallu}
        elif kind in KINDS and truth in ("yes", "no"):
            annotations[str(row.get("id"))] = {"kind": KINDS[kind], "label": truth}
        else:
            raise MinipovidError(f"{file}: row {number} is not {_TOLD}.")
    return annotations


def _scenes(relation: Path, safe: Path, similar: Similar, mode: Mode) -> Scenes:
    """Raises MinipovidError where a file is wrong, or NLTK or its data are needed and missing."""
    try:
        others: dict[str, list[str]] = json.loads(text_files.read(relation, "list of words"))
        known = {*others, *(other for words in others.values() for other in words)}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise MinipovidError(f"{relation} is not AMBER's list of words that may stand for a word.") from None
    words = frozenset(text_files.read(safe, "list of words").splitlines())
    if mode == "robust":
        return Scenes(others, words, similar, partial(listed_nouns, names=Names({word: word for word in known})))
    english.grammar()
    return Scenes(others, words, similar, partial(tagged_nouns, known=known))


def similar_words(table: str) -> Similar:
    """`equal`, or a file of pairs. Raises MinipovidError where that is none."""
    if table == "equal":
        return operator.eq
    file = Path(table).expanduser()
    if not file.is_file():
        raise MinipovidError(
            f"amber.similarity is {table}, but there is no such file; it must be equal or a table of pairs."
        )
    pairs: set[frozenset[str]] = set()
    for number, line in enumerate(text_files.read(file, "table of pairs").splitlines(), 1):
        words = [word.strip() for word in line.split(",")]
        if len(words) != 2:
            raise MinipovidError(f"{file}: row {number} is not two words with a comma between.")
        pairs.add(frozenset(words))
    return lambda one, other: one == other or frozenset((one, other)) in pairs
