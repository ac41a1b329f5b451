"""log.jsonl: one line per logged step under TRL's metric names, and events in between.

    {"event": "data", "pairs": 2400, "bad_rows": 0, "bad": []}
    {"step": 10, "stage": 0, "epoch": 0.07, "loss": 0.6921, "rewards/margins": 0.002, ..., "weights/changed": 0.9998,
     "pairs_per_s": 41.2, "tokens_per_s": 31400, "data_wait": 0.004, "peak_gib": 17.31, "reserved_gib": 18.02}

A step's figures are means over the pairs since the line before. What tells of the machine (MACHINE) instead covers the
time since that line or since a restart. A resumed run first drops the lines that lie after its checkpoint, so that the
log of an interrupted run reads like that of any other but for the machine's figures.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minipovid.common.append_only import Lines, objects
from minipovid.common.files import finished
from minipovid.pairs.pair import BadRow
from minipovid.recipe import run_folder

SINKING = -0.1  # nats per token that the chosen answer may lose against the reference before we warn
MACHINE = ("pairs_per_s", "tokens_per_s", "data_wait", "peak_gib", "reserved_gib")
# Keys that two runs of one recipe may differ in; the last one because a killed start leaves its work on disk.
VARYING = (*MACHINE, "reference/computed")
SAMPLE = 4096  # entries of each tensor that Changed looks at


class TrainingLog:
    """Collects the figures of optimiser steps and writes a line every `every` steps."""

    def __init__(self, run: Path, stage: int, every: int, state: Mapping[str, Any] | None = None) -> None:
        self.log, self.stage, self.every = run / run_folder.LOG, stage, every
        self.warned = bool(state and state["warned"])
        self._clear()
        if state:
            self.sums.update(state["sums"])
            self.pairs = self.before = state["pairs"]

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the next line tells of all its pairs."""
        return {"sums": self.sums, "pairs": self.pairs, "warned": self.warned}

    def add(
        self,
        figures: dict[str, float],
        pairs: int,
        step: int,
        epoch: float,
        last: bool,
        tokens: int = 0,
        waited_s: float = 0.0,
    ) -> dict[str, Any] | None:
        """Take one step's figures (means over its `pairs`); returns the line, where one was due.

        `tokens`: computed in this step. `waited_s`: seconds of it in which the loop waited for the next batch.
        """
        self.pairs += pairs
        self.tokens += tokens
        self.waited_s += waited_s
        for key, value in figures.items():
            self.sums[key] = self.sums.get(key, 0.0) + value * pairs
        if step % self.every and not last:
            return None
        means = {key: float(f"{value / self.pairs:.6g}") for key, value in self.sums.items()}
        line = {"step": step, "stage": self.stage, "epoch": round(epoch, 4), **means, **self._machine()}
        append(self.log, line)
        self._warn(means)
        self._clear()
        return line

    def _clear(self) -> None:
        self.sums: dict[str, float] = {}
        self.pairs, self.tokens, self.waited_s, self.since = 0, 0, 0.0, time.perf_counter()
        self.before = 0  # pairs of the sums that were seen before a restart

    def _machine(self) -> dict[str, float]:
        """MACHINE: rates per second of wall time, waiting as a share of it (0 to 1), and memory."""
        seconds = time.perf_counter() - self.since
        return {
            "pairs_per_s": round((self.pairs - self.before) / seconds, 3),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "data_wait": round(min(self.waited_s / seconds, 1.0), 4),
            "peak_gib": round(peak_gib(), 3),
            **({} if (reserved := reserved_gib()) is None else {"reserved_gib": round(reserved, 3)}),
        }

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


def begin_peak() -> None:
    """A stage's memory on a card is its own, not that of the one before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most memory that this process has held: on the card, since the stage began, where there is one, else
    resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "linux":  # its getrusage tells of the parent's memory too, where that was larger
        return resident_gib("VmHWM")
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS: bytes


def reserved_gib() -> float | None:
    """The most that torch's allocator has taken of the card since the stage began, which nvidia-smi counts; None where
    there is no card."""
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else None


def resident_gib(key: str) -> float:
    """What Linux says of this process's memory: VmRSS is resident now, VmHWM the most that ever was."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition(f"{key}:")[2].split()[0]) / 2**20  # in kB


class Changed:
    """Which share of the adapter's weights a step has changed, from at most SAMPLE fixed entries of each tensor.

    A float32 weight moves at every step. One in bfloat16 (8 bits of precision) stays where it is when the update is
    under half of its last place: at a learning rate of 1e-6 that is 97 of 100 weights of a fresh lora_A. A weight whose
    gradient has been exactly zero so far counts as unchanged too, as all of lora_A in a run's first step does.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.earlier = self._sampled()
        total = max(sum(weight.numel() for weight in weights), 1)
        counts = [len(_sample(weight)) for weight in weights]
        sizes = [weight.numel() / max(count, 1) / total for weight, count in zip(weights, counts, strict=True)]
        # [samples] Which part of all weights each sample stands for: a small tensor is sampled more densely.
        parts = torch.from_numpy(np.repeat(np.array(sizes, np.float32), counts))
        self.parts = parts.to(self.earlier.device)

    def share(self) -> Tensor:
        """Of the weights, 0 to 1, since the last call, or since this was made; on their device, not waited for."""
        earlier, self.earlier = self.earlier, self._sampled()
        return ((self.earlier != earlier) * self.parts).sum()

    def _sampled(self) -> Tensor:
        """[samples] The entries of all tensors as they are now."""
        return torch.cat([_sample(weight) for weight in self.weights])


def _sample(weight: Tensor) -> Tensor:
    """[at most SAMPLE] Every n-th entry. n is odd: by an even one a matrix would show the same few columns alone."""
    return weight.detach().reshape(-1)[:: math.ceil(weight.numel() / SAMPLE) | 1]


def begin(log: Path, pairs: int, bad: Sequence[BadRow], stage: int | None = None) -> None:
    """A new log, opened with what the data set holds; that of a `stage` with data of its own is added to it."""
    line = {"event": "data", "pairs": pairs, "bad_rows": len(bad), "bad": [row._asdict() for row in bad]}
    if stage is not None:
        return append(log, {**line, "stage": stage})
    with finished(log) as draft:
        draft.write_text(json.dumps(line) + "\n", encoding="utf-8")


def append(log: Path, line: dict[str, Any]) -> None:
    """Add one line to a log."""
    with Lines(log) as rows:
        rows.add(line)


def rewind(log: Path, step: int) -> None:
    """Drop what a run wrote after `step`, and lines that are damaged, such as the half of one at the end."""
    if not log.is_file():
        return
    kept = takewhile(lambda line: line.get("step", 0) <= step, objects(log))
    with finished(log) as draft:
        draft.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
