"""What an optimiser step would cost a GPU, counted where there is none: memory, kernels, waits, operations, host time.

    python perf/fake_gpu.py                                     # both recipes, both stages, 32 layers: 15 minutes
    python perf/fake_gpu.py --recipe llava7b_8gb --stage 1 --layers 3 --checkpointing 1
    python perf/fake_gpu.py --host                              # milliseconds of the main thread alone

The project's own training takes steps on tensors of LLaVA-1.5-7B's shapes that claim to be on a card
(tests/helpers/fake_cuda.py: shapes, no numbers). Each stage visits one pair twice: in the step `computed` the reference
is computed and the optimiser has no moments yet, in `kept` it is found on disk. Beside the peak of the latter and FLOP
stands what `minipovid plan` predicts for this pair, without what it allows CUDA itself. Loading, real kernels and time
are not covered.

    waits      how often the host waits for the card in a step, and where
    host_ms    main thread's CPU time of a step at this depth and toy widths, on this CPU, in float32

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import bench_world
import fake_cuda
import torch
from bench_world import LLAVA_7B, SMALL

from minipovid.models import load
from minipovid.models.shapes import shapes
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import Recipe
from minipovid.train import losses, random_inputs, reference
from minipovid.train.checkpoint import Position
from minipovid.train.loop import steps
from minipovid.train.plan import costs
from minipovid.train.run import Run
from minipovid.train.stage import Stage

CARDS = {"llava7b_qlora": 24, "llava7b_8gb": 8}  # GiB of the card that a shipped recipe is for
GIB = 2**30


def prepared(world: Path, name: str, stage: int, given: argparse.Namespace, *more: str) -> Recipe:
    """The shipped recipe on the pairs of `world`, two visits of each."""
    settings = (
        f"data.path={world}/pairs/pairs.jsonl", f"data.images={world}/pairs", "data.format=jsonl", "data.held_out=0",
        f"model.path={world}/model", "train.dataloader_num_workers=0", "train.logging_steps=1", "noise.cache_gib=1",
        "reference.cache_gib=1", f"train.gradient_checkpointing={str(given.checkpointing).lower()}", *given.set, *more,
    )  # fmt: skip
    recipe = recipes.read(recipes.find(name), settings)
    twice = [each.model_copy(update={"epochs": 2}) for each in recipe.stages[: stage + 1]]
    return recipe.model_copy(update={"stages": twice})


# --- on the fake card ---


def count(world: Path, name: str, stage: int, given: argparse.Namespace) -> dict[str, Any]:
    """The figures of one stage's steps. This process has a fake card from here on."""
    card = fake_cuda.FakeCard(CARDS.get(name, 24))
    stand_in(card)
    with card:
        run = Run.open(prepared(world, name, stage, given), world / f"run-{name}-{stage}")
        assert run is not None
        run.position = Position(stage=stage)
        found: dict[str, Any] = {"recipe": name, "stage": stage, "idle_gib": round(card.live / GIB, 4)}
        found |= {key: getattr(run.recipe.train, key) for key in ("gradient_checkpointing", "micro_batch", "optim")}
        stepping = steps(run)
        for visit in ("computed", "kept"):
            card.reset()
            next(stepping)
            found[visit] = figures(card)
        found["predicted"] = predicted(run, stage)
    return found


def stand_in(card: fake_cuda.FakeCard) -> None:
    """Weights of no numbers in place of those that are read, and batches of real numbers."""

    def base(folder: Path, section: Any, family: Any, device: torch.device) -> Any:
        dtype = getattr(torch, load.settled(section).dtype)
        model = fake_cuda.llava(folder, family.text_model, dtype, section.load_in_4bit)
        load.check_quantised(model, family, section.load_in_4bit)
        return model

    batches = Stage._batches

    def made_outside(self: Stage, keys: Any) -> Iterator[Any]:
        with fake_cuda.real():
            inside = batches(self, keys)
        while True:
            with fake_cuda.real():
                batch = next(inside, None)
            if batch is None:
                return
            yield batch

    load._load_base = base  # type: ignore[assignment]
    Stage._batches = made_outside  # type: ignore[method-assign]
    reference.digest = lambda model: "fake"  # all weights, read on the host


def figures(card: fake_cuda.FakeCard) -> dict[str, Any]:
    counts = {"kernels": card.kernels, "waits": len(card.waits), "waits_at": card.waits, "tflop": card.flop / 1e12}
    attention, products = dict(card.attention), card.operations["gemm_4bit"]
    return {"peak_gib": round(card.peak / GIB, 4), **counts, "attention": attention, "4-bit products": products}


