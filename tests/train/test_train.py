"""The loop over a tiny random LLaVA: figures, stages, resuming bit for bit, and what is refused."""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_cases import STAGES, a_recipe, lines

from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone
from minipovid.pairs.source import split
from minipovid.recipe import read as recipes
from minipovid.train import checkpoint, log, losses
from minipovid.train.loop import steps, train
from minipovid.train.losses import Judged, View
from minipovid.train.run import Run
from minipovid.train.stages.preference import Objective


@pytest.fixture(scope="module")
def finished_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return train(a_recipe(world, folder / "r.yaml"), folder / "run", progress=False)


def test_run_folder(finished_run: Path) -> None:
    """12 pairs, batch 2: 6 steps of dpo, then 12 of povid; two checkpoints are kept."""
    names = {path.name for path in finished_run.iterdir()}
    assert names == {"recipe.yaml", "pairs.jsonl", "log.jsonl", "adapter", "checkpoint-12", "checkpoint-15"}
    steps = [line for line in lines(finished_run) if "step" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8, 10, 12, 14, 16, 18]
    assert [line["stage"] for line in steps] == [0] * 3 + [1] * 6
    assert steps[-1]["epoch"] == 2
    wanted = "loss rewards/chosen rewards/rejected rewards/accuracies rewards/margins logps/chosen logps/rejected"
    assert set(wanted.split()) | {"grad_norm", "learning_rate", "pairs_per_s"} <= set(steps[0])
    weights = load_file(finished_run / "adapter" / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)


def test_the_last_pairs_are_held_out(world: Path, tmp_path: Path) -> None:
    """Of 12 pairs a tenth may be held out: one. The twelfth is in the run's file, and in no step's data."""
    recipe = a_recipe(world, tmp_path / "r.yaml", data__held_out=32)
    trainer = Run.open(recipe, tmp_path / "run")
    assert [pair.id for pair in trainer.datasets[0].pairs] == [str(number) for number in range(11)]
    assert len((tmp_path / "run" / "pairs.jsonl").read_text().splitlines()) == 12
    parts = [split([trainer.datasets[0].pairs[0]] * count, recipe.data) for count in (9, 1000)]
    assert [(len(part.trained), len(part.held_out)) for part in parts] == [(9, 0), (968, 32)]


def test_first_step_is_ln2_and_the_margin_grows(world: Path, tmp_path: Path) -> None:
    run = train(a_recipe(world, tmp_path / "r.yaml", train__logging_steps=1), tmp_path / "run", progress=False)
    steps = [line for line in lines(run) if "step" in line]
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert steps[6]["loss"] == pytest.approx(0.693147, abs=1e-5)  # stage 2's reference is where stage 1 ended
    assert statistics.mean(line["rewards/margins"] for line in steps[-6:]) > 0.5  # its second epoch


def test_gradient_accumulation_is_a_larger_batch(world: Path, tmp_path: Path) -> None:
    """Batches of 4, and of 1 accumulated 4 times, over 12 pairs: the same adapter to float error."""
    weights = []
    for batch, accumulation in ((4, 1), (1, 4)):
        changes = {"train__per_device_train_batch_size": batch, "train__gradient_accumulation_steps": accumulation}
        recipe = a_recipe(world, tmp_path / "r.yaml", **changes, stages=STAGES[:1])
        run = train(recipe, tmp_path / f"run{batch}", progress=False)
        weights.append(load_file(run / "adapter" / "adapter_model.safetensors"))
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=1e-5, rtol=1e-3)


