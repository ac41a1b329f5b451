"""English words that pictures are described with: things and their plurals, and words that can stand for one another.

Two lists of our own, pairs/words/objects.txt and swaps.txt, say which; their heads say how they are written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import NamedTuple

WORD = re.compile(r"[A-Za-z]+(?:[-'’][A-Za-z]+)*|\d+")
# Words that are no thing and no property: what may stand before or behind a name without being a part of it.
_SMALL = (
    "a an the this that these those some any no each every another other one his her its their my your our and or but "
    "with without of in on at by to from for as into onto near behind above below under over beside between among "
    "around along across through next is are was were be been being has have had do does did there here it he she they "
    "who which while where when both also very many several few all more most not then so than like"
)
_LINKS = "is are was were be looks look seems appears very quite rather also both not"
SMALL = frozenset(_SMALL.split())
BEFORE_A_PROPERTY = frozenset(_LINKS.split())


class NamedThing(NamedTuple):
    """A name as it stands in a text."""

    start: int
    end: int
    name: str  # singular
    plural: bool


@dataclass
class Things:
    """Names of things in both numbers, of what sort they are, and which are seen together."""

    names: dict[str, tuple[str, bool]] = field(default_factory=dict)  # form -> (singular, plural?)
    plurals: dict[str, str] = field(default_factory=dict)
    sorts: dict[str, str] = field(default_factory=dict)  # singular -> the mark of its sort, or ""
    scenes: dict[str, set[str]] = field(default_factory=dict)  # singular -> what it is seen with

    def add(self, name: str, plural: str = "", sort: str = "") -> None:
        self.names.setdefault(name, (name, False))
        self.sorts.setdefault(name, sort)
        if sort == "~":
            return
        self.plurals.setdefault(name, plural or plural_of(name))
        self.names.setdefault(self.plurals[name], (name, True))

    def form(self, name: str, plural: bool) -> str:
        return self.plurals[name] if plural else name

    def within(self, text: str) -> list[NamedThing]:
        """Every thing that a text names by a word of its own: "ball", but not the ball of "tennis ball"."""
        words = list(WORD.finditer(text))
        lower = [word.group().lower() for word in words]
        things = []
        for index, word in enumerate(words):
            known = self.names.get(lower[index])
            joined = index + 1 < len(words) and text[word.end() : words[index + 1].start()] == " "
            before = lower[index - 1] if index else "a"
            alone = before in SMALL or before in swaps() or before.isdigit()
            if known and alone and not (joined and lower[index + 1] in self.names):
                things.append(NamedThing(word.start(), word.end(), *known))
        return things


class Swap(NamedTuple):
    """What may stand in the place of a word or phrase."""

    kind: str  # "attribute" | "relation"
    others: tuple[str, ...]


def things() -> Things:
    """Those of the list, a new copy."""
    known = Things()
    for line in _lines("objects.txt"):
        entries = line.partition(":")[2].split()
        names = []
        for entry in entries:
            sort = entry[-1] if entry[-1] in "~*+^%" else ""
            name, _, plural = entry.removesuffix(sort).partition("/")
            known.add(name, plural, sort)
            names.append(name)
        for name in names:
            known.scenes.setdefault(name, set()).update(set(names) - {name})
    return known


@cache
def swaps() -> dict[str, Swap]:
    """By word or phrase, lower case."""
    table: dict[str, Swap] = {}
    for line in _lines("swaps.txt"):
        head, _, rest = line.partition(":")
        kind, how = head.split()
        words = [word.strip() for word in rest.split("|")]
        for word in words:
            others = tuple(other for other in words if other != word)
            known = table.get(word)
            table[word] = Swap(kind, (*(known.others if known and how == "pairs" else ()), *others))
    return table


@cache
def swap_pattern() -> re.Pattern[str]:
    """Every word and phrase of the list, the longest first, as whole words."""
    longest = sorted(swaps(), key=len, reverse=True)
    return re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest))})(?![\w-])", re.IGNORECASE)


def plural_of(name: str) -> str:
    if re.search(r"(?:s|x|ch|sh)$", name):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", name) else name + "s"


def article(word: str) -> str:
    """By spelling: an apple, a boat; enough for the words of the lists."""
    return "an" if word[:1].lower() in tuple("aeiou") else "a"


def recurring_words(texts: Iterable[str], known: Things, least: int) -> list[str]:
    """Words that `least` texts or more name as one thing: "a <word>" before a small word or a stop; no listed ones."""
    counts: dict[str, int] = {}
    for text in texts:
        names = {match[1].lower() for match in _ONE_THING.finditer(text) if match[2] is None or match[2] in SMALL}
        for word in names - known.names.keys() - swaps().keys() - SMALL:
            counts[word] = counts.get(word, 0) + 1
    return sorted(word for word, count in counts.items() if count >= least)


_ONE_THING = re.compile(r"\b(?:[Aa]n?|[Aa]nother) ([A-Za-z]{3,})(?: ([a-z]+)|(?=[.,;:!?]|$))")


def _lines(name: str) -> list[str]:
    whole = (files("minipovid.pairs") / "words" / name).read_text(encoding="utf-8")
    return [line for line in whole.splitlines() if line.strip() and not line.startswith("#")]
