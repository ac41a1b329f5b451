"""CHAIR: which objects does a description name that are not there? (Rohrbach et al., arXiv 1809.02156)

On COCO, a folder that you put together of instances_val2014.json and captions_val2014.json (and the same of train2014
where its pictures are asked about), synonyms.txt, and, where it shall not be drawn, which pictures: images.txt, a file
name or number per line, or images.jsonl, or give any such list beside them instead of the folder:

    {"image": "COCO_val2014_000000310196.jpg"}          or {"image_id": 310196}

On your own pictures, a file that says what is in each; objects.txt beside it has an object with its synonyms per line:

    {"image": "kitchen.jpg", "objects": ["table", "bowl"], "prompt": "What is in the picture?"}
    table, desk

How words are found in a description moves the score by points: `words` says how, and the notes repeat it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from minipovid.common import data_files, text_files
from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.evaluate.benchmarks import Answer, Count, Counts, Exam, Grades, Label, Tally, described, objects, share
from minipovid.evaluate.reading import english
from minipovid.evaluate.reading.coco import ANNOTATIONS, COCO, Coco, coco, coco_file
from minipovid.evaluate.reading.english import Mention, Names, WordKind
from minipovid.inference.backends import Question

WordPipeline = Literal["pattern", "lemma", "own"]
DRAWN = 500
_OWN = "a picture with its objects; it needs image and objects, a list of names"
_LISTED = "a picture of COCO; it needs image, a file name of COCO, or image_id"
_LISTS = ("images.txt", "images.jsonl", "images.json")
_SYNONYMS = "data/synonyms.txt of github.com/LisaAnne/Hallucination"
_PUBLISHED = "b685537b36fe21b7"  # the beginning of its SHA-256
_TOLD = {
    "pattern": "Words as in the paper's script: pattern's singular forms; a rule parts sentences, not punkt.",
    "lemma": "Words as in OPERA's script: NLTK's tags and WordNet's lemmas.",
    "own": "Words found by minipovid's own rules, not by a published script.",
}


@dataclass(frozen=True)
class Benchmark:
    """`words` finds the objects in a text: `pattern` and `lemma` are the published scripts, mistakes included; `own`
    mends these and needs no package; `auto` is `pattern` on COCO and `own` on your pictures.

    Prompt and length are OPERA's; a row of your own may have its own `prompt`. `pictures`: so many drawn from val2014
    by `seed` where there is no list (500), else the first so many (all).
    """

    words: Literal["auto", "pattern", "lemma", "own"] = "auto"
    prompt: str = "Please describe this image in detail."
    max_tokens: Count = 512
    pictures: Count | None = None
    seed: int = 0

    source: ClassVar[str] = (
        f"a folder that you make of COCO's instances and captions ({COCO}) and synonyms.txt ({_SYNONYMS}), "
        "or your own pictures.jsonl beside objects.txt"
    )
    headline: ClassVar[Sequence[str]] = ("chair_s", "chair_i", "recall")
    lower_is_better: ClassVar[frozenset[str]] = frozenset(("chair_s", "chair_i"))
    coverage: ClassVar[frozenset[str]] = frozenset(("recall",))
    labels: ClassVar[Mapping[str, Label]] = {
        "chair_s": Label("CHAIR_s", "descriptions that name something absent"),
        "chair_i": Label("CHAIR_i", "named things that are absent"),
        "recall": Label(meaning="of what is there, the share that is found"),
        "len": Label(is_score=True),
    }

    # --- the questions ---

    def read(self, path: Path) -> Exam:
        if path.is_file() and path.suffix != ".txt" and "objects" in next(objects(path, _OWN), ("", {}))[1]:
            return self._own(path)
        return self._coco(path, None) if path.is_dir() else self._coco(path.parent, path)

    def _own(self, file: Path) -> Exam:
        words: WordPipeline = "own" if self.words == "auto" else self.words
        listed = file.with_name("objects.txt")
        if not listed.is_file():
            raise MinipovidError(
                f"CHAIR needs the names of objects in {listed}, and that file is not there; write one object per line, "
                "with its synonyms behind commas."
            )
        reader = _reader(words, listed)
        questions = [self._about(file, number, row, reader) for number, row in objects(file, _OWN)]
        notes = [f"CHAIR over {len(questions[: self.pictures]):,} descriptions of your own pictures.", _TOLD[words]]
        return Exam(questions[: self.pictures], [file, listed], notes)

    def _about(self, file: Path, number: str, row: Mapping[str, Any], reader: Reader) -> Question:
        image, names, prompt = row.get("image"), row.get("objects"), row.get("prompt", self.prompt)
        if not (isinstance(image, str) and isinstance(names, list) and isinstance(prompt, str)):
            raise MinipovidError(f"{file}: row {number} is not {_OWN}.")
        there = {str(name): reader.thing(str(name)) for name in names}
        for name, thing in there.items():
            if thing is None:
                raise MinipovidError(
                    f"{file}: row {number} has {name!r}, which objects.txt does not list; add it there."
                )
        return self._question(number, image, prompt, set(there.values()), reader)

    def _question(self, number: str, image: str, prompt: str, there: Set[str | None], reader: Reader) -> Question:
        return Question(
            number, image, prompt, {"objects": sorted(filter(None, there)), "reader": reader}, self.max_tokens
        )

    def _coco(self, folder: Path, listed: Path | None) -> Exam:
        words: WordPipeline = "pattern" if self.words == "auto" else self.words
        synonyms = folder / "synonyms.txt"
        if not synonyms.is_file():
            raise MinipovidError(f"{folder} holds no synonyms.txt; take {_SYNONYMS}.")
        listed = listed or next((folder / name for name in _LISTS if (folder / name).is_file()), None)
        wanted = dict(list(_named(folder, listed).items())[: self.pictures]) if listed else self._drawn(folder)
        reader = _reader(words, synonyms)
        known, read = coco(folder, wanted.keys())
        questions = [
            self._question(str(number), image, self.prompt, _there(known[number], reader, synonyms), reader)
            for number, image in wanted.items()
        ]
        how = f"those of {listed.name}" if listed else f"drawn from val2014 with seed {self.seed}"
        notes = [f"CHAIR over {len(questions):,} pictures of COCO, {how}.", _TOLD[words]]
        if not digest(synonyms).hex().startswith(_PUBLISHED):
            notes.append("synonyms.txt is not the published list.")
        return Exam(questions, [*read, synonyms, *([listed] if listed else [])], notes)

    def _drawn(self, folder: Path) -> dict[int, str]:
        known = _pictures(folder, "val2014")
        count = min(self.pictures or DRAWN, len(known))
        return {number: known[number] for number in random.Random(self.seed).sample(sorted(known), count)}

    # --- the scores ---

    def grade(self, answers: Sequence[Answer]) -> Grades:
        tally, marks = Tally(), []
        for answer in answers:
            truth = answer.question.truth
            there, read = set(truth["objects"]), truth["reader"](answer.text)
            absent = [mention for mention in read.mentions if mention.name not in there]
            counts = {"captions": 1, "with_absent": bool(absent), "mentions": len(read.mentions), "absent": len(absent)}
            named = len(there & {mention.name for mention in read.mentions})
            length = {"tokens": read.tokens} if read.tokens is not None else {}
            tally.add(answer.question.image, **counts, named=named, there=len(there), **length)
            marks.append(described(answer.question.image, read.mentions, absent))
        return Grades(marks, tally.units)

    def figures(self, totals: Counts) -> dict[str, float]:
        """chair_s: descriptions that name something absent; chair_i: mentions that do; recall: objects there that are
        named. `len`, of `lemma` alone, is the script's: a hundredth of the tokens of a description."""
        captions = totals.get("captions", 0.0)
        figures = {
            "chair_s": share(totals.get("with_absent", 0.0), captions),
            "chair_i": share(totals.get("absent", 0.0), totals.get("mentions", 0.0)),
            "recall": share(totals.get("named", 0.0), totals.get("there", 0.0)),
        }
        return figures | ({"len": share(0.01 * totals["tokens"], captions)} if "tokens" in totals else {})


