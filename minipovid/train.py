"""The loop: recipe -> run folder with a trained adapter. It never names a method; a loss says what it wants to see.

    pairs -> batch -> policy and reference scores of the loss's views -> loss -> AdamW step

A run that was stopped goes on from its newest checkpoint and ends with the same bytes as one that was not.
"""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_scheduler

from minipovid import losses, meter, resume, shelf
from minipovid import recipe as recipes
from minipovid.data import ANSWERS, Batch, Encoder, PairDataset, collate, load_pairs, locate, visiting_order
from minipovid.errors import MinipovidError
from minipovid.files import finished, sweep
from minipovid.model import Model, load, settled
from minipovid.pairs import jsonl
from minipovid.recipe import Recipe, StageSection
from minipovid.resume import Position
from minipovid.scoring import score
from minipovid.types import Judged, Loss, Pair, ScoreTable


def train(recipe: Recipe, run: Path, progress: bool = True) -> Path:
    """Train every stage of `recipe` into the folder `run` and return it; a finished run is left as it is.

    Raises MinipovidError for bad input, and KeyboardInterrupt, with a checkpoint saved, on Ctrl-C.
    """
    recipe = recipe.model_copy(update={"model": settled(recipe.model)})
    stage_losses = [losses.build(stage.loss, f"stages.{i}.loss") for i, stage in enumerate(recipe.stages)]
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise MinipovidError("minipovid trains in one process as yet; start it without `accelerate launch`.")
    _check_inputs(recipe)
    _claim(run, recipe)
    if (run / "adapter").is_dir():
        return run
    model = load(recipe.model, recipe.lora, seed=recipe.seed, checkpointing=recipe.train.gradient_checkpointing)
    dataset = _dataset(recipe, run, model)
    position = _begin(recipe, run, model)
    with _interruptible() as interrupted:
        for index in range(position.stage, len(recipe.stages)):
            stage = Stage(recipe, index, stage_losses[index], model, dataset, accelerator, run)
            position = stage.run(position, progress, interrupted)
    with finished(run / "adapter") as draft:
        model.save_adapter(draft)
    return run


def _check_inputs(recipe: Recipe) -> None:
    """What can be known to be missing before gigabytes are loaded. Raises MinipovidError."""
    shelf.load("pairs", recipe.data.format)
    locate(recipe.data)
    if recipe.start_from is not None and not (Path(recipe.start_from) / "adapter").is_dir():
        raise MinipovidError(f"start_from: {recipe.start_from} holds no finished run (no folder adapter/ in it).")


# Keys that may change between two starts of a run: none of them can change a weight.
FREE = ("export.", "train.save_", "train.logging_steps", "train.dataloader_num_workers", "noise.cache_gib")


