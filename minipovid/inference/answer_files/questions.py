"""The questions of a benchmark, found by whatever a row of answers may call them.

Every look-up gives the places of the questions that are meant: none where the value names no question here, several
where it names more than one, and None where it says nothing (an empty cell, the bytes of a picture).
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import Any

from minipovid.inference.backends import Question
from minipovid.models.chat_template import IMAGE

Places = Set[int]
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")
_SUFFIX = re.compile(r"\.(?:jpe?g|png|webp|bmp|gif|tiff?)$", re.IGNORECASE)
_COUNTED = re.compile(r"(?:^|_)0*(\d+)$")  # COCO_val2014_000000000042 is picture 42
_SENTENCE = re.compile(r"[.?!:](?= )")
_PATH = 500  # characters; a longer text is a picture's bytes


def called(value: Any) -> str:
    """A cell as a name: 1.0 is 1, and what is no name (nothing, a truth value, an object) is empty."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value).strip()


def _unnamed(value: Any) -> Places | None:
    """What a cell without a name means: nothing, but a truth value is no question's."""
    return frozenset() if isinstance(value, bool) else None


def wording(text: str) -> str:
    """A question without the picture's placeholder, its white space and capitals made alike."""
    return " ".join(text.replace(IMAGE, " ").split()).casefold()


class Questions:
    """All questions of one benchmark."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.all = questions

    def by_id(self, value: Any) -> Places | None:
        """By the id, by what stands behind a / where every id has one, or by its number: 7 for 007, 1.0 for 1."""
        name = called(value)
        if not name:
            return _unnamed(value)
        number = _NUMBER.fullmatch(name)
        return self._ids.get(name) or self._numbers.get(number[1] if number else name, frozenset())

    def by_picture(self, value: Any) -> Places | None:
        """By a picture's path or its end, with or without extension, or by the number that ends its name."""
        name = called(value)
        if not name or len(name) > _PATH or name.startswith("data:"):
            return _unnamed(value)
        for end in _ends(name):
            if end in self._pictures:
                return self._pictures[end]
        if number := _COUNTED.search(bare := _stem(name)):
            return (self._counted if bare.isdecimal() else self._plain).get(number[1], frozenset())
        return frozenset()

    def by_words(self, value: Any) -> Places | None:
        """By the question, as it is asked or as the benchmark has it, whatever a prompt put behind that."""
        text = wording(called(value))
        if not text or self.are_alike and self.holds(0, value):
            return _unnamed(value)
        ends = [match.end() for match in _SENTENCE.finditer(text)]
        heads = (text, *(text[:end] for end in reversed(ends)))
        return next((self._words[head] for head in heads if head in self._words), frozenset())

    def by_fact(self, name: str, value: Any) -> Places | None:
        """By what the benchmark itself says of a question under this name, its category say."""
        return self._facts[name].get(called(value), frozenset()) if called(value) else None

    @property
    def facts(self) -> Set[str]:
        return self._facts.keys()

    def holds(self, place: int, value: Any) -> bool:
        """Whether a text has the question's own words in it, or is a part of them, as where a template is round it."""
        text, question = wording(called(value)), self.all[place]
        asked = [wording(question.prompt), *_bare(question)]
        return any(words in text for words in asked) or text in asked[0]

    @cached_property
    def _ids(self) -> Mapping[str, Places]:
        return _index((question.id, place) for place, question in enumerate(self.all))

    @cached_property
    def _numbers(self) -> Mapping[str, Places]:
        nested = all("/" in question.id for question in self.all)
        ends = (question.id.rpartition("/")[2] if nested else question.id for question in self.all)
        return _index((_numbered(end), place) for place, end in enumerate(ends))

    @cached_property
    def _pictures(self) -> Mapping[str, Places]:
        return _index((end, place) for place, name in self._named for end in _ends(name))

    @cached_property
    def _plain(self) -> Mapping[str, Places]:
        """By a name that is a number and nothing else."""
        return _index((_numbered(stem), at) for at, name in self._named if (stem := _stem(name)).isdecimal())

    @cached_property
    def _counted(self) -> Mapping[str, Places]:
        """By the number at the end of a name."""
        return _index((match[1], at) for at, name in self._named if (match := _COUNTED.search(_stem(name))))

    @cached_property
    def _named(self) -> list[tuple[int, str]]:
        return [(place, question.image) for place, question in enumerate(self.all) if question.image]

    @cached_property
    def _words(self) -> Mapping[str, Places]:
        return _index(
            (words, place)
            for place, question in enumerate(self.all)
            for words in {wording(question.prompt), *_bare(question)}
        )

    @cached_property
    def are_alike(self) -> bool:
        """Whether all are asked the same, which tells none from another."""
        return len({question.prompt for question in self.all}) == 1

    def is_first(self, value: Any) -> bool:
        """Whether a text is the first question, word for word."""
        return wording(called(value)) in (wording(self.all[0].prompt), *_bare(self.all[0]))

    @cached_property
    def _facts(self) -> Mapping[str, Mapping[str, Places]]:
        facts: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for place, question in enumerate(self.all):
            for name, value in question.truth.items():
                if name != "question" and called(value):
                    facts[name.lower()].append((called(value), place))
        return {name: _index(named) for name, named in facts.items()}


def _bare(question: Question) -> list[str]:
    """The question as the benchmark has it, where its prompt adds to that."""
    own = question.truth.get("question")
    return [wording(own)] if isinstance(own, str) else []


def _index(named: Iterable[tuple[str, int]]) -> Mapping[str, Places]:
    places: dict[str, set[int]] = defaultdict(set)
    for name, place in named:
        places[name].add(place)
    return dict(places)


def _numbered(name: str) -> str:
    number = _NUMBER.fullmatch(name)
    return number[1] if number else name


def _stem(name: str) -> str:
    return _SUFFIX.sub("", name.replace("\\", "/").rpartition("/")[2])


def _ends(name: str) -> Iterator[str]:
    """The path and its ends, the longest first: c/b/a.jpg, b/a.jpg, a.jpg; then all without the extension."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    yield from ends
    yield from (_SUFFIX.sub("", end) for end in ends)
