"""How good are these pairs? Looked at before a night is spent on them; nothing is changed.

    report = check(Path("pairs.json"), images=Path("photos"), model="llava-hf/llava-1.5-7b-hf")
    report.ok, report.problems, report.warnings

One pass over the file, in memory that does not grow with the pictures. What is costly (word differences, the style
leak) is measured on SAMPLE pairs drawn evenly from all. torch is imported only where a model is named.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from minipovid.pairs import formats
from minipovid.pairs.check.findings import Ledger
from minipovid.pairs.check.leak import leak
from minipovid.pairs.check.lengths import Lengths
from minipovid.pairs.check.misplaced import odd
from minipovid.pairs.check.pictures import Sight
from minipovid.pairs.check.repeats import Repeats
from minipovid.pairs.check.report import Report
from minipovid.pairs.check.sources import Makers
from minipovid.pairs.check.tokens import Tokens
from minipovid.pairs.check.wording import wording
from minipovid.pairs.pair import BadRow, Pair, Unpaired
from minipovid.pairs.reading import where
from minipovid.pairs.source import Source, find

__all__ = ["SAMPLE", "Report", "check"]
SAMPLE = 5_000  # pairs; the error of a share is then 0.7 % at most


def check(
    path: Path | str,
    *,
    format: str | None = None,
    images: Path | None = None,
    model: str | None = None,
    revision: str | None = None,
    max_length: int | None = None,
    decode: bool = True,
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Report:
    """Look at every row of a pairs file, a run folder or `tinyworld`; `progress` is called after each.

    `format` is a file on the shelf formats/ (default: as recognised), `images` the folder of the picture paths
    (default: where the pairs lie). With a `model` (a run names its own) the tokens are counted, and rows of more than
    `max_length` (default: the recipe's) are problems. Without `decode` pictures are only looked for. Raises
    MinipovidError where the file as a whole cannot be read.
    """
    source = find(path, format, images).asking(model, revision, max_length)
    work = _Work(source, decode, seed)
    for number, row in enumerate(islice(formats.reader(source.format).read(source.path), limit), 1):
        work.see(row, number)
        progress()
    return work.report()


class _Work:
    """Everything that is counted while the rows pass."""

    def __init__(self, source: Source, decode: bool, seed: int) -> None:
        self.source, self.seed = source, seed
        self.ledger = Ledger()
        self.rows = self.unpaired = 0
        self.sight = Sight(source.root, decode)
        self.repeats, self.lengths, self.makers = Repeats(), Lengths(), Makers()
        self.tokens = Tokens.of(source)
        self.sample = _Sample(SAMPLE, seed)

    def see(self, row: Pair | BadRow, number: int) -> None:
        self.rows += 1
        if isinstance(row, Pair):
            self._see_pair(row, where(row, number))
        elif isinstance(row, Unpaired):
            self.unpaired += 1
        else:
            self.ledger.add("unusable row", row.where, row.why)

    def _see_pair(self, pair: Pair, place: str) -> None:
        picture = self.sight.look(pair.image, place)
        pair = replace(pair, image=picture)  # without the bytes of one that lay inside the data file
        self.ledger.take(place, odd(pair))
        self.ledger.take(place, self.repeats.see(pair, place))
        if self.tokens is not None:
            self.ledger.take(place, self.tokens.see(pair))
        self.lengths.see(pair)
        self.makers.see(pair)
        self.sample.offer(pair)

    def report(self) -> Report:
        for place, why in self.sight.broken():
            self.ledger.add("missing or unreadable picture", place, why)
        sample = self.sample.drawn()
        return Report(
            path=self.source.path,
            format=self.source.format,
            rows=self.rows,
            pairs=self.lengths.pairs,
            unpaired=self.unpaired,
            pictures=len(self.sight),
            ledger=self.ledger,
            lengths=self.lengths.found(),
            tokens=None if self.tokens is None else self.tokens.found(),
            wording=wording(sample),
            makers=self.makers.found(),
            leak=leak(sample, self.seed),
        )


class _Sample:
    """Some of the pairs, each as likely as any other, without knowing how many will come (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.rng, self.seen = size, random.Random(seed), 0
        self.kept: list[tuple[int, Pair]] = []

    def offer(self, pair: Pair) -> None:
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append((self.seen, pair))
        elif (place := self.rng.randrange(self.seen)) < self.size:
            self.kept[place] = (self.seen, pair)

    def drawn(self) -> list[Pair]:
        """In the order of the file."""
        return [pair for _, pair in sorted(self.kept, key=lambda each: each[0])]