def predicted(run: Run, stage: int) -> dict[str, Any]:
    """What `minipovid plan` says of these pairs."""
    model, dataset = shapes(run.recipe.model.path), run.datasets[stage]
    examples = [dataset.encoder(pair.prompt, pair.texts()) for pair in dataset.pairs]
    lengths = len(examples[0].prompt), max(len(ids) for each in examples for ids in each.answers.values())
    setting = replace(costs.Setting.of(run.recipe, on_gpu=True), frozen_adapter=stage > 0)
    views = list(losses.of_stages(run.recipe)[stage].views)
    policy, asked = costs.trees(views, *lengths), costs.trees(costs.reference(views), *lengths)
    memory = costs.memory(model, setting, policy)
    kept = sum(costs.flop(model, setting, policy).values())
    parts = {part: round(size / GIB, 4) for part, size in memory.parts.items()}
    return {
        "peak_gib": round((memory.total - costs.CUDA_OWN) / GIB, 4),
        "moment": memory.moment,
        "parts": parts,
        "kept_tflop": kept / 1e12,
        "computed_tflop": (kept + costs.reference_flop(model, setting, asked, adapted=stage > 0)) / 1e12,
    }


# --- on this CPU ---


def host_ms(world: Path, name: str, stage: int, given: argparse.Namespace) -> dict[str, float]:
    """Main-thread milliseconds of a step, at toy widths: {"computed", "kept"}, each the least of some."""
    toy = ("model.load_in_4bit=false", "lora.r=8", "lora.alpha=16", "data.max_length=256")
    run = Run.open(prepared(world, name, stage, given, *toy), world / f"host-{name}-{stage}")
    assert run is not None
    run.position = Position(stage=stage)
    stepping, taken = steps(run), []
    for _ in range(2 * len(run.datasets[stage]) - 1):
        start = time.thread_time()
        next(stepping)
        taken.append(1000 * (time.thread_time() - start))
    half = len(run.datasets[stage])
    return {"computed": round(min(taken[2:half]), 1), "kept": round(min(taken[half:]), 1)}


# --- the table ---


def child(given: argparse.Namespace, world: Path, name: str, stage: int) -> dict[str, Any]:
    """One stage of one recipe, in a process of its own."""
    command = [sys.executable, __file__, "--child", str(world), "--recipe", name, "--stage", str(stage)]
    command += ["--layers", str(given.layers), "--checkpointing", given.checkpointing, *["--host"] * given.host]
    command += [part for each in given.set for part in ("--set", each)]
    paths = {} if given.host else fake_cuda.environment(given.library)
    paths |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONWARNINGS": "ignore",
        "XDG_CACHE_HOME": str(world / "cache"),
    }
    done = subprocess.run(command, env={**os.environ, **paths}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(given: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every recipe and stage that was asked for."""
    geometry = replace(SMALL, hidden=64, ffn=64, heads=2) if given.host else LLAVA_7B
    geometry = replace(geometry, layers=given.layers)
    if given.host:
        bench_world.build_checkpoint(folder / "model", geometry, torch.float32, "cpu")
    else:
        random_inputs.write_settings(folder / "model", geometry.config(), torch.bfloat16)
        (folder / "model" / "model.safetensors").touch()  # looked for, and never read
        given.library = given.library or fake_cuda.build(folder)
    bench_world.write_pairs(folder / "pairs", 8 if given.host else 1, 1, geometry)
    found = []
    for name in given.recipe or CARDS:
        for stage in given.stage if given.stage is not None else (0, 1):
            found.append(child(given, folder, name, stage))
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", action="append", help="a shipped recipe (default: both of LLaVA-1.5-7B)")
    parser.add_argument("--stage", type=int, action="append", help="0: dpo, 1: povid (default: both)")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--checkpointing", default="auto", help="train.gradient_checkpointing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--host", action="store_true", help="main-thread time instead")
    parser.add_argument("--library", type=Path, help="the compiled guard (default: it is compiled first)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        way = host_ms if given.host else count
        found = way(given.child, given.recipe[0], given.stage[0], given)
        print(json.dumps(found), flush=True)
        os._exit(0)  # no farewell of fake tensors
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({"torch": torch.__version__, "stages": measure(given, Path(folder))}))


if __name__ == "__main__":
    main()
