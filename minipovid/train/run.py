"""The training loop: pairs in, one adapter out, in a folder that says everything about the run.

    runs/my-run/recipe.yaml       the resolved recipe; later stages and commands read this one
                pairs.jsonl       the pairs as they were checked
                log.jsonl         see meter.py
                checkpoint-120/   see resume.py
                adapter/          the result, in PEFT's layout, once training is over

The same call on the same folder resumes. A run that was killed and resumed ends with the same bytes as one that was
not (on a CPU; CUDA's attention adds up in an order of its own). Under `accelerate launch` every process computes its
share of each step, and the first one writes.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from minipovid.common import interrupts
from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.models.encoder import Encoder
from minipovid.models.load import config_of, load, settled
from minipovid.models.model import Model
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.pairs.source import load_pairs, locate, split
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.train import checkpoint, losses, optimisers, plan
from minipovid.train import log as meter
from minipovid.train.batch import Batch
from minipovid.train.checkpoint import Position
from minipovid.train.data import PairDataset, collate, visiting_order
from minipovid.train.reference import Reference
from minipovid.train.restart import check_inputs, claim, held
from minipovid.train.scoring import count_tokens
from minipovid.train.stages.preference import Objective
from minipovid.train.trackers import Trackers

# Those that leave every process a whole adapter to save.
ENGINES = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def train(recipe: Recipe, run: Path, progress: bool = True) -> Path:
    """Train every stage of `recipe` into the folder `run` and return it; a finished run is left as it is.

    Raises MinipovidError for bad input and where memory runs out, and KeyboardInterrupt, with a checkpoint saved, on
    Ctrl-C.
    """
    try:
        trainer = Trainer.open(recipe, run, progress)
        if trainer is not None:
            with interrupts.deferred(lambda: trainer.interrupted.append(True)):
                for _ in trainer.steps():
                    pass
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise MinipovidError(_advice(run)) from None
    return run


def _is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's has a type of its own, a CPU's and cuBLAS's are known by what they say."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in said or "ALLOC_FAILED" in said


def _advice(run: Path) -> str:
    begun = checkpoint.latest(run) is not None
    other = " Settings that would change the result want another --out, as this run has begun." if begun else ""
    return plan.advice(run_folder.recipe(run)) + other


@dataclass
class Trainer:
    """A run in training: `for position in trainer.steps()` takes one optimiser step after the other."""

    recipe: Recipe
    run: Path
    model: Model
    dataset: PairDataset
    accelerator: Accelerator
    tracked: Trackers
    position: Position
    progress: bool = False
    interrupted: list[bool] = field(default_factory=list)  # True once Ctrl-C came; read between two steps

    @classmethod
    def open(cls, recipe: Recipe, run: Path, progress: bool = False) -> Trainer | None:
        """Check the inputs, claim the folder, load model and pairs, and go to where the run stands.

        None where it is finished. Raises MinipovidError for bad input.
        """
        losses.of_stages(recipe)
        tracked = Trackers(recipe.train.report_to)
        # Precision is the model's matter, not accelerate's; and CUDA or CPU is all that it knows.
        on_cpu = not torch.cuda.is_available()
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # else its buckets are a second copy
        accelerator = Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[ddp], **tracked.settings(run))
        if accelerator.distributed_type not in ENGINES:
            raise MinipovidError(
                f"minipovid trains on one device or under DDP, not {accelerator.distributed_type.value}: start it with "
                f"`accelerate launch --multi_gpu -m minipovid train ...`."
            )
        if accelerator.is_main_process:
            check_inputs(recipe)
            config_of(recipe.model)  # of a Hub model it is fetched here: settling needs the shapes
            recipe = recipe.model_copy(update={"model": settled(recipe.model)})
            claim(run, plan.settle(held(recipe, run)))
        accelerator.wait_for_everyone()
        if (run / run_folder.ADAPTER).is_dir():
            tracked.finish(accelerator)
            return None
        recipe = run_folder.recipe(run)
        checkpointing = recipe.train.gradient_checkpointing
        assert checkpointing != "auto"
        model = load(
            recipe.model, recipe.lora, seed=recipe.seed, checkpointing=checkpointing, device=accelerator.device
        )
        dataset = _dataset(recipe, run, model, accelerator)
        position = _begin(recipe, run, model, accelerator)
        return cls(recipe, run, model, dataset, accelerator, tracked, position, progress)

    def steps(self) -> Iterator[Position]:
        """Take every step that is left, then write the adapter."""
        self.tracked.start(self.accelerator, self.recipe, self.run, self.position.global_step)
        for index in range(self.position.stage, len(self.recipe.stages)):
            for position in Stage(self, index).steps():
                self.position = position
                yield position
        if self.accelerator.is_main_process:
            with finished(self.run / run_folder.ADAPTER) as draft:
                self.model.save_adapter(draft)
        self.accelerator.wait_for_everyone()
        self.tracked.finish(self.accelerator)


def _dataset(recipe: Recipe, run: Path, model: Model, accelerator: Accelerator) -> PairDataset:
    """The pairs to train on. All that the run has are checked once and written to pairs.jsonl, from where a resumed run
    reads them; the last ones there are held out."""
    encoder = Encoder.of(model, recipe.data.max_length)
    root = locate(recipe.data)[1]
    kept = run / run_folder.PAIRS
    if accelerator.is_main_process and not kept.is_file():
        pairs, bad = load_pairs(recipe.data, encoder)
        for row in bad:
            print(f"skipped {row.where}: {row.why}", file=sys.stderr)
        meter.begin(run / run_folder.LOG, len(split(pairs, recipe.data).trained), bad)
        jsonl.write(kept, pairs)
    accelerator.wait_for_everyone()
    rows = list(jsonl.read(kept))
    pairs = [row for row in rows if isinstance(row, Pair)]
    if len(pairs) < len(rows):
        raise MinipovidError(f"{kept} was changed and holds rows that are no pairs; remove {run} and train again.")
    trained = split(pairs, recipe.data).trained
    return PairDataset(trained, root, encoder, model.family.image_transform(model.folder), recipe)


def _begin(recipe: Recipe, run: Path, model: Model, accelerator: Accelerator) -> Position:
    """Where to go on: at the newest checkpoint, at an earlier run's adapter, or at the untouched base."""
    newest = checkpoint.latest(run)
    if accelerator.is_main_process:
        meter.rewind(run / run_folder.LOG, newest.position.global_step if newest else 0)
    accelerator.wait_for_everyone()
    if newest is not None:
        if newest.processes != accelerator.num_processes:
            raise MinipovidError(
                f"{run} was begun with {newest.processes} processes and this start has {accelerator.num_processes}, "
                f"which would share the pairs out otherwise; start it with {newest.processes}, or choose another --out."
            )
        checkpoint.restore(newest.folder, model)
        return newest.position
    if recipe.start_from is not None:
        model.load_adapter(Path(recipe.start_from) / run_folder.ADAPTER)
        model.freeze_reference()
    return Position()