# --- which pictures of COCO, and what is in them ---


def _named(folder: Path, listed: Path) -> dict[int, str]:
    """Number and file name of the pictures of a list, in its order; COCO's own name where only the number is given."""
    wanted: dict[int, str] = {}
    for row, entry in _entries(listed):
        digits = re.search(r"\d+$", Path(entry).stem)
        if digits is None:
            raise MinipovidError(f"{listed}: row {row} is not {_LISTED}.")
        number = int(digits[0])
        if number in wanted:
            raise MinipovidError(f"{listed}: row {row} asks for picture {number} again.")
        wanted[number] = "" if entry.isdigit() else entry
    if all(wanted.values()):
        return wanted
    known: dict[int, str] = {}
    for split in ("val2014", "train2014"):
        if wanted.keys() - known.keys():
            known |= _pictures(folder, split)
    return {number: image or known.get(number, "") for number, image in wanted.items()}


def _entries(listed: Path) -> Iterator[tuple[str, str]]:
    """(row, what it gives) of each picture."""
    if listed.suffix == ".txt":
        lines = text_files.read(listed, "list of pictures").splitlines()
        yield from ((str(number), line.strip()) for number, line in enumerate(lines, 1) if line.strip())
        return
    for number, row in objects(listed, _LISTED):
        yield number, str(row.get("image") or row.get("image_id"))


def _pictures(folder: Path, split: str) -> dict[int, str]:
    """Number and file name of COCO's pictures."""
    return {
        each["id"]: each["file_name"]
        for each in data_files.within(coco_file(folder, f"captions_{split}.json"), ANNOTATIONS, "images")
    }


