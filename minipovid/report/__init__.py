"""One self-contained page about a run, or about several beside each other, and the same table for the terminal.

    told = report([Path("runs/demo")])
    told.page                       # runs/demo/report.html: no network, no script but its own, light and dark
    told.rows, told.markdown()      # the result table

Everything comes from the run folders; what one lacks is left out, and the page says which command makes it. Nothing
is trained or asked here, and torch is not imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.recipe import run_folder
from minipovid.report import page, tables
from minipovid.report.runs import Results
from minipovid.report.verdict import ReportVerdict

__all__ = ["Report", "report"]


@dataclass(frozen=True)
class Report:
    """What was written and what it says."""

    page: Path
    results: Results
    verdict: ReportVerdict

    @property
    def rows(self) -> list[dict[str, str]]:
        return tables.rows(self.results)

    @property
    def remarks(self) -> list[str]:
        return tables.remarks(self.results)

    def markdown(self) -> str:
        """For a model card: headline, changes, table, remarks."""
        findings = "\n".join(f"- {finding.text}" for finding in self.verdict.findings)
        remarks = "\n".join(f"- {remark}" for remark in self.remarks)
        how = "95 % intervals by bootstrap over pictures; changes are paired." if self.rows else ""
        parts = [f"**{self.verdict.headline}** {self.verdict.bounds}".strip(), findings, tables.markdown(self.rows)]
        return "\n\n".join(part for part in (*parts, how, remarks) if part)

    def as_dict(self) -> dict[str, Any]:
        findings = self.verdict.findings
        return {
            "page": str(self.page),
            "bytes": self.page.stat().st_size,
            "headline": self.verdict.headline,
            "findings": [{"kind": each.kind, "figure": each.figure, "text": each.text} for each in findings],
            "results": tables.as_dict(self.results),
        }


def report(runs: Sequence[Path], out: Path | None = None) -> Report:
    """Write the page, by default to report.html in the last run's folder.

    Raises MinipovidError where a folder is no run or a result in it is damaged.
    """
    if not runs:
        raise MinipovidError("A report needs at least one run folder.")
    results = Results.of(runs)
    verdict = ReportVerdict.of(results)
    target = out or runs[-1] / run_folder.REPORT
    with finished(target) as draft:
        draft.write_text(page.html(results, verdict), encoding="utf-8")
    return Report(target, results, verdict)