def test_a_finished_run_is_left_alone(world: Path, finished_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")}
    train(recipes.read(finished_run / "recipe.yaml"), finished_run, progress=False)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.safetensors")} == before


def test_another_recipe_is_refused(world: Path, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        train(a_recipe(world, tmp_path / "r.yaml", train__learning_rate=1e-4), finished_run)
    assert "train.learning_rate is 0.001 there and 0.0001 here" in str(error.value)


def test_start_from_begins_at_that_adapter(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """With steps of nearly nothing the run ends where it began: at the other run's adapter, with a loss of ln 2."""
    recipe = a_recipe(world, tmp_path / "r.yaml", start_from=str(finished_run), train__learning_rate=1e-12)
    run = train(recipe, tmp_path / "run", progress=False)
    theirs, ours = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (finished_run, run))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=1e-8, rtol=0)
    assert all(line["loss"] == pytest.approx(0.693147, abs=1e-5) for line in lines(run) if "step" in line)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"start_from": "nowhere"}, "holds no finished run"),
        ({"lora__alpha": 32}, "was trained with lora.alpha 8.0, and this recipe has 32.0; use the same"),
    ],
)
def test_start_from_another_model_is_refused(
    world: Path, finished_run: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    recipe = a_recipe(world, tmp_path / "r.yaml", **{"start_from": str(finished_run), **change})
    with pytest.raises(MinipovidError, match=sentence):
        train(recipe, tmp_path / "other")


def test_after_a_refusal_its_own_remedy_works_in_the_same_folder(world: Path, tmp_path: Path) -> None:
    good = (world / "pairs.jsonl").read_text()
    (world / "bad.jsonl").write_text(good + '{"id": "bad"}\n')
    data = str(world / "bad.jsonl")
    with pytest.raises(MinipovidError, match="set data.on_bad_row: skip"):
        train(a_recipe(world, tmp_path / "r.yaml", data__path=data), tmp_path / "run")
    recipe = a_recipe(world, tmp_path / "r.yaml", data__path=data, data__on_bad_row="skip", train__max_steps=1)
    run = train(recipe, tmp_path / "run", progress=False)
    event = lines(run)[0]
    assert (event["event"], event["pairs"], event["bad_rows"]) == ("data", 12, 1)
    assert event["bad"][0]["where"] == "row 13 (id bad)"


@dataclass(frozen=True)
class Likelihood:
    """A loss of one view and no reference."""

    views = (View("chosen", "clean", reference="nothing"),)

    def __call__(self, policy: Any, reference: Any) -> Judged:
        logps = policy["chosen", "clean"].logps().sum(-1)
        return Judged(-logps, losses.preferred(logps, torch.zeros_like(logps), 1.0))


def test_a_loss_may_look_at_one_view_only(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new file on the shelf needs no edit elsewhere: the loop and the log ask for nothing that a loss does not."""
    monkeypatch.setattr(losses, "build", lambda *_: Likelihood())
    recipe = a_recipe(world, tmp_path / "r.yaml", stages=STAGES[1:], train__logging_steps=6)
    steps = [line for line in lines(train(recipe, tmp_path / "run")) if "step" in line]
    assert steps[1]["logps/chosen"] > steps[0]["logps/chosen"] + 2  # the same pairs, an epoch later
    assert "logps/rejected" not in steps[0]


def test_a_loss_that_is_no_number_stops_before_the_step(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(self: Any, policy: Any, reference: Any) -> Judged:
        logps = policy["chosen", "clean"].logps().sum(-1) * math.nan
        return Judged(logps)

    monkeypatch.setattr("minipovid.train.losses.dpo.Loss.__call__", nan)
    with pytest.raises(MinipovidError, match="no longer a finite number in step 1 of stage 1"):
        train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
    ],
    ids=["CUDA", "CPU", "cuBLAS", "elsewhere in CUDA"],
)
def test_memory_that_runs_out_is_one_sentence_and_loses_nothing(
    world: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    """In step 8, after the checkpoint of step 6: the plan says what to change, and the run goes on from there."""
    forward, calls = Objective.forward, []

    def dying(self: Any, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise error
        return forward(self, batch)

    recipe, run = a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run"
    monkeypatch.setattr(Objective, "forward", dying)
    with pytest.raises(MinipovidError, match=r"The memory ran out; .* GiB were predicted.*; set train\.micro_batch=1"):
        train(recipe, run, progress=False)
    assert checkpoint.latest(run).position.global_step == 6
    train(recipe, run, progress=False)
    same_bytes(run, finished_run)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)",
    ],
)
def test_shared_memory_that_runs_out_is_one_sentence(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def dying(self: Any, batch: Any) -> Any:
        raise RuntimeError(text)

    monkeypatch.setattr(Objective, "forward", dying)
    with pytest.raises(MinipovidError, match="Docker gives 64 MB.*--shm-size=2g.*train.dataloader_num_workers: 0"):
        train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)


def test_checkpoints_come_by_the_clock(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """Every quarter of an hour by default, and where a stage begins; at every step where that is late. One end."""
    assert a_recipe(world, tmp_path / "r.yaml").train.save_minutes == 15
    for minutes, wanted in ((15.0, {"checkpoint-6"}), (1e-9, {"checkpoint-16", "checkpoint-17"})):
        run = tmp_path / f"run{minutes}"
        changes = {"train__save_steps": None, "train__save_minutes": minutes}
        train(a_recipe(world, tmp_path / "r.yaml", **changes), run, progress=False)
        assert {path.name for path in run.glob("checkpoint-*")} == wanted
        same_bytes(run, finished_run)


def test_the_frozen_adapter_is_written_once_a_stage(finished_run: Path) -> None:
    """Checkpoints of one stage share the file; what was before the stage's first step is not theirs."""
    files = [finished_run / f"checkpoint-{step}" / "reference.safetensors" for step in (12, 15)]
    assert files[0].samefile(files[1])
    frozen, policy = load_file(files[0]), load_file(finished_run / "checkpoint-12" / "adapter_model.safetensors")
    assert len(frozen) == len(policy)
    assert any(not torch.equal(*both) for both in zip(frozen.values(), policy.values(), strict=True))


def test_another_error_is_no_advice(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, batch: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)


def test_another_number_of_processes_is_refused(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """It would share the remaining pairs out otherwise, and skip or repeat some."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    state = checkpoint.latest(run).folder / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "processes": 2}))
    state.with_name(checkpoint.SUMS).unlink()  # else it would count as damage
    with pytest.raises(MinipovidError, match="was begun with 2 processes and this start has 1"):
        train(recipes.read(run / "recipe.yaml"), run, progress=False)


def test_workers_change_nothing(world: Path, finished_run: Path, tmp_path: Path) -> None:
    run = train(a_recipe(world, tmp_path / "r.yaml", train__dataloader_num_workers=2), tmp_path / "run", progress=False)
    same_bytes(run, finished_run)


def test_a_picture_that_goes_missing_is_one_sentence(world: Path, tmp_path: Path) -> None:
    """From a worker process, where an exception would come with a traceback of its own."""
    for path in world.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    changes = {"train__dataloader_num_workers": 1, "data__path": str(tmp_path / "pairs.jsonl")}
    trainer = Run.open(a_recipe(world, tmp_path / "r.yaml", **changes), tmp_path / "run")
    (tmp_path / "3.png").unlink()
    with pytest.raises(MinipovidError) as error:
        list(steps(trainer))
    assert str(error.value).startswith(f"There is no picture {tmp_path / '3.png'}; check")
    assert "Traceback" not in str(error.value)


def test_interrupted_at_every_step_ends_with_the_same_bytes(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """Ctrl-C after each step saves; one step per start, through both stages, gives the uninterrupted adapter."""
    recipe = a_recipe(world, tmp_path / "r.yaml")
    run, starts = tmp_path / "run", 0
    step = torch.optim.AdamW.step

    def step_and_interrupt(self: Any, *args: Any) -> Any:
        result = step(self, *args)
        os.kill(os.getpid(), signal.SIGINT)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step_and_interrupt)
        while not (run / "adapter").is_dir() and starts < 25:
            starts += 1
            try:
                train(recipe, run, progress=False)
            except KeyboardInterrupt:
                assert checkpoint.latest(run).position.global_step == starts
    assert starts == 19  # 18 steps, each interrupted, and the start that finds nothing left to do
    same_bytes(run, finished_run)


@pytest.mark.slow
def test_killed_at_random_moments_ends_with_the_same_bytes(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments; nothing half-written stands under a final name; the end is the same."""
    a_recipe(world, tmp_path / "r.yaml")
    code = (
        "import sys; from pathlib import Path; from minipovid.recipe import read\n"
        "from minipovid.train.loop import train\n"
        "train(read.read(Path(sys.argv[1])), Path(sys.argv[2]), progress=False)"
    )
    run, dice, kills = tmp_path / "run", random.Random(1), []
    while not (run / "adapter").is_dir():
        before = log_inode(run)
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "r.yaml", run])
        while process.poll() is None and log_inode(run) == before:  # a start replaces the log when its model is loaded
            time.sleep(0.005)
        try:
            process.wait(timeout=dice.uniform(0.0, 0.5) if len(kills) < 8 else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            newest = checkpoint.latest(run)
            kills.append(newest.position.global_step if newest else 0)
        for path in run.glob("**/*.safetensors"):
            if not any(part.startswith(".") for part in path.relative_to(run).parts):
                load_file(path)
    assert len(kills) >= 3
    assert max(kills) > 0  # some came in the middle of training
    same_bytes(run, finished_run)


def log_inode(run: Path) -> int:
    return (run / "log.jsonl").stat().st_ino if (run / "log.jsonl").is_file() else 0


class Killed(BaseException):
    """Stands for SIGKILL at one chosen call: nothing after it runs, but what `except BaseException` does."""


@pytest.mark.parametrize("moment", ["rename away", "delete", "rename in"])
def test_killed_while_a_checkpoint_is_replaced(
    world: Path, finished_run: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Death at any moment of pruning or writing leaves whole checkpoints alone, and the run goes on from one."""
    rmtree, rename = shutil.rmtree, os.replace

    def dying_rmtree(path: Path, **named: Any) -> None:
        if moment == "delete" and Path(path).name == ".checkpoint-3.gone" and Path(path).exists():
            raise Killed
        rmtree(path, **named)

    def dying_rename(source: Path, target: Path) -> None:
        if Path(source).name == {"rename away": "checkpoint-3", "rename in": ".checkpoint-9.draft"}.get(moment):
            raise Killed
        rename(source, target)

    recipe, run = a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dying_rmtree)
        patch.setattr(os, "replace", dying_rename)
        with pytest.raises(Killed):
            train(recipe, run, progress=False)
    newest = checkpoint.latest(run)
    assert newest is not None and newest.position.global_step >= 6
    train(recipe, run, progress=False)
    assert not list(run.glob(".*"))
    same_bytes(run, finished_run)


def flipped(data: bytes) -> bytes:
    """With one byte in the middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {"cut": lambda data: data[: len(data) // 2], "empty": lambda data: b"", "flipped": flipped, "gone": None}
FILES = ("adapter_model.safetensors", "adapter_config.json", "reference.safetensors", "optimizer.safetensors")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", [*FILES, "state.json"])
def test_a_damaged_checkpoint_is_passed_over(
    finished_run: Path, tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The earlier one is taken, and a sentence says which is damaged and from which step it goes on."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    newest = checkpoint.latest(run)
    spoil(newest.folder / file, damage)
    checkpoint.drop_damaged(run)
    assert checkpoint.latest(run).position.global_step == 12
    assert re.fullmatch(
        rf"{newest.folder} is damaged \(.*{file}.*\); training goes on from checkpoint-12, step 12\.\n",
        capsys.readouterr().err,
    )


def spoil(path: Path, damage: str) -> None:
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_damage_of_a_checkpoint_without_sums(finished_run: Path, tmp_path: Path, damage: str) -> None:
    """As versions before SHA256SUMS wrote it; and its whole one is taken."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    for sums in run.glob("*/SHA256SUMS"):
        sums.unlink()
    checkpoint.drop_damaged(run)
    assert checkpoint.latest(run).position.global_step == 15
    spoil(checkpoint.latest(run).folder / "optimizer.safetensors", damage)
    checkpoint.drop_damaged(run)
    assert checkpoint.latest(run).position.global_step == 12


def test_a_run_whose_every_checkpoint_is_damaged_is_left_as_it_is(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    for state in run.glob("checkpoint-*/state.json"):
        state.write_text("[" * 100_000)
    before = sorted(run.rglob("*"))
    with pytest.raises(MinipovidError, match=r"No checkpoint of .* is whole: .*Put back a copy of one, or remove them"):
        checkpoint.drop_damaged(run)
    assert sorted(run.rglob("*")) == before


def test_a_damaged_run_ends_with_the_same_bytes(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """Its newest checkpoint cut, its log's last line too and another overwritten with what is no text."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(run / "adapter")
    spoil(checkpoint.latest(run).folder / "optimizer.safetensors", "cut")
    with (run / "log.jsonl").open("ab") as log_file:
        log_file.write(b'\xff\x00\n[1]\n{"step": 99')
    train(a_recipe(world, tmp_path / "r.yaml"), run, progress=False)
    same_bytes(run, finished_run)


def test_a_full_disk_loses_nothing(world: Path, finished_run: Path, tmp_path: Path) -> None:
    """No checkpoint may be written; with room again the same call ends with the same bytes."""
    recipe, run = a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            train(recipe, run, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(raised.value.filename).startswith(str(run / "checkpoint-3"))
    assert not list(run.glob(".*")) and not list(run.glob("checkpoint-*"))
    train(recipe, run, progress=False)
    same_bytes(run, finished_run)


def test_a_checkpoint_that_does_not_fit_is_not_begun(
    finished_run: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MinipovidError, match=r"run needs [\d.]+ MiB of disk for this and 0.0 MiB are free; make room"):
        train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)
    assert not list((tmp_path / "run").glob("*checkpoint-*"))


def test_two_trainings_of_one_run_are_one_too_many(
    world: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused before it looks at anything; of one training in several processes the first alone asks."""
    recipe, sentence = recipes.read(finished_run / "recipe.yaml"), "Another process is writing to .*run; wait until"
    with alone(finished_run):
        with ThreadPoolExecutor(1) as other, pytest.raises(MinipovidError, match=sentence):
            other.submit(train, recipe, finished_run, False).result()
        monkeypatch.setenv("RANK", "1")
        train(recipe, finished_run, progress=False)


def test_a_finished_run_keeps_what_others_are_writing(finished_run: Path, tmp_path: Path) -> None:
    """An export beside the same `train` command, which finds nothing left to do."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    (run / ".merged.draft").mkdir()
    train(recipes.read(run / "recipe.yaml"), run, progress=False)
    assert (run / ".merged.draft").is_dir()


def same_bytes(run: Path, other: Path) -> None:
    """The same adapter, and the same log but for the machine's work."""
    adapters = [(folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (run, other)]
    assert adapters[0] == adapters[1]
    logs = [[{k: v for k, v in line.items() if k not in log.VARYING} for line in lines(r)] for r in (run, other)]
    assert logs[0] == logs[1]
