"""How fast this machine trains, and in how much memory: steps of a recipe's last stage, beside what plan predicts.

The model has the recipe's shapes and random weights (random_inputs.py), the pairs have a usual pair's lengths; nothing
is downloaded. The reference is computed in every step, as in a stage's first epoch.
"""

from __future__ import annotations

import math
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minipovid import __version__
from minipovid.common.errors import MinipovidError
from minipovid.models.device import check_bfloat16, prepare_allocator
from minipovid.models.load import refuse_giants
from minipovid.models.shapes import config, shapes
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import Recipe
from minipovid.train import losses, plan, random_inputs
from minipovid.train.checkpoint import Position
from minipovid.train.log import peak_gib, reserved_gib
from minipovid.train.loop import memory_explained
from minipovid.train.plan import cards, costs
from minipovid.train.plan.costs import GIB
from minipovid.train.plan.forecast import layers_in_words
from minipovid.train.run import Run
from minipovid.train.stage import Stage

PAIRS = 32  # that are visited again and again
WARM_UP = 3  # steps before the clock runs
MOST_STEPS = 10_000
SECONDS = {"cuda": 60.0, "cpu": 10.0}  # that are measured


@dataclass(frozen=True)
class Bench:
    """What was measured; GiB of a card are the allocator's, without what CUDA itself takes."""

    machine: str
    torch: str
    minipovid: str
    recipe: str
    stage: str
    micro_batch: int
    gradient_checkpointing: bool | int
    steps: int
    seconds_per_step: float
    plan_seconds_per_step: float | None  # none where plan does not know the card
    pairs_per_second: float
    peak_gib: float
    plan_peak_gib: float | None  # none on a CPU: resident memory holds the libraries too
    reserved_gib: float | None

    @property
    def line(self) -> str:
        """All of it in one line, to paste into an issue."""
        pairs = f"{self.micro_batch} pair{'s' * (self.micro_batch > 1)} at once"
        layers = f"checkpointing {layers_in_words(self.gradient_checkpointing)}"
        figures = [
            f"{self.seconds_per_step:.3g} s/step{_planned(self.plan_seconds_per_step, '.3g')}",
            f"{self.pairs_per_second:.3g} pairs/s",
            f"peak {self.peak_gib:.2f} GiB{_planned(self.plan_peak_gib, '.2f')}",
            *([] if self.reserved_gib is None else [f"reserved {self.reserved_gib:.2f} GiB"]),
        ]
        return (
            f"{self.machine}, torch {self.torch}, minipovid {self.minipovid}: {self.recipe}, {self.stage}, {pairs}, "
            f"{layers}: {', '.join(figures)}"
        )

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "line": self.line}


def _planned(value: float | None, spec: str) -> str:
    return "" if value is None else f" (plan {value:{spec}})"