def _claim(run: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into the run folder. One in which another recipe has trained is not touched."""
    run.mkdir(parents=True, exist_ok=True)
    sweep(run)
    held = run / "recipe.yaml"
    if (run / "adapter").is_dir() or resume.latest(run) is not None:
        before, now = (_flat(r.model_dump()) for r in (recipes.read(held), recipe))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and not key.startswith(FREE):
                raise MinipovidError(
                    f"{run} holds a run of another recipe ({key} is {before.get(key)!r} there and {now.get(key)!r} "
                    f"here); choose another --out, or remove that folder."
                )
    else:
        (run / "pairs.jsonl").unlink(missing_ok=True)
    with finished(held) as draft:
        recipes.write(recipe, draft)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    if not isinstance(tree, (dict, list)):
        return {prefix.rstrip("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, inner in items for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _dataset(recipe: Recipe, run: Path, model: Model) -> PairDataset:
    """The run's pairs: checked once and written to pairs.jsonl, from where a resumed run reads them."""
    encoder = Encoder.of(model, recipe.data.max_length)
    root = locate(recipe.data)[1]
    kept = run / "pairs.jsonl"
    if not kept.is_file():
        pairs, bad = load_pairs(recipe.data, encoder)
        for row in bad:
            print(f"skipped {row.where}: {row.why}", file=sys.stderr)
        meter.begin(run / "log.jsonl", len(pairs), bad)
        jsonl.write(kept, pairs)
    rows = list(jsonl.read(kept))
    pairs = [row for row in rows if isinstance(row, Pair)]
    if len(pairs) < len(rows):
        raise MinipovidError(f"{kept} was changed and holds rows that are no pairs; remove {run} and train again.")
    return PairDataset(pairs, root, encoder, model.family.image_transform(model.folder), recipe)


def _begin(recipe: Recipe, run: Path, model: Model) -> Position:
    """Where to go on: at the newest checkpoint, at an earlier run's adapter, or at the untouched base."""
    newest = resume.latest(run)
    meter.rewind(run / "log.jsonl", newest.position.global_step if newest else 0)
    if newest is not None:
        resume.restore(newest.folder, model)
        return newest.position
    if recipe.start_from is not None:
        _check_start(recipe)
        model.load_adapter(Path(recipe.start_from) / "adapter")
        model.freeze_reference()
    return Position()


def _check_start(recipe: Recipe) -> None:
    """The earlier run's adapter means the same weights only on the same base and at the same scale."""
    earlier = recipes.read(Path(str(recipe.start_from)) / "recipe.yaml")
    for section in ("model", "lora"):
        theirs, ours = (getattr(r, section).model_dump() for r in (earlier, recipe))
        for key in theirs:
            if key != "dtype" and theirs[key] != ours[key]:
                raise MinipovidError(
                    f"start_from: {recipe.start_from} was trained with {section}.{key} {theirs[key]!r}, and this "
                    f"recipe has {ours[key]!r}; use the same."
                )


class Stage:
    """One loss over the pairs for some epochs."""

    def __init__(
        self,
        recipe: Recipe,
        index: int,
        loss: Loss,
        model: Model,
        dataset: PairDataset,
        accelerator: Accelerator,
        run: Path,
    ) -> None:
        self.recipe, self.index, self.loss, self.model, self.dataset = recipe, index, loss, model, dataset
        self.accelerator, self.folder = accelerator, run
        settings = recipe.train
        self.section: StageSection = recipe.stages[index]
        first = sum(stage.epochs for stage in recipe.stages[:index])
        self.order = list(visiting_order(len(dataset), range(first, first + self.section.epochs), recipe.seed))
        self.pairs_per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
        self.steps = min(math.ceil(len(self.order) / self.pairs_per_step), settings.max_steps or sys.maxsize)
        self.optimizer = torch.optim.AdamW(
            [value for value in model.adapter().values() if value.requires_grad],
            lr=self.section.learning_rate or settings.learning_rate,
            weight_decay=settings.weight_decay,
        )
        self.schedule = get_scheduler(
            settings.lr_scheduler_type, self.optimizer, math.ceil(settings.warmup_ratio * self.steps), self.steps
        ).lr_lambdas[0]  # type: ignore[union-attr]

    def run(self, position: Position, progress: bool, interrupted: list[int]) -> Position:
        """Train from `position` to the end of the stage; returns where the next stage begins."""
        log = meter.Meter(self.folder, self.index, self.recipe.train.logging_steps, self._restore(position))
        show = progress and sys.stderr.isatty()
        name = f"stage {self.index + 1}/{len(self.recipe.stages)}"
        with tqdm(total=self.steps, initial=position.step, desc=name, unit="step", disable=not show) as bar:
            for micro_batches in self._micro_batches(position.step):
                pairs = sum(len(batch) for batch in micro_batches)
                figures = self._step(position.step, micro_batches, pairs)
                position = position.after_step()
                epoch = min(position.step * self.pairs_per_step, len(self.order)) / len(self.dataset)
                line = log.add(figures, pairs, position.global_step, epoch, position.step == self.steps)
                bar.update()
                if line is not None and progress and not show:
                    print(_plain(name, position.step, self.steps, line), file=sys.stderr)
                over = position.step == self.steps  # the stage's end is saved below, as the next one's beginning
                if interrupted or (position.global_step % self.recipe.train.save_steps == 0 and not over):
                    self._save(position, log.state)
                if interrupted:
                    raise KeyboardInterrupt
        if self.index + 1 < len(self.recipe.stages):
            position = position.next_stage()
            self._save(position, {})
        return position

    def _restore(self, position: Position) -> Mapping[str, Any]:
        """Take up the optimiser where a checkpoint left it, or begin a stage; returns the log's open sums."""
        newest = resume.latest(self.folder)
        if position.step and newest is not None:
            resume.restore_optimizer(newest.folder, self.optimizer)
            return newest.meter
        if self.index:
            self.model.freeze_reference()
        return {}

    def _save(self, position: Position, log: Mapping[str, Any]) -> None:
        keep = self.recipe.train.save_total_limit
        resume.save(self.folder, self.model, self.optimizer, position, log, keep)

    def _micro_batches(self, done: int) -> Iterator[list[Batch]]:
        """The micro-batches of each optimiser step from step `done` on."""
        settings = self.recipe.train
        self.dataset.kinds = tuple(dict.fromkeys(("clean", *(view.image for view in self.loss.views))))
        remaining = self.order[done * self.pairs_per_step : self.steps * self.pairs_per_step]
        loader = iter(
            DataLoader(
                self.dataset,
                batch_size=settings.per_device_train_batch_size,
                sampler=remaining,  # type: ignore[arg-type]
                collate_fn=collate,
                num_workers=settings.dataloader_num_workers,
                pin_memory=self.model.device.type == "cuda",
            )
        )
        while group := list(islice(loader, settings.gradient_accumulation_steps)):
            yield group

    def _clip(self) -> float:
        """The gradient's norm, before it is clipped to `max_grad_norm` if the recipe says so."""
        weights, limit = self.model.adapter().values(), self.recipe.train.max_grad_norm
        if limit is not None:
            return float(self.accelerator.clip_grad_norm_(weights, limit))
        return float(torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))

    def _step(self, step: int, micro_batches: list[Batch], total: int) -> dict[str, float]:
        """One optimiser step over the `total` pairs of its micro-batches; returns the figures to log."""
        figures: dict[str, float] = {}
        for batch in micro_batches:
            batch = batch.to(self.model.device)
            with torch.no_grad(), self.model.as_reference():
                reference = score(self.model, batch, [view for view in self.loss.views if view.reference])
            policy = score(self.model, batch, self.loss.views)
            judged = self.loss(policy, reference)
            self.accelerator.backward(judged.loss.sum() / total)
            for key, value in _figures(judged, policy, reference).items():
                figures[key] = figures.get(key, 0.0) + value.sum().item() / total
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(step)
        norm = self._clip()
        if not math.isfinite(figures["loss"] + norm):
            raise MinipovidError(
                f"The loss ({figures['loss']}) or its gradient ({norm}) is no longer a finite number in step "
                f"{step + 1} of stage {self.index + 1}; lower train.learning_rate or set train.max_grad_norm: 1.0."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        figures |= {"grad_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"]}
        return figures


