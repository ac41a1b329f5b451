"""Hallucinations injected by rule, without a teacher: what is often seen together, and words that are easily mixed up.

    A red boat lies on the left of the pier.   ->   A red boat lies on the right of the pier.      relation
                                               ->   A green boat lies on the left of the pier.     attribute
                                               ->   A red boat lies on the left of the lighthouse. object

- object: in the place of a thing, or beside one, stands what the user's own answers often name together with the
  others. That table is counted on the answers (or on other ones: those that the model learnt its habits from), over the
  things of words/objects.txt and over words that RECUR answers or more call "a <word>"; where it is silent, what stands
  in one line of the list speaks.
- attribute and relation: a word of words/swaps.txt gives way to another one of its group, to those more often that the
  answers use more often; a small number to another.
- An answer that is yes or no, alone or with "there is" or "it is", becomes its contrary.

One change for every 25 words, four at most, of as many kinds as can be had. Which ones is drawn by (seed, id): the same
answers give the same pairs. English only: an answer in which nothing can be changed is a failure that says so.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common import text_files
from minipovid.common.data_files import short
from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import Usage
from minipovid.pairs import lexicon
from minipovid.pairs.formats import seeds
from minipovid.pairs.lexicon import BEFORE_A_PROPERTY, SMALL, WORD, NamedThing, Things, article, swap_pattern, swaps
from minipovid.pairs.make.makers import MakerInputs, Outcome
from minipovid.pairs.pair import Pair, Seed, Span

VERSION = "rule v2"  # raise it when the rules or the words change: pairs are made anew
RECUR = 3  # answers
WORDS_A_CHANGE = 25
MOST_CHANGES = 4
NEVER = "%"  # the sort of what may be true whatever it replaces
CANDIDATES = 8  # companions that are drawn among, the most frequent first
LISTED = 0.1  # what a line of the list weighs beside an answer
ADDED = 0.3  # of the objects are added where they can be, the others take the place of one
_BESIDE = (" with {} nearby", " next to {}")
_SENTENCE = re.compile(r"(?:^|(?<=[.!?] ))[A-Z][^.!?\n]*\.(?=\s|$)", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\w.,:/-])(?:[2-9]|1\d)(?![\w:/-]|[.,]\d)")
# An answer's opening and its contrary; what is in no group keeps its place.
_CONTRARY = (
    (r"yes(\W*)$", r"No\1"),
    (r"no(\W*)$", r"Yes\1"),
    (r"yes, there (is|are) (?:an? |some )?(?=\w)", r"No, there \1 no "),
    (r"no, there are (?:no|not any) (?=\w)", "Yes, there are "),
    (r"no, there is (?:no|not an?|not any) (?=[aeiou])", "Yes, there is an "),
    (r"no, there is (?:no|not an?|not any) (?=\w)", "Yes, there is a "),
    (r"yes, (it|he|she|they|the \w+) (is|are) (?!not\b)", r"No, \1 \2 not "),
    (r"no, (it|he|she|they|the \w+) (is|are) not ", r"Yes, \1 \2 "),
    (r"no, (it|he|she|they|the \w+) (is|are)n['’]t ", r"Yes, \1 \2 "),
)


class Replacement(NamedTuple):
    """Characters [start, end) become `text`; `false` where that is a claim, and not an article that follows it."""

    start: int
    end: int
    text: str
    false: bool = True


class Edit(NamedTuple):
    """Replacements that are made together."""

    kind: str
    parts: tuple[Replacement, ...]


@dataclass(frozen=True)
class HabitTable:
    """How many answers name two things (or one: `together[a][a]`), and how many have a word that can be swapped."""

    things: Things
    together: Mapping[str, Counter[str]]
    swappable: Counter[str]

    def digest(self) -> str:
        counted = {**self.together, "": self.swappable}
        content = sorted((name, *sorted(others.items())) for name, others in counted.items())
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def companions(
        self, there: Sequence[str], sorts: tuple[str, ...], of: Sequence[str] | None = None
    ) -> list[tuple[str, float]]:
        """What is not there but often stands beside it, or beside those `of` it, with weights; of these sorts.

        How many answers name both, times how often the other one brings its companion: so that what stands everywhere
        ("a man") is no companion of all.
        """
        weights: dict[str, float] = {}
        for name in there if of is None else of:
            for other, times in self.together.get(name, Counter()).items():
                weights[other] = weights.get(other, 0.0) + times * times / self.together[other][other]
            for other in self.things.scenes.get(name, ()):
                weights[other] = weights.get(other, 0.0) + LISTED
        fit = [name for name in weights if name not in there and self.things.sorts[name] in sorts]
        ranked = sorted(fit, key=lambda name: (-weights[name], name))
        return [(name, weights[name]) for name in ranked[:CANDIDATES]]


def table(answers: Sequence[str]) -> HabitTable:
    """Count what the answers name together."""
    things = lexicon.things()
    for word in lexicon.recurring_words(answers, things, RECUR):
        things.add(word)
    together: dict[str, Counter[str]] = {}
    swappable = Counter[str]()
    for answer in answers:
        names = {thing.name for thing in things.within(answer)}
        for name in names:
            together.setdefault(name, Counter()).update(names)
        swappable.update({match.group().lower() for match in swap_pattern().finditer(answer)})
    return HabitTable(things, together, swappable)


@dataclass(frozen=True)
class Options:
    seed: int = 0  # of what the rules draw
    count_on: str | None = None  # a file of other answers than the seeds' to count what goes together on


def maker(inputs: MakerInputs, options: Options) -> Rules:
    """Raises MinipovidError where `count_on` cannot be read or holds no answers."""
    if options.count_on is None:
        answers = [seed.answer for seed in inputs.seeds() if isinstance(seed, Seed)]
    else:
        answers = _answers(Path(options.count_on))
    return Rules(table(answers), options.seed)


def _answers(path: Path) -> list[str]:
    """Those of a text file, one a line, or of any data that seeds can be read from."""
    if path.suffix.lower() == ".txt":
        answers = text_files.read(path, "answers").split("\n")
    else:
        answers = [seed.answer for seed in seeds(path) if isinstance(seed, Seed)]
    if not any(map(str.strip, answers)):
        raise MinipovidError(f"{path} holds no answers to count what goes together on.")
    return answers


@dataclass(frozen=True)
class Rules:
    """The maker. Asks nobody and costs nothing."""

    table: HabitTable
    seed: int = 0
    workers: int = 1

    def identity(self) -> dict[str, Any]:
        return {"maker": VERSION, "seed": self.seed, "table": self.table.digest()}

    def stop(self) -> None:
        """There is nothing to stop."""

    def spent(self) -> Usage:
        return Usage()

    def cost(self, usage: Usage) -> None:
        return None

    def estimate(self, seed: Seed, picture: Path) -> Usage:
        return Usage()

    def make(self, seed: Seed, picture: Path) -> Outcome:
        rng = random.Random(f"{self.seed} {seed.id}")
        edits = self._edits(seed, rng)
        if not edits:
            what = "no thing, property, place or number of the word lists that could be told wrongly"
            return Outcome(None, (f"nothing can be changed by rule in {short(seed.answer)}: it names {what}",))
        rejected, spans = with_edits(seed.answer, edits)
        source = {"chosen": seed.source, "rejected": VERSION}
        return Outcome(Pair(str(seed.id), str(seed.image), seed.prompt, seed.answer, rejected, source, spans))

    def _edits(self, seed: Seed, rng: random.Random) -> list[Edit]:
        """Edits that do not meet, of different kinds in turn."""
        if contrary := list(_contrary(seed.answer)):
            return contrary
        wanted = min(MOST_CHANGES, 1 + len(WORD.findall(seed.answer)) // WORDS_A_CHANGE)
        by_kind = {"object": list(self._objects(seed, rng)), "attribute": [], "relation": []}
        for edit in (*_swaps(seed.answer, self.table, rng), *_numbers(seed.answer, rng)):
            by_kind[edit.kind].append(edit)
        kinds = [kind for kind in by_kind if by_kind[kind]]
        rng.shuffle(kinds)
        for kind in kinds:
            rng.shuffle(by_kind[kind])
        chosen: list[Edit] = []
        for edit in _in_turn([by_kind[kind] for kind in kinds]):
            if len(chosen) < wanted and not any(_meet(edit, other) for other in chosen):
                chosen.append(edit)
        return chosen

    def _objects(self, seed: Seed, rng: random.Random) -> Iterator[Edit]:
        """For each thing of the answer, another one in its place, or beside it."""
        things = self.table.things.within(seed.answer)
        in_question = {thing.name for thing in self.table.things.within(seed.prompt)}
        there = sorted({thing.name for thing in things} | in_question)
        for name in dict.fromkeys(thing.name for thing in things):
            places = [thing for thing in things if thing.name == name]
            if rng.random() < ADDED:
                again = list(self._again(seed.answer, name, there, rng))
                if added := again or list(self._beside(seed.answer, places, there, rng)):
                    yield Edit("object", (rng.choice(added),))
            elif name not in in_question and (other := self._companion(there, self._like(name), rng, but=name)):
                yield Edit("object", tuple(self._replacements(seed.answer, places, other)))

    def _like(self, name: str) -> tuple[str, ...]:
        """The sort of what can take its place."""
        sort = self.table.things.sorts[name]
        return () if sort == NEVER else (sort,)

    def _companion(self, there: Sequence[str], sorts: tuple[str, ...], rng: random.Random, but: str = "") -> str:
        """A companion of what is there, of the one that goes (`but`) only where the others have none; else empty."""
        others = self.table.companions(there, sorts, [name for name in there if name != but])
        others = others or self.table.companions(there, sorts)
        return rng.choices([name for name, _ in others], [weight for _, weight in others])[0] if others else ""

    def _again(self, text: str, name: str, there: Sequence[str], rng: random.Random) -> Iterator[Replacement]:
        """Behind each sentence about the thing alone: the same of another one, with all that can be swapped swapped."""
        for sentence in _SENTENCE.finditer(text):
            things = self.table.things.within(sentence.group())
            other = self._companion(there, self._like(name), rng) if [each.name for each in things] == [name] else ""
            if other:
                of_another = Edit("object", tuple(self._replacements(sentence.group(), things, other)))
                variant, _ = with_edits(sentence.group(), [of_another, *_swaps(sentence.group(), self.table, rng)])
                yield Replacement(sentence.end(), sentence.end(), f" {variant}")

    def _beside(
        self, text: str, places: Sequence[NamedThing], there: Sequence[str], rng: random.Random
    ) -> Iterator[Replacement]:
        """Another thing behind each that ends a sentence; none that is not counted."""
        ends = [place.end for place in places if text[place.end : place.end + 1] == "."]
        other = self._companion(there, ("", "*"), rng) if ends else ""
        if other:
            beside = f"{article(other)} {other}"
            yield from (Replacement(end, end, pattern.format(beside)) for end in ends for pattern in _BESIDE)

    def _replacements(self, text: str, places: Sequence[NamedThing], other: str) -> Iterator[Replacement]:
        for place in places:
            yield from _in_place(text, place.start, place.end, self.table.things.form(other, place.plural))


def _swaps(text: str, table: HabitTable, rng: random.Random) -> Iterator[Edit]:
    """Each word or phrase of the list, replaced by another one of its group, by how often the answers have it."""
    for match in swap_pattern().finditer(text):
        swap = swaps()[match.group().lower()]
        if swap.kind == "relation" or _is_property(text, match, table.things):
            weights = [table.swappable[other] for other in swap.others]
            other = rng.choices(swap.others, weights if any(weights) else None)[0]
            yield Edit(swap.kind, tuple(_in_place(text, match.start(), match.end(), other)))


def _is_property(text: str, match: re.Match[str], things: Things) -> bool:
    """Before a name ("an orange boat"), behind a verb ("is orange"), or alone; but not "an orange on a plate"."""
    behind = WORD.match(text, match.end() + 1) if text[match.end() : match.end() + 1] == " " else None
    words = WORD.findall(text[: match.start()])
    if behind and match.group().lower() in things.names:  # it may be a name itself: "an orange lies"
        return behind.group().lower() in things.names
    if behind and behind.group().lower() not in SMALL:
        return True
    return (words[-1].lower() in BEFORE_A_PROPERTY) if words else len(WORD.findall(text)) == 1


def _numbers(text: str, rng: random.Random) -> Iterator[Edit]:
    """A number from 2 to 19 becomes another one, at most two off."""
    for match in _NUMBER.finditer(text):
        number = int(match.group())
        others = [other for other in range(number - 2, number + 3) if other >= 2 and other != number]
        yield Edit("attribute", (Replacement(*match.span(), str(rng.choice(others))),))


def _contrary(text: str) -> Iterator[Edit]:
    """The contrary of an answer that is a yes or a no and little more."""
    for pattern, other in _CONTRARY:
        if match := re.match(pattern, text, re.IGNORECASE):
            space = " " if match.group().endswith(" ") else ""
            yield Edit("object", (Replacement(*match.span(), match.expand(other).rstrip() + space),))
            return


def _in_place(text: str, start: int, end: int, other: str) -> Iterator[Replacement]:
    """`other` in the place of a word, with a capital where it had one, and the article before it made to fit."""
    if before := re.search(r"\b([Aa])n? $", text[:start]):
        right = article(other) if before[1] == "a" else article(other).capitalize()
        if right != before.group().rstrip():
            yield Replacement(before.start(), start - 1, right, false=False)
    yield Replacement(start, end, other[0].upper() + other[1:] if text[start].isupper() else other)


def _in_turn(lists: Sequence[Sequence[Edit]]) -> Iterator[Edit]:
    """The first of each, then the second of each, ..."""
    for index in range(max(map(len, lists), default=0)):
        yield from (each[index] for each in lists if index < len(each))


def _meet(edit: Edit, other: Edit) -> bool:
    """Whether two edits change the same place, or places without a word between them."""
    return any(a.start <= b.end + 1 and b.start <= a.end + 1 for a in edit.parts for b in other.parts)


def with_edits(text: str, edits: Sequence[Edit]) -> tuple[str, tuple[Span, ...]]:
    """The text with every edit made, and where it is false now."""
    result, at, spans = "", 0, list[Span]()
    for part, kind in sorted((part, edit.kind) for edit in edits for part in edit.parts):
        result += text[at : part.start]
        if part.false:
            lead = len(part.text) - len(part.text.lstrip())
            spans.append(Span(len(result) + lead, len(result) + len(part.text.rstrip()), kind))
        result, at = result + part.text, part.end
    return result + text[at:], tuple(spans)