def bench(name: str | None, seconds: float | None, say: Callable[[str], None]) -> Bench:
    """Measure a recipe, by default the shipped one that this machine is for, for some seconds.

    Raises MinipovidError for an unknown recipe, where the machine cannot train it and where memory or disk runs out.
    """
    prepare_allocator()
    on_gpu = torch.cuda.is_available()
    if name is None:
        name = fitting()
        if not on_gpu:
            say(f"torch finds no CUDA GPU here (`minipovid doctor` says more): the CPU is measured, with {name}.")
    recipe = recipes.read(recipes.find(name))
    model = shapes(recipe.model.path, recipe.model.revision)
    check_bfloat16(recipe.model)
    if not on_gpu:
        refuse_giants(recipe.model.path, model.weights)
    device = "cuda" if on_gpu else "cpu"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    size = model.weights * dtype.itemsize
    with tempfile.TemporaryDirectory(prefix="minipovid-bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        _check_room(folder, size)
        say(f"Drawing a random model of {size / GIB:.3g} GiB in {folder} ...")
        random_inputs.write_model(folder / "model", config(recipe.model.path, recipe.model.revision), dtype, device)
        prefix, answer = plan.usual_lengths(model, recipe)
        random_inputs.write_pairs(folder / "pairs", PAIRS, 0, prefix - model.image_tokens, answer)
        say("Training ...")
        with memory_explained(folder / "run"):
            run = Run.open(_quiet(on_random_inputs(recipe, folder / "model", folder / "pairs")), folder / "run")
            assert run is not None
            return _measured(run, SECONDS[device] if seconds is None else seconds)


def fitting() -> str:
    """The shipped recipe that this machine is for."""
    if not torch.cuda.is_available():
        return "tinyworld"
    free = plan.free_gib()
    large, small = "llava7b_qlora", "llava7b_8gb"
    return large if plan.predict(recipes.read(recipes.find(large)), free).peak_gib <= free else small


def on_random_inputs(recipe: Recipe, model: Path, pairs: Path) -> Recipe:
    """The recipe on what random_inputs wrote there; its stages last for more steps than anybody takes."""
    epochs = math.ceil(MOST_STEPS * recipe.train.pairs_per_step / PAIRS)
    stages = [stage.model_copy(update={"data": None, "epochs": epochs}) for stage in recipe.stages]
    here: dict[str, Any] = {
        **{"model.path": str(model), "model.revision": None, "data.path": str(pairs / "pairs.jsonl")},
        **{"data.images": str(pairs), "data.format": "jsonl", "data.limit": None, "data.held_out": 0},
        **{"train.max_steps": None, "train.report_to": []},
    }
    return _changed(recipe.model_copy(update={"stages": stages, "start_from": None}), here)


def _quiet(recipe: Recipe) -> Recipe:
    """Without files beside the run's: no caches, which would spare work that a first epoch has, and no checkpoints."""
    caches = {"noise.cache_gib": 0.0, "reference.cache_gib": 0.0, "reference.precompute": False}
    return _changed(recipe, {**caches, "train.save_steps": None, "train.save_minutes": None})


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    for key, value in changes.items():
        recipe = plan.changed(recipe, key, value)
    return recipe


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise MinipovidError(
            f"The random model takes {needed / GIB:.1f} GiB for as long as this runs, and {folder.parent} has "
            f"{free / GIB:.1f} GiB free; set TMPDIR to a folder with more."
        )


def _measured(run: Run, seconds: float) -> Bench:
    """Steps of the last stage, for at least so many seconds."""
    number, recipe = len(run.recipe.stages) - 1, run.recipe
    run.position = Position(stage=number)
    stage = Stage(run, number)
    steps, each = timed(stage.steps(), seconds)
    stage.objective.close()
    on_gpu = torch.cuda.is_available()
    card = cards.known(torch.cuda.get_device_name(), plan.total_gib()) if on_gpu else None
    model = shapes(recipe.model.path)
    return Bench(
        machine=machine(),
        torch=torch.__version__,
        minipovid=__version__,
        recipe=recipe.name,
        stage=f"stage {number + 1} ({recipe.stages[number].loss['name']})",
        micro_batch=int(recipe.train.micro_batch),
        gradient_checkpointing=costs.Setting.of(recipe, on_gpu).checkpointing,
        steps=steps,
        seconds_per_step=each,
        plan_seconds_per_step=plan.stage_seconds_per_step(model, recipe, card, number) if card else None,
        pairs_per_second=recipe.train.pairs_per_step / each,
        peak_gib=peak_gib(),
        plan_peak_gib=predicted(run, number).gib if on_gpu else None,
        reserved_gib=reserved_gib(),
    )


def timed(steps: Iterator[object], seconds: float) -> tuple[int, float]:
    """How many steps were taken behind those that warm up, and the seconds of one."""
    for _ in range(WARM_UP):
        next(steps)
    _wait()
    start, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - start < seconds:
        next(steps)
        count += 1
    _wait()
    return count, (time.perf_counter() - start) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Predicted(NamedTuple):
    """By plan, of a run's pairs on a GPU."""

    flop: float  # of one pair with its reference kept
    gib: float  # at the peak, without CUDA's own


def predicted(run: Run, number: int) -> Predicted:
    """What plan says of a stage over the pairs that the run has."""
    dataset = run.datasets[number]
    examples = [dataset.encoder(pair.prompt, pair.texts()) for pair in dataset.pairs]
    lengths = max(len(each.prompt) for each in examples), max(len(ids) for e in examples for ids in e.answers.values())
    model, setting = shapes(run.recipe.model.path), costs.Setting.of(run.recipe, on_gpu=True)
    trees = costs.trees(losses.of_stages(run.recipe)[number].views, *lengths)
    memory = costs.memory(model, replace(setting, frozen_adapter=number > 0), trees)
    return Predicted(sum(costs.flop(model, setting, trees).values()), (memory.total - costs.CUDA_OWN) / GIB)


def machine() -> str:
    """The card with its memory, driver and CUDA; or the CPU and the threads that torch uses."""
    if not torch.cuda.is_available():
        return f"{_cpu()}, {torch.get_num_threads()} threads"
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return f"{torch.cuda.get_device_name()}, {plan.total_gib():.0f} GiB, {_driver()}{runtime}"


def _driver() -> str:
    """ "driver 570.1, ", where nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"driver {told[0]}, " if told else ""


def _cpu() -> str:
    """The processor's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
