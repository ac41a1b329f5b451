"""One stage: which pairs when, in what micro-batches, at what rate; its log, its checkpoints, and where it goes on.

What is computed is the matter of the stage's kind (stages/), how weights change that of step.py.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from minipovid.common.errors import MinipovidError
from minipovid.train import checkpoint, optimisers, stages
from minipovid.train.batch import Batch
from minipovid.train.checkpoint import Position
from minipovid.train.data import collate, visiting_order
from minipovid.train.log import TrainingLog, begin_peak
from minipovid.train.run import Run
from minipovid.train.stages import StageContext
from minipovid.train.step import MicroBatch, Step, sound


class Stage:
    """One objective over the pairs for some epochs."""

    def __init__(self, run: Run, index: int) -> None:
        self.run, self.index, self.position = run, index, run.position
        self.accelerator, self.settings = run.accelerator, run.recipe.train
        self.dataset, section = run.datasets[index], run.recipe.stages[index]
        first = sum(stage.epochs for stage in run.recipe.stages[:index])
        epochs = range(first, first + section.epochs)
        self.order = list(visiting_order(len(self.dataset), epochs, run.recipe.seed))
        self.pairs_per_step = self.settings.pairs_per_step * self.accelerator.num_processes
        self.total = min(math.ceil(len(self.order) / self.pairs_per_step), self.settings.max_steps or sys.maxsize)
        weights = [value for value in run.model.adapter().values() if value.requires_grad]
        self.optimizer = optimisers.build(self.settings, weights, section.learning_rate or self.settings.learning_rate)
        warmup = math.ceil(self.settings.warmup_ratio * self.total)
        schedule = get_scheduler(self.settings.lr_scheduler_type, self.optimizer, warmup, self.total)
        self.rate = schedule.lr_lambdas[0]  # type: ignore[union-attr]
        begins = not self.position.step
        self.open_sums: Mapping[str, Any] = {}  # of the log
        if not begins:
            newest = checkpoint.latest(run.folder)
            assert newest is not None
            checkpoint.restore_optimizer(newest.folder, self.optimizer)
            self.open_sums = newest.meter
        self.objective = stages.open(StageContext(run.model, run.recipe, index, begins))
        self.step = Step(self.accelerator, self.objective, weights, self.optimizer, self.settings.max_grad_norm)
        self.name = f"stage {index + 1}/{len(run.recipe.stages)}"

    def steps(self) -> Iterator[Position]:
        """Train to the end of the stage; after the last step the position is where the next stage begins."""
        run, is_main = self.run, self.accelerator.is_main_process
        begin_peak()
        log = TrainingLog(run.folder, self.index, self.settings.logging_steps, self.open_sums)
        drawn = run.progress and is_main and sys.stderr.isatty()
        if self.objective.precomputes and not self.position.step:
            self._precompute(drawn)
        self._saved = time.monotonic()
        with tqdm(total=self.total, initial=self.position.step, desc=self.name, unit="step", disable=not drawn) as bar:
            plan = [self._parts(number) for number in range(self.position.step, self.total)]
            batches = self._batches([part.keys for parts in plan for part in parts])
            for number, parts in enumerate(plan, self.position.step):
                pairs = len(self._pairs(number))
                name = f"step {number + 1} of stage {self.index + 1}"
                figures, tokens, waited_s = self.step(parts, batches, pairs, self.rate(number), name)
                self.position = self.position.after_step()
                over = self.position.step == self.total
                if is_main:
                    epoch = min(self.position.step * self.pairs_per_step, len(self.order)) / len(self.dataset)
                    line = log.add(figures, pairs, self.position.global_step, epoch, over, tokens, waited_s)
                    bar.update()
                    if line is not None:
                        run.tracked.log(self.accelerator, line)
                        if run.progress and not drawn:
                            print(self._plain(line), file=sys.stderr)
                interrupted, due = self._to_save()
                # the stage's end is saved below, as the next one's beginning
                if interrupted or (due and not over):
                    self._save(log.state)
                if interrupted:
                    raise KeyboardInterrupt
                if not over:
                    yield self.position
        self.objective.close()
        self.accelerator.free_memory()  # DDP's buckets, as large as the gradients
        if self.index + 1 < len(run.recipe.stages):
            self.position = self.position.next_stage()
            optimisers.release(self.optimizer)  # the next stage begins its own
            self._save({})
        yield self.position

    def _pairs(self, step: int) -> list[tuple[int, int]]:
        """(epoch, row) of every pair of an optimiser step, in all processes."""
        return self.order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]

    def _parts(self, step: int) -> list[MicroBatch]:
        """This process's micro-batches of an optimiser step: as many as every other has."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        size, everybodys = int(self.settings.micro_batch), self._pairs(step)
        keys = everybodys[mine::processes]
        rounds = math.ceil(len(everybodys) / processes / size)
        pieces = [keys[size * each : size * (each + 1)] for each in range(rounds)]
        return [MicroBatch(piece or everybodys[:1], bool(piece)) for piece in pieces]

    def _batches(self, keys: list[list[tuple[int, int]]]) -> Iterator[Batch | MinipovidError]:
        """Batches by (epoch, row), made ahead of the step by worker processes where the recipe has any."""
        self.dataset.kinds = tuple(dict.fromkeys(("clean", *self.objective.images)))
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=keys,
                collate_fn=partial(collate, together=self.objective.together, dtype=self.run.model.head.weight.dtype),
                num_workers=int(self.settings.dataloader_num_workers),
                worker_init_fn=_deaf,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )

    def _precompute(self, drawn: bool) -> None:
        """Let the objective see the pairs of the first epoch before the first step."""
        first = self.order[: min(len(self.dataset), self.total * self.pairs_per_step)]
        mine = first[self.accelerator.process_index :: self.accelerator.num_processes]
        size = int(self.settings.micro_batch)
        keys = [mine[start : start + size] for start in range(0, len(mine), size)]
        for batch in tqdm(self._batches(keys), f"{self.name}, reference", len(keys), disable=not drawn):
            self.objective.precompute(sound(batch).to(self.accelerator.device))
            if self.run.interrupted.is_set():
                raise KeyboardInterrupt

    def _save(self, log: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            keep, processes = self.settings.save_total_limit, self.accelerator.num_processes
            checkpoint.save(self.run.folder, self.run.model, self.optimizer, self.position, log, keep, processes)
        self.accelerator.wait_for_everyone()
        self._saved = time.monotonic()

    def _to_save(self) -> tuple[bool, bool]:
        """Has any process received Ctrl-C, and is a checkpoint due? All must stop, and save, after the same step."""
        settings, received = self.settings, self.run.interrupted.is_set()
        due = settings.save_steps is not None and self.position.global_step % settings.save_steps == 0
        late = settings.save_minutes is not None and time.monotonic() - self._saved >= 60 * settings.save_minutes
        if self.accelerator.num_processes > 1:
            flags = torch.tensor([float(received), float(late)], device=self.accelerator.device)
            received, late = self.accelerator.reduce(flags, "sum").bool().tolist()
        return received, due or late

    def _plain(self, line: dict[str, Any]) -> str:
        """A log line for where there is no terminal to draw a bar on."""
        wanted = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
        figures = "  ".join(f"{key} {line[key]:.4g}" for key in wanted if key in line)
        return f"{self.name}  step {self.position.step}/{self.total}  {figures}  {line['pairs_per_s']:.3g} pairs/s"


def _deaf(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the step in hand still wants its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
