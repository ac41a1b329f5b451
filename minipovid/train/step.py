"""One optimiser step, top to bottom: forward, backward, reduce, clip, update, check."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from minipovid.common.errors import MinipovidError
from minipovid.train.batch import Batch
from minipovid.train.log import Changed
from minipovid.train.stages import Objective


class MicroBatch(NamedTuple):
    """Pairs that pass the model at once, as (epoch, row). One process may have none left where another has some: it
    then takes any pair, whose loss does not count."""

    keys: list[tuple[int, int]]
    counts: bool


class Step:
    """A stage's objective, its weights and its optimiser: call it once a step."""

    def __init__(
        self,
        accelerator: Accelerator,
        objective: Objective,
        weights: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
    ) -> None:
        self.accelerator, self.objective, self.optimizer = accelerator, objective, optimizer
        # Not the optimiser: accelerate would load its state anew, and so pull paged moments on the card.
        self.wrapped = accelerator.prepare(objective)
        self.weights, self.max_grad_norm, self.changed = weights, max_grad_norm, Changed(weights)

    def __call__(
        self, parts: Sequence[MicroBatch], batches: Iterator[Batch | MinipovidError], pairs: int, rate: float, name: str
    ) -> tuple[dict[str, float], int, float]:
        """Take one step over this process's `parts` of the step's `pairs`, read from `batches`.

        `rate`: the learning rate's share of the stage's own, 0 to 1. Returns the means over the pairs, to be logged,
        the tokens of all processes together, and the seconds spent waiting for data. Raises MinipovidError, calling the
        step by `name`, where a number is no longer finite.
        """
        device, processes = self.accelerator.device, self.accelerator.num_processes
        sums: dict[str, Tensor] = {}
        tokens, waited = 0, 0.0
        for part in parts:
            start = time.perf_counter()
            batch = sound(next(batches))
            waited += time.perf_counter() - start
            tokens += part.counts * self.objective.tokens(batch)
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(self.wrapped):
                loss, figures = self.wrapped(batch.to(device))
                # DDP takes the mean over processes; here every pair of the step weighs the same.
                self.accelerator.backward(loss * (part.counts * processes / pairs))
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + value * part.counts
        sums["tokens"] = torch.full((), float(tokens), device=device)
        together = self.accelerator.reduce(torch.stack([value.float() for value in sums.values()]), "sum")

        if self.max_grad_norm is not None:
            norm: Any = self.accelerator.clip_grad_norm_(self.weights, self.max_grad_norm)
        else:
            norm = nn.utils.get_total_norm([weight.grad for weight in self.weights if weight.grad is not None])
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        self.optimizer.step()
        self.optimizer.zero_grad()

        # Here the step waits for the GPU, once; what is no number has harmed nothing yet but weights in memory.
        told = torch.cat([together, torch.stack([norm.to(device), self.changed.share()])]).tolist()
        means = {key: value / pairs for key, value in zip(sums, told[:-2], strict=True)}
        tokens = round(means.pop("tokens") * pairs)
        means |= {"grad_norm": told[-2], "learning_rate": float(group["lr"])}
        if not math.isfinite(means["loss"] + means["grad_norm"]):
            raise MinipovidError(
                f"The loss ({means['loss']}) or its gradient ({means['grad_norm']}) is no longer a finite number in "
                f"{name}; lower train.learning_rate or set train.max_grad_norm: 1.0."
            )

        self.objective.after_step()
        return {**means, "weights/changed": told[-1]}, tokens, waited


def sound(batch: Batch | MinipovidError) -> Batch:
    """A worker process hands its error over as a value: raised there, it would come with that process's traceback."""
    if isinstance(batch, MinipovidError):
        raise batch
    return batch
