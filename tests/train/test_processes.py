"""Several processes under `accelerate launch`: the same adapter as one process with the larger batch, and resuming."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_llava
import torch
from safetensors.torch import load_file
from training_cases import a_recipe, lines

from minipovid.train import checkpoint
from minipovid.train.loop import train

pytestmark = pytest.mark.slow
LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no"


def launch(processes: int, recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    """`accelerate launch -m minipovid train RECIPE --out RUN`, in a process group of its own."""
    command = [sys.executable, *LAUNCH.split(), "--num_processes", str(processes), "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "minipovid", "train", str(recipe), "--out", str(run)]
    return subprocess.Popen([*command, *arguments], env=environment, start_new_session=True)


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def same(run: Path, other: Path) -> None:
    ours, theirs = adapter(run), adapter(other)
    assert len(ours) == 28
    assert max(value.abs().max() for value in ours.values()) > 0.1
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("processes", "batch"), [(2, 2), (3, 2)])
def test_processes_are_a_larger_batch(world: Path, tmp_path: Path, processes: int, batch: int) -> None:  # noqa: F811
    """12 pairs, 4 or 6 a step, in micro-batches of one on the side of the many."""
    one = a_recipe(world, tmp_path / "one.yaml", train__per_device_train_batch_size=processes * batch)
    many = tmp_path / "many.yaml"
    a_recipe(world, many, train__per_device_train_batch_size=batch, train__micro_batch=1)
    assert launch(processes, many, tmp_path / "many").wait(timeout=300) == 0
    train(one, tmp_path / "one", progress=False)
    same(tmp_path / "many", tmp_path / "one")
    logs = zip(lines(tmp_path / "many")[1:], lines(tmp_path / "one")[1:], strict=True)
    for ours, theirs in logs:
        for figure in ("loss", "logps/chosen", "rewards/margins", "grad_norm"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-3, abs=1e-4)


def test_a_process_without_pairs_waits_for_the_others(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """9 pairs, 8 a step: the last step's one pair is one process's, and the other's stand-in counts nothing."""
    one = a_recipe(world, tmp_path / "one.yaml", train__per_device_train_batch_size=8, data__limit=9)
    a_recipe(world, tmp_path / "many.yaml", train__per_device_train_batch_size=4, data__limit=9)
    assert launch(2, tmp_path / "many.yaml", tmp_path / "many").wait(timeout=300) == 0
    train(one, tmp_path / "one", progress=False)
    same(tmp_path / "many", tmp_path / "one")


def test_killed_processes_go_on_where_they_stopped(world: Path, tmp_path: Path) -> None:  # noqa: F811
    """SIGKILL to the whole group at random moments until it gets through."""
    recipe = tmp_path / "r.yaml"
    a_recipe(world, recipe, train__save_steps=1, train__per_device_train_batch_size=1)
    assert launch(2, recipe, tmp_path / "whole").wait(timeout=300) == 0
    run, dice, kills = tmp_path / "killed", random.Random(0), []
    while not (run / "adapter").is_dir():
        process = launch(2, recipe, run)
        begun = checkpoint.latest(run)
        while process.poll() is None and resume_step(run) <= (begun.position.global_step if begun else 0):
            time.sleep(0.01)
        try:
            process.wait(timeout=dice.uniform(0, 0.3) if len(kills) < 3 else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills.append(resume_step(run))
        assert len(kills) < 10
    assert len(kills) == 3 and max(kills) < 18
    same(run, tmp_path / "whole")


def resume_step(run: Path) -> int:
    newest = checkpoint.latest(run)
    return newest.position.global_step if newest else 0


def test_an_error_is_one_sentence_and_ends_every_process(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    tiny_llava.build(tmp_path / "model")
    recipe.write_text(
        f"{{name: r, model: {{path: {tmp_path / 'model'}}}, data: {{path: {tmp_path / 'absent.jsonl'}}}, "
        "stages: [{loss: {name: dpo}}]}"
    )
    started = time.monotonic()
    assert launch(2, recipe, tmp_path / "run").wait(timeout=120) != 0
    assert time.monotonic() - started < 100
