"""What a check found: counts, defects by row, and sentences about what to mend and what to think about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipovid.pairs.check.findings import GRAVE, Findings
from minipovid.pairs.check.leak import Leak
from minipovid.pairs.check.lengths import LengthGap
from minipovid.pairs.check.sources import SourceCounts
from minipovid.pairs.check.tokens import TokenCounts
from minipovid.pairs.check.wording import Wording

SHOWN = 10


@dataclass(frozen=True)
class CheckReport:
    """What was found. `ok` says that nothing stands in the way of training; warnings may."""

    path: Path
    format: str
    rows: int
    pairs: int  # usable rows, whatever else is found about them
    unpaired: int  # rows of which the format's own rule makes no pair
    pictures: int  # distinct ones
    findings: Findings
    lengths: LengthGap
    tokens: TokenCounts | None  # None: no model was named
    wording: Wording
    makers: SourceCounts
    leak: Leak | None  # None: fewer than two pictures

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What must be mended before these pairs can train."""
        nothing = () if self.pairs else (f"no usable pair among {self.rows:,} rows.",)
        return [*nothing, *self.findings.sentences(grave=True)]

    @property
    def warnings(self) -> list[str]:
        """What makes them teach less, or something else, than they seem to."""
        measured = [each.warning() for each in (self.lengths, self.wording, self.leak) if each is not None]
        return [*self.findings.sentences(grave=False), *(each for each in measured if each)]

    def table(self) -> list[dict[str, str]]:
        return [{"what": what, "found": found} for what, found in self._lines()]

    def _lines(self) -> Iterator[tuple[str, str]]:
        unpaired = f", {self.unpaired:,} give none by the format's rule" if self.unpaired else ""
        yield "pairs", f"{self.pairs:,} of {self.rows:,} rows ({self.format}){unpaired}"
        broken = self.findings.counts.get("missing or unreadable picture", 0)
        yield "pictures", f"{self.pictures:,}" + (f"; {broken:,} rows show none that can be read" if broken else "")
        gap = self.lengths
        if self.pairs:
            lengths = f"chosen {gap.chosen:.0f}, rejected {gap.rejected:.0f} ({gap.gap:+.0%})"
            yield "characters", f"{lengths}; rejected longer in {gap.rejected_longer:.0%}, equal in {gap.equal:.0%}"
        if t := self.tokens:
            row = f"median {t.median:,}, 95 % up to {t.most:,}, longest {t.longest:,} of {t.max_length:,}"
            yield "tokens", f"{row} (picture {t.picture:,}; {t.model}); {t.too_long:,} do not fit"
        words, makers = self.wording, self.makers
        if words.pairs:
            of = f" ({self._sampled(words.pairs)})" if words.pairs < self.pairs else ""
            yield "words changed", f"{words.changed:.0%} on average, {words.low:.0%} to {words.high:.0%}{of}"
        for by, kinds, pairs in (("spans", makers.kinds, makers.marked), ("words", words.kinds, words.unspanned)):
            if kinds:
                counts = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
                yield f"kinds, by {by}", f"{counts} of {pairs:,} pairs"
        for names, count in makers.sources.items():
            yield "made by", f"{names}: {count:,}"
        if makers.others:
            yield "", f"and others: {makers.others:,}"
        if leak := self.leak:
            share = f"{leak.accuracy:.2f} +- {leak.error:.2f}"
            yield "style leak", f"{share} ({self._sampled(leak.pairs)}; 0.50 is chance)"
        elif self.pairs:
            yield "style leak", "not measured: it takes two pictures"

    def _sampled(self, pairs: int) -> str:
        return f"{pairs:,} pairs" if pairs == self.pairs else f"a sample of {pairs:,} pairs"

    def defects(self, shown: int = SHOWN) -> list[dict[str, str]]:
        """The first rows of each kind of defect, and how many more there are."""
        rows = []
        for kind, first in self.findings.first.items():
            rows += [{"defect": kind, "row": place, "why": why} for place, why in first[:shown]]
            if more := self.findings.counts[kind] - min(len(first), shown):
                rows.append({"defect": kind, "row": f"{more:,} more", "why": ""})
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; of each kind of defect the first KEPT rows."""
        defects = {
            kind: {"rows": count, "grave": kind in GRAVE, "first": [list(each) for each in self.findings.first[kind]]}
            for kind, count in self.findings.counts.items()
        }
        leak = None if self.leak is None else self.leak._asdict()
        if leak is not None:
            leak["telling"] = [each._asdict() for each in leak["telling"]]
        return {
            "ok": self.ok,
            **{"path": str(self.path), "format": self.format, "rows": self.rows, "pairs": self.pairs},
            **{"unpaired": self.unpaired, "pictures": self.pictures, "defects": defects},
            "characters": {**self.lengths._asdict(), "gap": self.lengths.gap, "told": self.lengths.by_length},
            "tokens": None if self.tokens is None else self.tokens._asdict(),
            "wording": self.wording._asdict(),
            "makers": self.makers._asdict(),
            "style_leak": leak,
            **{"problems": self.problems, "warnings": self.warnings},
        }
