"""What came of the rows, counted once, while they are written."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from minipovid.inference.remote import Usage
from minipovid.pairs.make.makers import Outcome
from minipovid.pairs.pair import BadRow, Pair, Seed

COMMONEST = 3
_PARTICULARS = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\d[\d.,]*")  # words, paths and numbers of one row


@dataclass
class MakeCounts:
    """rows = pairs + failures + left. `usage` is what all rows took, in this run or an earlier one."""

    rows: int = 0
    pairs: int = 0
    failures: int = 0
    left: int = 0  # not asked yet
    asked_again: int = 0  # rows whose first answer could not be used
    reasons: list[dict[str, Any]] = field(default_factory=list)  # the commonest: {"rows", "reason" of the first}
    kinds: dict[str, int] = field(default_factory=dict)  # of the spans
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # (id, the id that had this rejected answer first)
    usage: Usage = Usage()
    cost: float | None = None
    this_run: Usage = Usage()
    cost_of_this_run: float | None = None
    stopped: str = ""  # what ended it before the last row

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RowCounter:
    """Enter every row, in order."""

    def __init__(self) -> None:
        self.counts = MakeCounts()
        self._rejected: dict[bytes, str] = {}  # digest of an answer -> the first id that has it
        self._reasons = Counter[str]()  # why rows failed, without what is particular to a row
        self._first: dict[str, str] = {}  # the same, as it was said first

    def enter(self, row: Seed | BadRow, outcome: Outcome | None) -> Pair | dict[str, Any] | None:
        """The row's pair; or its failure as it stands in failures.jsonl; or None, where it has not been made yet."""
        self.counts.rows += 1
        if isinstance(row, BadRow):
            self._fail(row.why)
            return {"where": row.where, "reasons": [row.why]}
        if outcome is None:
            self.counts.left += 1
            return None
        self.counts.usage += outcome.usage
        self.counts.asked_again += bool(outcome.reasons and outcome.usage.requests > 1)
        if outcome.pair is None:
            self._fail(outcome.reasons[-1] if outcome.reasons else "no reason was given")
            known = {"id": row.id, "image": str(row.image), "prompt": row.prompt, "chosen": row.answer}
            return {**known, "reasons": list(outcome.reasons)}
        pair = outcome.pair
        self.counts.pairs += 1
        for span in pair.spans:
            self.counts.kinds[span.kind] = self.counts.kinds.get(span.kind, 0) + 1
        answer = hashlib.sha256(" ".join(pair.rejected.casefold().split()).encode()).digest()[:16]
        first = self._rejected.setdefault(answer, pair.id)
        if first != pair.id:
            self.counts.duplicates.append((pair.id, first))
        return pair

    def _fail(self, reason: str) -> None:
        self.counts.failures += 1
        kind = _PARTICULARS.sub("...", reason)
        self._first.setdefault(kind, reason)
        self._reasons[kind] += 1
        common = self._reasons.most_common(COMMONEST)
        self.counts.reasons = [{"rows": rows, "reason": self._first[kind]} for kind, rows in common]
