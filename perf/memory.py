"""Does a run's memory stand still? 1,000 optimiser steps on the tiny world, watched from outside.

    python perf/memory.py                                 # POVID, two pairs a step
    python perf/memory.py --steps 5000 --every 500 --stage 0 --set train.per_device_train_batch_size=8

A child process trains one stage of recipes/tinyworld.yaml over 400 pairs, so that they are visited anew and both caches
are read. Prints its resident memory, workers included, at each line of its log.jsonl, and how much of that are pages of
mapped files, the system's copy of a disk, which it takes back. The last line is one JSON object; `growth` is that of
the whole from step 100, when every kind of step has been taken, to the last.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from minipovid.recipe import read as recipes
from minipovid.recipe import schema

SETTLED = 100  # the step to compare with
_CHILD = """
import sys
from pathlib import Path
from minipovid.recipe.read import read
from minipovid.train.loop import train
train(read(Path(sys.argv[1])), Path(sys.argv[2]), progress=False)
"""


# glibc keeps up to some tens of MiB of freed memory for later, more or less by chance: with a fixed threshold it gives
# large blocks back at once, and what remains resident is held by somebody. Set it yourself to see the defaults' curve.
_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "131072"}


class Resident(NamedTuple):
    """MiB of a process and its workers; pages that they share count for each."""

    all: float
    files: float  # of those, pages of mapped files and shared memory


_MUCH = Resident(math.inf, math.inf)


def prepare(folder: Path, steps: int, every: int, stage: int, overrides: tuple[str, ...] = ()) -> Path:
    """The recipe of the run, in `folder`: the built-in one, cut to 400 pairs and one stage.

    It goes on for one line more, so that the reading at `steps` is of a process that still trains.
    """
    steps += every
    small = ("train.per_device_train_batch_size=2", "data.limit=400", f"train.max_steps={steps}")
    recipe = recipes.read(recipes.find(schema.BUILTIN), (*small, f"train.logging_steps={every}", *overrides))
    per_epoch = (recipe.data.limit or 2400) // recipe.train.per_device_train_batch_size
    alone = recipe.stages[stage].model_copy(update={"epochs": math.ceil(steps / per_epoch)})
    recipes.write(recipe.model_copy(update={"stages": [alone]}), folder / "recipe.yaml")
    return folder / "recipe.yaml"


def resident(process: psutil.Process) -> Resident:
    """Read from outside, now."""
    every, files = 0, 0
    for each in (process, *process.children(recursive=True)):
        try:
            memory = each.memory_info()
        except psutil.NoSuchProcess:  # a worker that has just ended
            continue
        every, files = every + memory.rss, files + getattr(memory, "shared", 0)
    return Resident(every / 2**20, files / 2**20)


def last_step(log: Path) -> int:
    """The step of the newest whole line; 0 before the first."""
    text = log.read_text(encoding="utf-8") if log.is_file() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    return int(json.loads(lines[-1]).get("step", 0)) if lines else 0


def watch(command: list[str], run: Path) -> dict[int, Resident]:
    """Run a command that trains into `run`, with caches of its own; {step: memory} for each line of its log.

    That is the least of all readings until the next line: a step holds activations, which come and go. The last
    line is left out, as the process's end follows it. Raises CalledProcessError where the command fails.
    """
    curve: dict[int, Resident] = {}
    caches = {"XDG_CACHE_HOME": str(run.with_name("cache"))}
    with subprocess.Popen(command, env={**_GIVES_BACK, **os.environ, **caches}) as child:
        try:
            process = psutil.Process(child.pid)
            while child.poll() is None:
                step = last_step(run / "log.jsonl")
                if step:
                    curve[step] = min(curve.get(step, _MUCH), resident(process))
                time.sleep(0.02)
        finally:
            child.kill()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return dict(list(curve.items())[:-1])


def measure(steps: int, every: int, stage: int, overrides: tuple[str, ...] = ()) -> dict[str, float]:
    """Train, print the curve and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = prepare(Path(folder), steps, every, stage, overrides)
        began = time.monotonic()
        run = Path(folder) / "run"
        curve = watch([sys.executable, "-c", _CHILD, str(recipe), str(run)], run)
    for step, memory in curve.items():
        print(f"step {step:6d}  {memory.all:8.1f} MiB, {memory.files:6.1f} of them files")
    figures = {f"rss_step_{step}_mib": round(curve[step].all, 1) for step in (SETTLED, steps)}
    growth = curve[steps].all / curve[SETTLED].all - 1
    return {**figures, "growth": round(growth, 5), "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=50, help="steps between two readings; divides 100")
    parser.add_argument("--stage", type=int, default=1, help="0: dpo, 1: povid")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    print(json.dumps(measure(given.steps, given.every, given.stage, tuple(given.set))))


if __name__ == "__main__":
    main()
