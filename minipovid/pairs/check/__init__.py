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
from minipovid.pairs.check.findings import Findings
from minipovid.pairs.check.leak import leak
from minipovid.pairs.check.lengths import Lengths
from minipovid.pairs.check.misplaced import odd
from minipovid.pairs.check.pictures import PictureCheck
from minipovid.pairs.check.repeats import Repeats
from minipovid.pairs.check.report import CheckReport
from minipovid.pairs.check.sources import Sources
from minipovid.pairs.check.tokens import TokenLengths
from minipovid.pairs.check.wording import wording
from minipovid.pairs.pair import BadRow, Pair, Unpaired
from minipovid.pairs.reading import where
from minipovid.pairs.source import PairSource, find

__all__ = ["SAMPLE", "CheckReport", "check"]
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
) -> CheckReport:
    """Look at every row of a pairs file, a run folder or `tinyworld`; `progress` is called after each.

    `format` is a file on the shelf formats/ (default: as recognised), `images` the folder of the picture paths
    (default: where the pairs lie). With a `model` (a run names its own) the tokens are counted, and rows of more than
    `max_length` (default: the recipe's) are problems. Without `decode` pictures are only looked for. Raises
    MinipovidError where the file as a whole cannot be read.
    """
    source = find(path, format, images).asking(model, revision, max_length)
    work = _Pass(source, decode, seed)
    for number, row in enumerate(islice(formats.reader(source.format).read(source.path), limit), 1):
        work.see(row, number)
        progress()
    return work.report()


class _Pass:
    """Everything that is counted while the rows pass."""

    def __init__(self, source: PairSource, decode: bool, seed: int) -> None:
        self.source, self.seed, self.rng = source, seed, random.Random(seed)
        self.findings, self.rows, self.unpaired = Findings(), 0, 0
        self.pictures = PictureCheck(source.root, decode)
        self.repeats, self.lengths, self.makers = Repeats(), Lengths(), Sources()
        self.tokens = TokenLengths.of(source)
        self.sample: dict[int, Pair] = {}  # by the place that it won; in the order of the file

    def see(self, row: Pair | BadRow, number: int) -> None:
        self.rows += 1
        if isinstance(row, Pair):
            self._see_pair(row, where(row, number))
        elif isinstance(row, Unpaired):
            self.unpaired += 1
        else:
            self.findings.add("unusable row", row.where, row.why)

    def _see_pair(self, pair: Pair, place: str) -> None:
        # Without the bytes of a picture that lay inside the data file.
        pair = replace(pair, image=self.pictures.look(pair.image, place))
        self.findings.take(place, odd(pair))
        self.findings.take(place, self.repeats.see(pair, place))
        if self.tokens is not None:
            self.findings.take(place, self.tokens.see(pair))
        self.lengths.see(pair)
        self.makers.see(pair)
        # Vitter's algorithm R: each pair is as likely as any other, without knowing how many will come.
        count = self.lengths.pairs
        won = count - 1 if count <= SAMPLE else self.rng.randrange(count)
        if won < SAMPLE:
            self.sample.pop(won, None)
            self.sample[won] = pair

    def report(self) -> CheckReport:
        for place, why in self.pictures.broken():
            self.findings.add("missing or unreadable picture", place, why)
        sample = list(self.sample.values())
        return CheckReport(
            path=self.source.path,
            format=self.source.format,
            rows=self.rows,
            pairs=self.lengths.pairs,
            unpaired=self.unpaired,
            pictures=len(self.pictures),
            findings=self.findings,
            lengths=self.lengths.summary(),
            tokens=None if self.tokens is None else self.tokens.summary(),
            wording=wording(sample),
            makers=self.makers.summary(),
            leak=leak(sample, self.seed),
        )
