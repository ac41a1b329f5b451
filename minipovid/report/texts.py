"""Texts with marked words, safe to stand in the page: whatever a model says stays text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from markupsafe import Markup, escape

from minipovid.pairs.review.marks import pieces


def marked(text: str, spans: Iterable[tuple[int, int]]) -> Markup:
    """The text with every span [start, end) in a <mark>; spans that meet become one, those outside are cut."""
    parts, at = [], 0
    for start, end in _joined(spans, len(text)):
        parts += [escape(text[at:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        at = end
    return Markup("").join([*parts, escape(text[at:])])


def _joined(spans: Iterable[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    reach: tuple[int, int] | None = None
    for start, end in sorted((max(0, start), min(length, end)) for start, end in spans):
        if start >= end:
            continue
        if reach and start <= reach[1]:
            reach = (reach[0], max(reach[1], end))
            continue
        if reach:
            yield reach
        reach = (start, end)
    if reach:
        yield reach


def differing(text: str, other: str) -> Markup:
    """The text with the words marked that the other has not."""
    at, spans = 0, []
    for piece in pieces(text, other):
        if piece.changed:
            spans.append((at, at + len(piece.text)))
        at += len(piece.text)
    return marked(text, spans)


_ABSOLUTE = re.compile(r"(?<![\w.~/:])(?:[A-Za-z]:\\|/)(?:[^\s\"'`,;:()<>|]+[/\\])+([^\s\"'`,;:()<>|]+)")


def anonymous(text: str) -> str:
    """Without the folders of absolute paths, which tell who somebody is: .../pairs.json."""
    home = str(Path.home())
    text = text.replace(f"{home}/", "~/") if len(home) > 1 else text
    return _ABSOLUTE.sub(r".../\1", text)