def _figures(judged: Judged, policy: ScoreTable, reference: ScoreTable) -> dict[str, torch.Tensor]:
    """TRL's metrics, per pair [B]; and what the chosen answer lost or gained against the reference, per token.

    Log-probabilities are told of the answers that the loss has looked at under the clean picture.
    """
    figures = {
        "loss": judged.loss.detach(),
        "rewards/chosen": judged.chosen_rewards,
        "rewards/rejected": judged.rejected_rewards,
        "rewards/accuracies": (judged.chosen_rewards > judged.rejected_rewards).float(),
        "rewards/margins": judged.chosen_rewards - judged.rejected_rewards,
    }
    with torch.no_grad():
        for answer in ANSWERS:
            if (answer, "clean") in policy:
                figures[f"logps/{answer}"] = policy[answer, "clean"].logps().sum(-1)
        if "logps/chosen" in figures and ("chosen", "clean") in reference:
            change = figures["logps/chosen"] - reference["chosen", "clean"].logps().sum(-1)
            figures["logps/chosen_change_per_token"] = change / policy["chosen", "clean"].mask.sum(-1)
    return figures


def _plain(name: str, step: int, steps: int, line: dict[str, Any]) -> str:
    """A log line for where there is no terminal to draw a bar on."""
    wanted = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen")
    shown = {key: line[key] for key in wanted if key in line}
    figures = "  ".join(f"{key} {value:.4g}" for key, value in shown.items())
    return f"{name}  step {step}/{steps}  {figures}  {line['pairs_per_s']:.3g} pairs/s"


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C sets a flag, which the loop reads between two steps; a second Ctrl-C stops at once, unsaved."""
    received: list[int] = []

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)