def _there(known: Coco, reader: Reader, synonyms: Path) -> set[str]:
    """What is drawn, and what people wrote of, read as a model's description is."""
    there = {mention.name for caption in known.captions for mention in reader(caption).mentions}
    for category in known.categories:
        thing = reader.thing(category)
        if thing is None:
            raise MinipovidError(f"{synonyms} does not list {category!r}, an object of COCO; take {_SYNONYMS}.")
        there.add(thing)
    return there


# --- which objects a text names ---


class Read(NamedTuple):
    """The mentions in order; `tokens` where the pipeline counts them, pairs that were joined as one."""

    mentions: Sequence[Mention]
    tokens: int | None = None


class Reader(Protocol):
    """One of the word pipelines over one list of synonyms."""

    def __call__(self, text: str) -> Read: ...

    def thing(self, name: str) -> str | None:
        """The object that is called so; None where the list has no such name."""


def _reader(words: WordPipeline, listed: Path) -> Reader:
    """Raises MinipovidError where a package or its data are missing: before anything is asked."""
    lines = [line for line in text_files.read(listed, "list of synonyms").splitlines() if line.strip()]
    if words == "own":
        return Own({name: line.split(",")[0].strip() for line in lines for name in line.split(",")})
    normal = singular_words if words == "pattern" else lemmas
    normal("Dogs.")
    entries = [line.strip().split(", ") for line in lines]  # a second space stays a part of the name
    return Published({name: entry[0] for entry in entries for name in entry}, normal, words == "lemma")


def singular_words(text: str) -> list[tuple[str, str]]:
    """Every token of a text, and its singular."""
    return [(token, english.singular(token)) for token in english.tokens(text)]


_KINDS: Mapping[str, WordKind] = {"J": "a", "V": "v", "N": "n", "R": "r"}  # by the first letter of a Penn tag


def lemmas(text: str) -> list[tuple[str, str]]:
    """Every token of a text, and its lemma as the kind of word that it is tagged; a noun where that is another kind."""
    grammar = english.grammar()
    tagged = grammar.tags(grammar.tokens(text))
    return [(token, grammar.lemma(token, _KINDS.get(tag[:1], "n"))) for token, tag in tagged]


# Pairs of words that the scripts read as one: the pairs of the list, and these.
_YOUNG = ("baby", "adult")
_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
_PAIRS = {
    **{f"{age} {animal}": animal for age in _YOUNG for animal in _ANIMALS},  # else a baby is a person
    **{"passenger jet": "jet", "passenger train": "train"},
    **{"home plate": "home plate", "train track": "train track"},  # no objects, and so no train
    **{"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"},
}
_APART = "dining table"  # on the list, and not joined: "table" alone is the same object


@dataclass(frozen=True)
class Published:
    """The scripts' way: lower case, every token normalised, pairs joined from left to right, then what is listed."""

    things: Mapping[str, str]  # word -> object
    normal: Callable[[str], Sequence[tuple[str, str]]]
    counts_tokens: bool

    def thing(self, name: str) -> str | None:
        return self.things.get(name)

    def __call__(self, text: str) -> Read:
        words = list(self._joined(english.lowered(text)))
        has_toilet = {"toilet", "seat"} <= {word for word, _, _ in words}  # whose seat is no chair
        mentions = [
            Mention(self.things[word], start, end, word)
            for word, start, end in words
            if word in self.things and not (has_toilet and word == "seat")
        ]
        return Read(mentions, len(words) if self.counts_tokens else None)

    def _joined(self, text: str) -> Iterator[tuple[str, int, int]]:
        normal = self.normal(text)
        words = [word for _, word in normal]
        places = list(english.places(text, [token for token, _ in normal]))
        at = 0
        while at < len(words):
            pair = self._pairs.get(" ".join(words[at : at + 2]))
            width = 1 if pair is None else 2
            yield pair or words[at], places[at][0], places[at + width - 1][1]
            at += width

    @cached_property
    def _pairs(self) -> dict[str, str]:
        listed = {name.strip() for name in self.things if name.strip().count(" ") == 1 and name != _APART}
        return {**{pair: pair for pair in listed}, **_PAIRS}


class Own:
    """Our way: every name of the list in either number, however its line is spaced; what the scripts join is joined."""

    def __init__(self, called: Mapping[str, str]) -> None:
        listed = {" ".join(name.split()): thing for name, thing in called.items()}
        animals = {name: thing for name, thing in listed.items() if thing in _ANIMALS}
        young = {f"{age} {name}": thing for age in _YOUNG for name, thing in animals.items()}
        pairs = {pair: listed.get(word, listed.get(pair.split()[1], "")) for pair, word in _PAIRS.items()}
        self.names = Names({**pairs, **young, **listed})

    def thing(self, name: str) -> str | None:
        return self.names.thing(name)

    def __call__(self, text: str) -> Read:
        mentions = self.names.within(text)
        if any(mention.word.startswith("toilet") for mention in mentions):
            mentions = [mention for mention in mentions if mention.word not in ("seat", "seats")]
        return Read(mentions)
