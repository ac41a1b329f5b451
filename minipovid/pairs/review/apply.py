"""The pairs as a person decided them, as a new file: rejected rows left out, edits and swaps in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.images.load import inside
from minipovid.pairs import formats
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.pairs.reading import where
from minipovid.pairs.review.decisions import LABELS, History, ReviewRow, State, decisions_file
from minipovid.pairs.source import PairSource, find

PERSON = "person"
PICTURES = "images"  # the folder beside the new file for pictures that lie elsewhere


class ApplyCounts(NamedTuple):
    """What became of the rows. `pairs` are in the new file: rows = pairs + rejected + left_out + bad."""

    pairs: int
    accepted: int
    edited: int
    swapped: int
    undecided: int
    rejected: int
    left_out: int  # undecided, where only decided rows were wanted
    bad: int  # rows that are no pairs
    stale: int  # decisions about rows that are gone or have changed since; they count for nothing
    torn: int  # lines of the decisions that a crash cut short


def apply(
    path: Path | str, to: Path, *, format: str | None = None, images: Path | None = None, decided_only: bool = False
) -> ApplyCounts:
    """Write the reviewed pairs to `to`, one JSON object per line, and say what became of each row.

    `source` then says "person" of a half that a person wrote, and under "preference" of a row that one has looked at.
    The new file stands alone: pictures outside its folder are brought into images/ beside it. Raises MinipovidError
    where nothing was decided, and for a picture that is not there.
    """
    source = find(path, format, images)
    file = decisions_file(source.path)
    if not file.is_file():
        raise MinipovidError(f"There is no {file}; decide with `minipovid pairs show {path}` first.")
    if to.suffix != ".jsonl" or to.resolve() in (source.path.resolve(), file.resolve()):
        raise MinipovidError(f"{to} must be another file, and end in .jsonl.")
    work = _Applying(source, History.read(file), to, decided_only)
    jsonl.write(to, work.pairs())
    return work.counts()


class _Applying:
    def __init__(self, source: PairSource, history: History, to: Path, decided_only: bool) -> None:
        self.source, self.history, self.decided_only = source, history, decided_only
        self.folder, self.store = to.parent.resolve(), Store(to.parent / PICTURES)
        self.states: Counter[str] = Counter()
        self.bad = self.met = 0

    def pairs(self) -> Iterator[Pair]:
        for number, pair in enumerate(formats.reader(self.source.format).read(self.source.path), 1):
            if not isinstance(pair, Pair):
                self.bad += 1
                continue
            row = ReviewRow.of_pair(pair)
            state = self.history.state(row.id, row.of)
            known = self.history.states.get(row.id)
            self.met += known is not None and known[0] == row.of
            self.states[state.label] += 1
            if state.label != "rejected" and not (state.label == "undecided" and self.decided_only):
                yield replace(_as_decided(pair, row, state), image=self._picture(pair, number))

    def _picture(self, pair: Pair, number: int) -> str:
        """The picture's path from the new file's folder."""
        if isinstance(pair.image, Embedded):
            return f"{PICTURES}/{self.store.keep(pair.image)}"
        path = inside(self.source.root, placed(self.source.root, pair.image))
        if not path.is_file():
            place = where(pair, number)
            raise MinipovidError(f"{place}: there is no picture {path}; reject the row, or name the image folder.")
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return f"{PICTURES}/{self.store.adopt(path)}"

    def counts(self) -> ApplyCounts:
        states = self.states
        left_out = states["undecided"] if self.decided_only else 0
        return ApplyCounts(
            pairs=states.total() - states["rejected"] - left_out,
            **{label: states[label] for label in LABELS},
            left_out=left_out,
            bad=self.bad,
            stale=len(self.history.states) - self.met,
            torn=self.history.torn,
        )


def _as_decided(pair: Pair, row: ReviewRow, state: State) -> Pair:
    """Spans stay where the rejected answer does; each half takes its author along."""
    if state.label == "undecided":
        return pair
    chosen, rejected = row.texts(state)
    authors = {row.rejected: pair.source.get("rejected"), row.chosen: pair.source.get("chosen")}
    source = {**pair.source, "preference": PERSON}
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        author = authors.get(text, PERSON)
        source = {key: value for key, value in source.items() if key != side} | ({side: author} if author else {})
    spans = pair.spans if rejected == row.rejected else ()
    return replace(pair, chosen=chosen, rejected=rejected, source=source, spans=spans)
