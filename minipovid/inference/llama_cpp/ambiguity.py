"""Schemas under which llama.cpp's grammar stands still: what is said so far can be read in too many ways.

llama.cpp keeps every reading. Where two arrays of a choice begin alike, each "[" doubles the readings if the choice
stands inside them again: {"anyOf": [{"type": "array", "items": SELF}, {"type": "array", "items": SELF}]} takes 1.5 s a
token after 14 of them. What begins differently ({"kind": "a" and {"kind": "b") leaves one reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from minipovid.common.errors import MinipovidError

WAYS = 256  # readings at once; 1000 take a second a token with 32,000 tokens to choose from
_REMEDY = "begin with a required property that has a const of its own in each, or leave choices out."


class GrammarRule(NamedTuple):
    """A rule of a grammar: an array or object, or, where `begins` is empty, a choice between other rules."""

    begins: str  # what each of its texts begins with
    inside: tuple[str, ...]  # rules, or literals, which hold nothing


def check(parts: Mapping[str, GrammarRule], root: str) -> None:
    """Raises MinipovidError where what `root` stands for can be read in too many ways."""
    if root in parts:
        _Survey(parts).visit(root)


class _Survey:
    """Tarjan's walk (1972) through the loops of a grammar, each after all that it leads to."""

    def __init__(self, parts: Mapping[str, GrammarRule]) -> None:
        self._parts = parts
        self._number: dict[str, int] = {}  # in the order of coming
        self._path: list[str] = []  # seen, but not done
        self._ways: dict[str, int] = {}  # readings that a rule has at once at most; only of those done
        self._endless: set[str] = set()  # can be nested as deeply as one likes

    def visit(self, name: str) -> int:
        """The number of the earliest rule on the path that `name` leads back to."""
        place = len(self._path)
        earliest = self._number[name] = len(self._number)
        self._path.append(name)
        for other in self._parts[name].inside:
            if other in self._parts and other not in self._ways:
                earliest = min(earliest, self._number[other] if other in self._number else self.visit(other))
        if earliest == self._number[name]:
            loop = self._path[place:]
            del self._path[place:]
            self._finish(loop)
        return earliest

    def _finish(self, loop: list[str]) -> None:
        """All that a loop leads to is done; most loops are a single rule that does not lead to itself."""
        inside = {other for name in loop for other in self._parts[name].inside}
        is_loop = not inside.isdisjoint(loop)
        if is_loop or not inside.isdisjoint(self._endless):
            self._endless.update(loop)
        ways = max(self._count(name, is_loop) for name in loop)
        if ways > WAYS:
            raise MinipovidError(f"The schema's choices can be read in {ways} ways at once, above {WAYS}; {_REMEDY}")
        self._ways.update(dict.fromkeys(loop, ways))

    def _count(self, name: str, in_loop: bool) -> int:
        """Readings at once, those that go round the loop apart: of them there is one, or the choice is refused."""
        part, most = self._parts[name], 1
        if part.begins:  # what is read stands in one place of it
            return max((self._ways.get(other, 1) for other in part.inside), default=1)
        choices = list(self._choices(name, set()))
        for begins in {self._parts[choice].begins for choice in choices}:
            alike = [choice for choice in choices if begins.startswith(self._parts[choice].begins)]
            if in_loop and len(self._endless.intersection(alike)) > 1:
                raise MinipovidError(
                    f"The schema holds a choice between arrays, or objects, that begin alike and nest; {_REMEDY}"
                )
            most = max(most, sum(self._ways.get(choice, 1) for choice in alike))
        return most

    def _choices(self, name: str, visited: set[str]) -> Iterator[str]:
        """The arrays and objects of a choice, and of the choices in it; each once."""
        for other in self._parts[name].inside:
            if other in self._parts and other not in visited:
                visited.add(other)
                if self._parts[other].begins:
                    yield other
                else:
                    yield from self._choices(other, visited)
