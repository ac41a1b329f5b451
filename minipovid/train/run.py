"""A run in training, opened: inputs checked, folder claimed, model and pairs loaded, at the place where it stands."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType

from minipovid.common.errors import MinipovidError
from minipovid.models.device import check_bfloat16, prepare_allocator
from minipovid.models.encoder import Encoder
from minipovid.models.load import config_of, load, settled
from minipovid.models.model import Model
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.pairs.source import load_pairs, locate, split
from minipovid.recipe import run_folder
from minipovid.recipe.schema import DataSection, Recipe
from minipovid.train import checkpoint, log, losses, plan, stages
from minipovid.train.checkpoint import Position
from minipovid.train.data import PairDataset
from minipovid.train.restart import check_inputs, claim, held
from minipovid.train.trackers import Trackers

# Those that leave every process a whole adapter to save.
ENGINES = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


@dataclass
class Run:
    """What a run holds while it trains."""

    recipe: Recipe
    folder: Path
    model: Model
    datasets: list[PairDataset]  # of each stage
    accelerator: Accelerator
    tracked: Trackers
    position: Position
    progress: bool = False
    interrupted: Event = field(default_factory=Event)  # Ctrl-C came; looked at between two steps

    @classmethod
    def open(cls, recipe: Recipe, folder: Path, progress: bool = False) -> Run | None:
        """Check the inputs, claim the folder, load model and pairs, and go to where the run stands.

        None where it is finished. Raises MinipovidError for bad input.
        """
        losses.of_stages(recipe)
        stages.check(recipe)
        tracked = Trackers(recipe.train.report_to)
        prepare_allocator()
        check_bfloat16(recipe.model)
        # Precision is the model's matter, not accelerate's; and CUDA or CPU is all that it knows.
        on_cpu = not torch.cuda.is_available()
        ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # else its buckets are a second copy
        accelerator = Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[ddp], **tracked.settings(folder))
        if accelerator.distributed_type not in ENGINES:
            raise MinipovidError(
                f"minipovid trains on one device or under DDP, not {accelerator.distributed_type.value}: start it with "
                f"`accelerate launch --multi_gpu -m minipovid train ...`."
            )
        if accelerator.is_main_process:
            check_inputs(recipe)
            config_of(recipe.model)  # of a Hub model it is fetched here: settling needs the shapes
            recipe = recipe.model_copy(update={"model": settled(recipe.model)})
            claim(folder, plan.settle(held(recipe, folder)))
        accelerator.wait_for_everyone()
        if (folder / run_folder.ADAPTER).is_dir():
            tracked.finish(accelerator)
            return None
        recipe, device = run_folder.recipe(folder), accelerator.device
        checkpointing = recipe.train.gradient_checkpointing
        assert checkpointing != "auto"
        model = load(recipe.model, recipe.lora, seed=recipe.seed, checkpointing=checkpointing, device=device)
        datasets = _datasets(recipe, folder, model, accelerator)
        position = _begin(recipe, folder, model, accelerator)
        return cls(recipe, folder, model, datasets, accelerator, tracked, position, progress)


def _datasets(recipe: Recipe, run: Path, model: Model, accelerator: Accelerator) -> list[PairDataset]:
    """The pairs of each stage: the run's but for those held out, or the stage's own. All are checked before the first
    step and written to the run folder, from where a resumed run reads them."""
    pairs = _pairs(recipe.data, run / run_folder.PAIRS, model, accelerator)
    shared = _dataset(split(pairs, recipe.data).trained, recipe.data, recipe, model)
    datasets = [shared] * len(recipe.stages)
    for index, stage in enumerate(recipe.stages):
        if stage.data is not None:
            pairs = _pairs(stage.data, run / run_folder.STAGE_PAIRS.format(index), model, accelerator, index)
            datasets[index] = _dataset(pairs, stage.data, recipe, model)
    return datasets


def _pairs(
    section: DataSection, kept: Path, model: Model, accelerator: Accelerator, stage: int | None = None
) -> list[Pair]:
    """All that a data section has, from the file `kept`, which the main process writes where there is none."""
    if accelerator.is_main_process and not kept.is_file():
        pairs, bad = load_pairs(section, Encoder.of(model, section.max_length))
        for row in bad:
            print(f"skipped {row.where}: {row.why}", file=sys.stderr)
        trained = len(split(pairs, section).trained) if stage is None else len(pairs)
        log.begin(kept.parent / run_folder.LOG, trained, bad, stage)
        jsonl.write(kept, pairs)
    accelerator.wait_for_everyone()
    rows = list(jsonl.read(kept))
    pairs = [row for row in rows if isinstance(row, Pair)]
    if len(pairs) < len(rows):
        raise MinipovidError(
            f"{kept} was changed and holds rows that are no pairs; remove {kept.parent} and train again."
        )
    return pairs


def _dataset(pairs: list[Pair], section: DataSection, recipe: Recipe, model: Model) -> PairDataset:
    transform = model.family.image_transform(model.folder)
    return PairDataset(pairs, locate(section)[1], Encoder.of(model, section.max_length), transform, recipe)


def _begin(recipe: Recipe, run: Path, model: Model, accelerator: Accelerator) -> Position:
    """Where to go on: at the newest checkpoint, at an earlier run's adapter, or at the untouched base."""
    newest = checkpoint.latest(run)
    if accelerator.is_main_process:
        log.rewind(run / run_folder.LOG, newest.position.global_step if newest else 0)
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
