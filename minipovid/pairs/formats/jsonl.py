"""minipovid's own format: one Pair per row, keys named like the fields of `Pair`; `source` and `spans` may be absent.

minipovid writes a row per line, and reads them in any container. An id must be there, and once.

{"id": "17", "image": "17.png", "prompt": "What is this?", "chosen": "A cat.", "rejected": "A cat and a dog.",
 "source": {"chosen": "person", "rejected": "rule"}, "spans": [{"start": 5, "end": 15, "kind": "object"}]}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, is_absent, short, text
from minipovid.common.files import finished
from minipovid.images import embedded
from minipovid.models.chat_template import IMAGE
from minipovid.pairs.pair import BadRow, Pair, Span
from minipovid.pairs.reading import identity, known, pairs_of, rows

KEYS = tuple(field.name for field in fields(Pair))


def read(path: Path) -> Iterator[Pair | BadRow]:
    """Every row of the file, in order. Raises MinipovidError where the file as a whole cannot be read."""
    yield from pairs_of(rows(path), _pair)


def claims(row: Mapping[str, Any]) -> int:
    texts = [row.get(key) for key in ("prompt", "chosen", "rejected")]
    foreign = IMAGE in str(texts[0]) or any(isinstance(each, list) for each in texts)  # TRL's, of the same columns
    is_own = set(row) <= set(KEYS) and not foreign
    return known(row, ("id", "image", "prompt", "chosen", "rejected"), KEYS) if is_own else 0


def write(path: Path, pairs: Iterable[Pair]) -> None:
    """Write the pairs; the file appears under its name when the last one is in it."""
    with finished(path) as draft, draft.open("w", encoding="utf-8") as file:
        for pair in pairs:
            row = {key: getattr(pair, key) for key in KEYS}
            row |= {"source": dict(pair.source), "spans": [span._asdict() for span in pair.spans]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _pair(row: dict[str, Any]) -> Pair:
    """One row as a Pair. Raises Bad."""
    for key in row:
        if key not in KEYS:
            raise Bad(f"{key} is not a key of a pair; known: {', '.join(KEYS)}")
    name = (isinstance(row.get("id"), (int, float)) and identity(row)) or text(row, "id")
    texts = {key: text(row, key) for key in ("prompt", "chosen", "rejected")}
    source = {} if is_absent(row.get("source")) else row["source"]
    if not isinstance(source, dict):
        raise Bad(f"source is {short(source)}, but it must be an object that says who made each half")
    made = {key: text(source, key) for key in source if source[key] is not None}
    return Pair(name, embedded.of(row, "image"), **texts, source=made, spans=_spans(row))


def _spans(row: dict[str, Any]) -> tuple[Span, ...]:
    spans = [] if is_absent(row.get("spans")) else row["spans"]
    if not isinstance(spans, list):
        raise Bad(f"spans is {short(spans)}, but it must be a list")
    length = len(row["rejected"])
    for span in spans:
        if not isinstance(span, dict) or set(span) != set(Span._fields):
            raise Bad(f"a span is {short(span)}, but it must be an object with start, end and kind")
        start, end = span["start"], span["end"]
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= length:
            raise Bad(f"a span is {short(span)}, which lies outside the {length} characters of the rejected answer")
    return tuple(Span(span["start"], span["end"], text(span, "kind")) for span in spans)
