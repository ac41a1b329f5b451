"""What a verification found: a table, and one sentence for each fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from minipovid.report.surroundings import TURNED
from minipovid.verify import measures
from minipovid.verify.answers import PairComparison
from minipovid.verify.causes import Cause, distinct
from minipovid.verify.measures import Margins

FEW = 10  # pairs; of fewer it is not told how near a file comes, only whether it is another model's

UNJUDGED = "too few to judge"


@dataclass
class Measured:
    """One row of the table: how one model answers, beside the trained one."""

    file: str
    merge_base: str = ""
    stamp: str = ""  # of what the file was made
    mib: float | None = None
    kl: float | None = None  # mean over all answer positions, nats
    agreement: float | None = None  # share of positions with the same greedy choice
    positions: int = 0  # that the two are of
    parity: float | None = None  # share of prompts and answers with the tokens of training
    margins: Margins | None = None
    bits: int | None = None  # per weight; None: a row for comparison, which is not judged
    is_base: bool = False  # does it say what the base says?
    same_base: bool = True  # made of the base that training saw?
    causes: list[Cause] = field(default_factory=list)
    note: str = "ok"
    is_few: bool = False  # on fewer than FEW pairs

    def fill_in(self, pairs: Sequence[PairComparison], trained: Sequence[float]) -> Measured:
        """The numbers, from how it compares on each pair, and the trained margins of these."""
        kl, same = (np.concatenate([getattr(each, name) for each in pairs]) for name in ("kl", "same"))
        self.kl, self.agreement = (float(each.mean()) if len(each) else None for each in (kl, same))
        self.positions = len(kl)
        self.parity = float(np.mean([each.parity for each in pairs]))
        whole = [(each.margin, due) for each, due in zip(pairs, trained, strict=True) if each.margin is not None]
        self.margins = measures.margins([each for each, _ in whole], [due for _, due in whole]) if whole else None
        along, way, here = np.sum([each.moved for each in pairs], axis=0)
        self.is_base = bool(along > 0.8 * way > 0 and along**2 > 0.7 * way * here)  # as far, and in that direction
        return self

    @property
    def excesses(self) -> list[str]:
        """What is beyond the tolerance."""
        if self.bits is None:
            return []
        allowed, sentences = measures.tolerance(self.bits, self.same_base), list[str]()
        if self.parity is not None and self.parity < 1:
            sentences.append(f"{self.parity:.1%} of prompts and answers have the tokens of training")
        if self.parity is not None and self.kl is None:
            sentences.append("no answer has the tokens of training")
        if self.is_few and not self.is_base and (self.bits < 16 or not self.same_base):
            return sentences  # what rounding costs is a matter of averages
        if self.kl is not None and self.kl > allowed.kl:
            sentences.append(f"KL {self.kl:.2g}, allowed {allowed.kl:g}")
        if self.agreement is not None and self.agreement < self._agreement(allowed.agreement):
            sentences.append(f"agreement {self.agreement:.1%}, allowed {allowed.agreement:.0%}")
        kept = self.margins and self.margins.kept
        if self.margins and kept is not None and abs(kept - 1) > allowed.kept + self.margins.doubt:
            sentences.append(f"margin kept {kept:.0%}, allowed 100 ± {allowed.kept * 100:.0f} %")
        return sentences

    def _agreement(self, share: float) -> float:
        """The least share of these positions that does not speak against `share` of all: two standard errors less."""
        return share - 2 * (share * (1 - share) / max(self.positions, 1)) ** 0.5

    @property
    def faults(self) -> list[Cause]:
        """The causes that count: what rounding costs is one only where it is too much."""
        return [cause for cause in self.causes if self.excesses or not cause.is_cost]

    @property
    def verdict(self) -> str:
        faults = list(dict.fromkeys(cause.fault for cause in self.faults))
        return ", ".join(faults) or "; ".join(self.excesses) or self.note

    def row(self) -> dict[str, Any]:
        """As the table shows it; what was not measured is empty."""
        shown = {
            "file": self.file,
            "merge_base": self.merge_base,
            "MiB": self.mib,
            "KL": self.kl,
            "agreement": self.agreement,
            "tokens": self.parity,
            "margin": self.margins and self.margins.mean,
            "kept": self.margins and self.margins.kept,
            "verdict": self.verdict,
        }
        return {key: "" if value is None else value for key, value in shown.items()}


@dataclass
class Verdict:
    """What came out; `notes` say under which conditions."""

    rows: list[Measured]
    pairs: int
    faults: list[Cause]
    notes: list[str]

    @classmethod
    def of(cls, rows: list[Measured], pairs: int, notes: list[str]) -> Verdict:
        if pairs < FEW:
            rows = [replace(row, is_few=True, note=UNJUDGED if row.note == "ok" else row.note) for row in rows]
            notes = [*notes, _few(pairs)]
        is_sound = any(row.bits is not None and row.bits >= 16 and not row.excesses + row.faults for row in rows)
        unexplained = [_likely(row, is_sound) for row in rows if row.excesses and not row.faults]
        known = [cause for row in rows for cause in row.faults]
        return cls(rows, pairs, distinct([*known, *unexplained]), notes)

    @property
    def ok(self) -> bool | None:
        """None where nothing is wrong with the files, as far as so few pairs can tell."""
        return False if self.faults else True if self.pairs >= FEW else None

    @property
    def causes(self) -> list[str]:
        """One sentence for each fault."""
        return [cause.sentence for cause in self.faults]

    def table(self) -> list[dict[str, Any]]:
        return [row.row() for row in self.rows]

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it. `stamp` tells which file of this name a row is about; "" for what is no file."""
        rest = {"causes": self.causes, "faults": [cause.fault for cause in self.faults], "notes": self.notes}
        table = [{**row.row(), "stamp": row.stamp} for row in self.rows]
        return {"ok": self.ok, "pairs": self.pairs, "table": table, **rest}


def against_training(trained: Measured, pairs: int) -> list[Cause]:
    """The fault of a model that likes the rejected answers more than its base does, on average."""
    if pairs < FEW or trained.margins is None or trained.margins.mean >= -measures.JITTER:
        return []
    what = (
        f"on {pairs} pairs it favours the rejected answer over the chosen one by {-trained.margins.mean:.2g} nats more "
        "than its base does; the training went the wrong way: look whether chosen and rejected are swapped"
    )
    return [Cause.of(trained.file, TURNED, what)]


def _few(pairs: int) -> str:
    return (
        f"{pairs} {'pair is' if pairs == 1 else 'pairs are'} too few to judge how near a file comes, or what training "
        f"did: take {FEW} or more (data.held_out, --pairs). Weights, tokens and the picture's way were judged."
    )


def _likely(row: Measured, is_sound: bool) -> Cause:
    """Of a row beyond tolerance in which nothing wrong was found; `is_sound`: there is a 16-bit row that is well."""
    excess = "; ".join(row.excesses)
    if row.is_base:
        return Cause.of(row.file, "adapter not applied", f"it answers as the base does, without the adapter ({excess})")
    if not is_sound or (row.bits or 16) >= 16 and row.same_base:
        what = (
            f"{excess}, and no known fault explains it: what could be checked of weights, tokens and picture is right"
        )
        return Cause.of(row.file, "unknown", what)
    if not row.same_base:
        what = f"{excess}; it was made of the {row.merge_base} base, which is not the one that training saw"
        return Cause.of(row.file, "other base", f"{what}: export it with another merge_base, or take more bits")
    what = f"{excess}; 16 bits are well, so this is what rounding costs here: take more bits"
    return Cause.of(row.file, "rounding", what)
