"""log.jsonl: one line per logged step under TRL's metric names, and events in between.

    {"event": "data", "pairs": 2400, "bad_rows": 0, "bad": []}
    {"step": 10, "stage": 0, "epoch": 0.07, "loss": 0.6921, "rewards/margins": 0.002, ..., "pairs_per_s": 41.2}

A step's figures are means over the pairs since the line before. A resumed run first drops the lines that lie after its
checkpoint, so that the log of an interrupted run reads like that of any other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minipovid.files import finished
from minipovid.types import BadRow

SINKING = -0.1  # nats per token that the chosen answer may lose against the reference before we warn


class Meter:
    """Collects the figures of optimiser steps and writes a line every `every` steps."""

    def __init__(self, run: Path, stage: int, every: int, state: Mapping[str, Any] | None = None) -> None:
        self.log, self.stage, self.every = run / "log.jsonl", stage, every
        self.warned = bool(state and state["warned"])
        self._clear()
        if state:
            self.sums.update(state["sums"])
            self.pairs = self.before = state["pairs"]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the next line tells of all its pairs."""
        return {"sums": self.sums, "pairs": self.pairs, "warned": self.warned}

    def add(self, figures: dict[str, float], pairs: int, step: int, epoch: float, last: bool) -> dict[str, Any] | None:
        """Take one step's figures (means over its `pairs`); returns the line, where one was due."""
        self.pairs += pairs
        for key, value in figures.items():
            self.sums[key] = self.sums.get(key, 0.0) + value * pairs
        if step % self.every and not last:
            return None
        means = {key: float(f"{value / self.pairs:.6g}") for key, value in self.sums.items()}
        line = {"step": step, "stage": self.stage, "epoch": round(epoch, 4), **means, **self._speed()}
        append(self.log, line)
        self._warn(means)
        self._clear()
        return line

    def _clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.pairs, self.since = 0, time.monotonic()
        self.before = 0  # pairs of the sums that were seen before a restart

    def _speed(self) -> dict[str, float]:
        speed = {"pairs_per_s": round((self.pairs - self.before) / (time.monotonic() - self.since), 3)}
        if torch.cuda.is_available():
            speed["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        return speed

    def _warn(self, means: dict[str, float]) -> None:
        """DPO is content when both answers sink and the rejected one sinks faster: recall dies that way."""
        change = means.get("logps/chosen_change_per_token", 0.0)
        if change >= SINKING or self.warned:
            return
        self.warned = True
        text = (
            f"The chosen answers have become less likely than the reference finds them ({change:.2f} nats per token): "
            f"the model may be unlearning good answers; consider loss.anchor, a larger beta or a lower learning rate."
        )
        append(self.log, {"event": "warning", "stage": self.stage, "warning": text})
        print(f"warning: {text}", file=sys.stderr)


def begin(log: Path, pairs: int, bad: Sequence[BadRow]) -> None:
    """A new log, opened with what the data set holds."""
    line = {"event": "data", "pairs": pairs, "bad_rows": len(bad), "bad": [row._asdict() for row in bad]}
    with finished(log) as draft:
        draft.write_text(json.dumps(line) + "\n", encoding="utf-8")


def append(log: Path, line: dict[str, Any]) -> None:
    """Add one line to a log."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def rewind(log: Path, step: int) -> None:
    """Drop what a run wrote after `step`, the half of a line at the end included."""
    kept = []
    if not log.is_file():
        return
    for text in log.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line.get("step", 0) > step:
            break
        kept.append(text + "\n")
    with finished(log) as draft:
        draft.write_text("".join(kept), encoding="utf-8")
