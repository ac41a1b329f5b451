"""A text in pieces: which words the other answer has not at that place, and what the spans say of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import NamedTuple

from minipovid.pairs.pair import Span

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
MOST = 4_000_000  # word against word; beyond, difflib would keep the page waiting and all between is marked


class Passage(NamedTuple):
    """A run of characters that are shown alike."""

    text: str
    changed: bool
    kind: str  # of the span that it lies in, or ""


def pieces(text: str, other: str, spans: Sequence[Span] = ()) -> list[Passage]:
    """The whole text, cut where a mark begins or ends. Joined, the pieces are the text."""
    changed = list(_changes(text, other))
    edges = {0, len(text), *(edge for place in changed for edge in place)}
    edges |= {edge for span in spans for edge in span[:2]}
    passages = []
    for start, end in pairwise(sorted(edge for edge in edges if 0 <= edge <= len(text))):
        inside = any(first <= start < last for first, last in changed)
        kind = next((span.kind for span in spans if span.start <= start < span.end), "")
        passages.append(Passage(text[start:end], inside, kind))
    return passages


def _changes(text: str, other: str) -> Iterator[tuple[int, int]]:
    """[start, end) of every run of words that are new in `text`; case does not matter."""
    places = [match.span() for match in _WORD.finditer(text)]
    new, old = ([word.casefold() for word in _WORD.findall(each)] for each in (text, other))
    same = 0
    while same < min(len(new), len(old)) and new[same] == old[same]:
        same += 1
    if (len(new) - same) * (len(old) - same) > MOST:
        yield places[same][0], places[-1][1]
        return
    codes = SequenceMatcher(None, old[same:], new[same:], autojunk=False).get_opcodes()
    for operation, _, _, first, last in codes:
        if operation != "equal" and last > first:
            yield places[same + first][0], places[same + last - 1][1]