Loader = Iterator[Batch | MinipovidError]


class MicroBatch(NamedTuple):
    """Pairs that pass the model at once, as (epoch, row). One process may have none left where another has some: it
    then takes any pair, whose loss does not count."""

    keys: list[tuple[int, int]]
    counts: bool


class Stage:
    """One loss over the pairs for some epochs."""

    def __init__(self, trainer: Trainer, index: int) -> None:
        self.trainer, self.index = trainer, index
        self.model, self.dataset, self.accelerator = trainer.model, trainer.dataset, trainer.accelerator
        self.settings, section = trainer.recipe.train, trainer.recipe.stages[index]
        self.loss = losses.of_stages(trainer.recipe)[index]
        first = sum(stage.epochs for stage in trainer.recipe.stages[:index])
        epochs = range(first, first + section.epochs)
        self.order = list(visiting_order(len(self.dataset), epochs, trainer.recipe.seed))
        per_process = self.settings.per_device_train_batch_size * self.settings.gradient_accumulation_steps
        self.pairs_per_step = per_process * self.accelerator.num_processes
        self.total = min(math.ceil(len(self.order) / self.pairs_per_step), self.settings.max_steps or sys.maxsize)
        self.position = trainer.position
        rate = section.learning_rate or self.settings.learning_rate
        weights = [value for value in self.model.adapter().values() if value.requires_grad]
        self.optimizer = optimisers.build(self.settings, weights, rate)
        warmup = math.ceil(self.settings.warmup_ratio * self.total)
        schedule = get_scheduler(self.settings.lr_scheduler_type, self.optimizer, warmup, self.total)
        self.rate = schedule.lr_lambdas[0]  # type: ignore[union-attr]
        self.open_sums = self._restore()
        again = trainer.recipe.asks_again(section)
        self.reference = Reference(self.model, self.loss.views, trainer.recipe.reference.cache_gib, keep_hidden=again)
        # Not the optimiser: accelerate would load its state anew, and so pull paged moments on the card.
        self.objective = self.accelerator.prepare(Objective(self.model, self.loss, self.reference))
        self.changed = meter.Changed(weights)

    def steps(self) -> Iterator[Position]:
        """Train to the end of the stage; after the last step the position is where the next stage begins."""
        trainer, logging_steps = self.trainer, self.settings.logging_steps
        log = meter.TrainingLog(trainer.run, self.index, logging_steps, self.open_sums)
        is_main = self.accelerator.is_main_process
        drawn = trainer.progress and is_main and sys.stderr.isatty()
        name = f"stage {self.index + 1}/{len(trainer.recipe.stages)}"
        if trainer.recipe.reference.precompute and not self.position.step:
            self._precompute(drawn, name)
        with tqdm(total=self.total, initial=self.position.step, desc=name, unit="step", disable=not drawn) as bar:
            plan = list(self._plan(self.position.step))
            loader = self._loader([batch.keys for batches in plan for batch in batches])
            for step, batches in enumerate(plan, self.position.step):
                figures, work = self._step(step, batches, loader)
                self.position = self.position.after_step()
                over = self.position.step == self.total
                if is_main:
                    line = log.add(figures, work.pairs, self.position.global_step, self._epoch(), over, *work[1:])
                    bar.update()
                    if line is not None:
                        trainer.tracked.log(self.accelerator, line)
                        if trainer.progress and not drawn:
                            print(_plain(name, self.position.step, self.total, line), file=sys.stderr)
                interrupted = self._interrupted()
                # the stage's end is saved below, as the next one's beginning
                if interrupted or (self.position.global_step % self.settings.save_steps == 0 and not over):
                    self._save(log.state)
                if interrupted:
                    raise KeyboardInterrupt
                if not over:
                    yield self.position
        self.reference.cache.close()
        self.accelerator.free_memory()  # DDP's buckets, as large as the gradients
        if self.index + 1 < len(trainer.recipe.stages):
            self.position = self.position.next_stage()
            self.optimizer.state.clear()  # the next stage begins its own
            self._save({})
        yield self.position

    def _restore(self) -> Mapping[str, Any]:
        """Take up the optimiser where a checkpoint left it, or begin a stage; returns the log's open sums."""
        newest = checkpoint.latest(self.trainer.run)
        if self.position.step and newest is not None:
            checkpoint.restore_optimizer(newest.folder, self.optimizer)
            return newest.meter
        if self.index:
            self.model.freeze_reference()
        return {}

    def _save(self, log: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            keep = self.settings.save_total_limit
            processes = self.accelerator.num_processes
            checkpoint.save(self.trainer.run, self.model, self.optimizer, self.position, log, keep, processes)
        self.accelerator.wait_for_everyone()

    def _epoch(self) -> float:
        return min(self.position.step * self.pairs_per_step, len(self.order)) / len(self.dataset)

    def _interrupted(self) -> bool:
        """Has any process received Ctrl-C? All must stop after the same step."""
        received = bool(self.trainer.interrupted)
        if self.accelerator.num_processes == 1:
            return received
        flag = torch.tensor([float(received)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _plan(self, done: int) -> Iterator[list[MicroBatch]]:
        """This process's micro-batches of each optimiser step from step `done` on: as many as every other has."""
        processes, mine = self.accelerator.num_processes, self.accelerator.process_index
        size = int(self.settings.micro_batch)
        for step in range(done, self.total):
            everybodys = self.order[step * self.pairs_per_step : (step + 1) * self.pairs_per_step]
            keys = everybodys[mine::processes]
            rounds = math.ceil(len(everybodys) / processes / size)
            pieces = [keys[size * each : size * (each + 1)] for each in range(rounds)]
            yield [MicroBatch(piece or everybodys[:1], bool(piece)) for piece in pieces]

    def _loader(self, batches: list[list[tuple[int, int]]]) -> Loader:
        """Batches by (epoch, row), made ahead of the step by worker processes where the recipe has any."""
        self.dataset.kinds = tuple(dict.fromkeys(("clean", *(view.image for view in self.loss.views))))
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=int(self.settings.dataloader_num_workers),
                worker_init_fn=_deaf,
                pin_memory=self.model.device.type == "cuda",
            )
        )

    def _step(self, number: int, batches: list[MicroBatch], loader: Loader) -> tuple[dict[str, float], Work]:
        """One optimiser step; returns the means over its pairs, to be logged, and what it took."""
        total = min(self.pairs_per_step, len(self.order) - number * self.pairs_per_step)
        sums, waited = self._accumulate(batches, loader, total)
        means = self._means(sums, total)
        tokens = round(means.pop("tokens") * total)
        means |= {"grad_norm": self._clip(), "learning_rate": self._set_rate(number)}
        self._check(number, means)
        self.optimizer.step()
        self.reference.keep()
        self.optimizer.zero_grad()
        means["weights/changed"] = self.changed.share()
        return means, Work(total, tokens, waited)

    def _accumulate(
        self, batches: list[MicroBatch], loader: Loader, total: int
    ) -> tuple[dict[str, torch.Tensor], float]:
        """Gradients of this process's pairs among the step's `total`; their figures summed, and the seconds waited."""
        sums: dict[str, torch.Tensor] = {}
        tokens, waited, computed = 0, 0.0, 0
        for each in batches:
            before = self.reference.passes
            start = time.perf_counter()
            batch = _sound(next(loader))
            waited += time.perf_counter() - start
            tokens += each.counts * count_tokens(batch, self.loss.views)
            with nullcontext() if each is batches[-1] else self.accelerator.no_sync(self.objective):
                loss, figures = self.objective(batch.to(self.model.device))
                # DDP takes the mean over processes; here every pair of the step weighs the same.
                self.accelerator.backward(loss * (each.counts * self.accelerator.num_processes / total))
            computed += each.counts * (self.reference.passes - before)
            for key, value in figures.items():
                sums[key] = sums.get(key, 0.0) + value * each.counts
        for name, count in (("tokens", tokens), ("reference/computed", computed)):
            sums[name] = torch.tensor(float(count), device=self.model.device)
        return sums, waited

    def _means(self, sums: dict[str, torch.Tensor], total: int) -> dict[str, float]:
        """Over the pairs of every process. Here the step waits for the GPU for the first time."""
        stacked = torch.stack([value.float() for value in sums.values()])
        together = self.accelerator.reduce(stacked, "sum").tolist()
        return {key: value / total for key, value in zip(sums, together, strict=True)}

    def _clip(self) -> float:
        """The gradient's norm, before it is clipped to `max_grad_norm` if the recipe says so."""
        weights, limit = list(self.model.adapter().values()), self.settings.max_grad_norm
        if limit is not None:
            return float(self.accelerator.clip_grad_norm_(weights, limit))
        return float(torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))

    def _set_rate(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.rate(step)
        return float(group["lr"])

    def _check(self, step: int, means: dict[str, float]) -> None:
        if not math.isfinite(means["loss"] + means["grad_norm"]):
            raise MinipovidError(
                f"The loss ({means['loss']}) or its gradient ({means['grad_norm']}) is no longer a finite number in "
                f"step {step + 1} of stage {self.index + 1}; lower train.learning_rate or set "
                f"train.max_grad_norm: 1.0."
            )

    def _precompute(self, drawn: bool, name: str) -> None:
        """The reference's scores of the first epoch, which are those of every epoch but for crops and fresh noise."""
        first = self.order[: min(len(self.dataset), self.total * self.pairs_per_step)]
        mine = first[self.accelerator.process_index :: self.accelerator.num_processes]
        size = int(self.settings.micro_batch)
        batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        for batch in tqdm(self._loader(batches), f"{name}, reference", len(batches), disable=not drawn):
            self.reference(_sound(batch).to(self.model.device))
            self.reference.keep()
            if self.trainer.interrupted:
                raise KeyboardInterrupt


class Work(NamedTuple):
    """What a step took: pairs and tokens of all processes together, and seconds spent waiting for data."""

    pairs: int
    tokens: int
    waited_s: float


def _sound(batch: Batch | MinipovidError) -> Batch:
    """A worker process hands its error over as a value: raised there, it would come with that process's traceback."""
    if isinstance(batch, MinipovidError):
        raise batch
    return batch


def _deaf(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the step in hand still wants its data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _plain(name: str, step: int, steps: int, line: dict[str, Any]) -> str:
    """A log line for where there is no terminal to draw a bar on."""
    wanted = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
    shown = {key: line[key] for key in wanted if key in line}
    figures = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
    return f"{name}  step {step}/{steps}  {figures}  {line['pairs_per_s']:.3g} pairs/s"
