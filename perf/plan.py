"""Is `minipovid plan` right? Predicted beside measured, on a CPU: peak memory, kept tensors, FLOP.

    python perf/plan.py              # the benchmark's random LLaVA of 97 M parameters, DPO
    python perf/plan.py --small      # a toy model and every loss: proves that it runs, and counts FLOP

Each line is a process of its own: a model in float32, one pair a step, random tokens of the benchmark's lengths.

    resident    peak resident memory of two steps above the idle model (Linux). glibc keeps what is freed below its
                moving threshold, in pieces too scattered to be used again; MALLOC_MMAP_THRESHOLD_ fixes the threshold.
    live        the most bytes that torch held at once, by its profiler: the optimiser's state, and what a step adds
    kept        bytes that autograd saved for the backward pass, weights left out
    FLOP        of one step, the reference's pass counted, by torch's counter

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_world import CPU, SMALL, Geometry, build_checkpoint
from resident import peak_above_idle
from torch.profiler import ProfilerActivity, profile
from torch_counts import flop, saved_bytes

from minipovid.models import load
from minipovid.models import model as models
from minipovid.models.shapes import shapes
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.recipe.schema import LoraSection, ModelSection, TrainSection
from minipovid.train import losses, optimisers
from minipovid.train.batch import Batch, Pictures
from minipovid.train.losses import Loss
from minipovid.train.plan import costs
from minipovid.train.plan.costs import Setting
from minipovid.train.scoring import score

os.environ.setdefault("HF_HUB_OFFLINE", "1")


RANK = 16
THRESHOLD = 1 << 20  # bytes from which glibc gives freed memory back at once
ANSWERS, IMAGES = ("chosen", "rejected"), ("clean", "noised", "cropped")


class Step:
    """One optimiser step of one pair, again and again."""

    def __init__(self, checkpoint: Path, geometry: Geometry, loss: Loss, checkpointing: bool) -> None:
        section = ModelSection(path=str(checkpoint), load_in_4bit=False, dtype="float32")
        self.model, self.loss = load.load(section, LoraSection(r=RANK), checkpointing=checkpointing), loss
        self.optimizer = optimisers.build(TrainSection(), self.model.adapter().values(), 1e-6)
        self.batch = a_batch(self.model, geometry)

    def __call__(self, reference: bool = True) -> None:
        batch = Batch(self.batch.prompt, self.batch.answers, self.batch.images, {})  # no picture has passed the tower
        table = {}
        with torch.no_grad(), self.model.as_reference():
            table = score(self.model, batch, costs.reference(self.loss.views)) if reference else {}
            for scores in table.values():
                scores.logps()
        self.loss(score(self.model, batch, self.loss.views), table).loss.sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def a_batch(model: models.Model, geometry: Geometry) -> Batch:
    """One pair of random tokens and pixels."""
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(10, 300, (count,), generator=draw).tolist()  # type: ignore[no-any-return]

    prompt = [*ids(4), *[model.image_token_id] * model.image_tokens, *ids(geometry.prompt_tokens - 4)]
    size = geometry.image_size
    pixels = {kind: Pictures(torch.randn(1, 3, size, size, generator=draw), torch.tensor([0])) for kind in IMAGES}
    answers = {kind: Tokens.padded([ids(geometry.answer_tokens)]) for kind in ANSWERS}
    return Batch(Tokens.padded([prompt]), answers, pixels, {})  # type: ignore[arg-type]


# --- measured ---


def resident(step: Step) -> float:
    return peak_above_idle(step.model.peft, lambda: (step(), step())).peak_gib * 2**30


def live(step: Step) -> float:
    """The second step's peak, and the optimiser's state that the first has left."""
    step()
    state = sum(value.nbytes for each in step.optimizer.state.values() for value in each.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    result: Any = profiler.profiler
    events = [event for event in result.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return float(state + peak)


def saved(step: Step) -> float:
    return saved_bytes(step, step.model.peft.parameters())


MEASURES: dict[str, Callable[[Step], float]] = {"resident": resident, "live": live, "kept": saved, "flop": flop}


# --- predicted ---


def predicted(checkpoint: Path, geometry: Geometry, loss: Loss, checkpointing: bool) -> dict[str, float]:
    model = shapes(str(checkpoint))
    setting = Setting(RANK, False, 4, False, checkpointing, 1, 1, "adamw_torch", False)
    prefix = model.image_tokens + geometry.prompt_tokens
    policy = costs.trees(loss.views, prefix, geometry.answer_tokens)
    quiet = costs.trees(costs.reference(loss.views), prefix, geometry.answer_tokens)
    peak = costs.memory(model, setting, policy)
    passing = sum(peak.parts[part] for part in ("optimiser", "activations", "logits", "workspace"))
    theirs = costs.reference_flop(model, setting, quiet, adapted=False)
    return {
        "resident": passing,
        "live": passing - costs.CPU_OWN,
        "kept": costs.kept(model, setting, policy),
        "flop": sum(costs.flop(model, setting, policy).values()) + theirs,
    }


# --- the table ---


def compare(world: Path, geometry: Geometry, settings: dict[str, Any], checkpointing: bool, names: list[str]) -> Any:
    """{measure: {predicted, measured, ratio}} of one loss."""
    expected = predicted(world, geometry, losses.build(settings), checkpointing)
    found = {}
    for name in names:
        measured = in_child(world, geometry, settings, checkpointing, name)
        ratio = round(expected[name] / measured, 4)
        found[name] = {"predicted": round(expected[name]), "measured": round(measured), "ratio": ratio}
        way = "with" if checkpointing else "without"
        title = " ".join(map(str, settings.values()))
        print(f"{title:<14}{way:<9}{name:<10}{expected[name] / 1e6:>14,.1f}{measured / 1e6:>14,.1f}{ratio:>8.3f}")
    return found


def in_child(world: Path, geometry: Geometry, settings: dict[str, Any], checkpointing: bool, name: str) -> float:
    job = json.dumps([str(world), geometry is SMALL, settings, checkpointing, name])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(THRESHOLD))
    done = subprocess.run(
        [sys.executable, __file__, "--job", job], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def child(job: str) -> None:
    world, small, settings, checkpointing, name = json.loads(job)
    print(MEASURES[name](Step(Path(world), SMALL if small else CPU, losses.build(settings), checkpointing)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return child(arguments.job)
    geometry: Geometry = SMALL if arguments.small else CPU
    every: list[dict[str, Any]] = [{"name": "dpo"}]
    if arguments.small:
        every += [{"name": "povid", "variant": variant} for variant in ("proper", "paper", "code")] + [{"name": "mdpo"}]
    names = ["kept", "live", "flop"] if arguments.small else list(MEASURES)
    table: dict[str, Any] = {}
    print(f"{'loss':<14}{'checkp.':<9}{'':<10}{'predicted, M':>14}{'measured, M':>14}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        build_checkpoint(Path(folder), geometry, torch.float32, "cpu")
        for settings in every:
            for checkpointing in (False, True):
                key = " ".join([*settings.values(), "with" if checkpointing else "without", "checkpointing"])
                table[key] = compare(Path(folder), geometry, settings, checkpointing, names)
    print(json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, "table": table}))


if __name__ == "__main__":
    main()
