"""`minipovid bench`: the line by hand, real steps on a CPU, what it refuses, and the random model that it draws."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from minipovid.cli import main
from minipovid.common.errors import MinipovidError
from minipovid.models.encoder import Encoder
from minipovid.models.load import load
from minipovid.models.shapes import config, shapes
from minipovid.models.stored_tensors import Tensors, shards
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import LoraSection, ModelSection
from minipovid.tinyworld import CHECKPOINT
from minipovid.train import bench, plan, random_inputs
from minipovid.train.plan import cards

CARD = bench.Bench(
    machine="NVIDIA GeForce RTX 4090, 24 GiB, driver 570.1, CUDA 12.8",
    torch="2.13.0",
    minipovid="0.1.0",
    recipe="llava7b_qlora",
    stage="stage 2 (povid)",
    micro_batch=1,
    gradient_checkpointing=False,
    steps=25,
    seconds_per_step=2.4071,
    plan_seconds_per_step=2.6,
    pairs_per_second=1 / 2.4071,
    peak_gib=12.899,
    plan_peak_gib=12.96,
    reserved_gib=13.4,
)


def test_the_line_of_a_card() -> None:
    assert CARD.line == (
        "NVIDIA GeForce RTX 4090, 24 GiB, driver 570.1, CUDA 12.8, torch 2.13.0, minipovid 0.1.0: llava7b_qlora, "
        "stage 2 (povid), 1 pair at once, checkpointing none: 2.41 s/step (plan 2.6), 0.415 pairs/s, "
        "peak 12.90 GiB (plan 12.96), reserved 13.40 GiB"
    )


def test_the_line_says_nothing_of_what_is_not_known() -> None:
    unknown = replace(
        CARD, micro_batch=16, plan_seconds_per_step=None, plan_peak_gib=None, reserved_gib=None, machine="X, 2 threads"
    )
    assert unknown.line == (
        "X, 2 threads, torch 2.13.0, minipovid 0.1.0: llava7b_qlora, stage 2 (povid), 16 pairs at once, "
        "checkpointing none: 2.41 s/step, 0.415 pairs/s, peak 12.90 GiB"
    )


def test_steps_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, with a tiny batch; nothing is left in the folder of temporary files, nor in the caches."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nextends: tinyworld\ntrain: {per_device_train_batch_size: 1}\n")
    work, cache = tmp_path / "work", tmp_path / "cache"
    work.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(work))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    result = CliRunner().invoke(main, ["bench", str(recipe), "--seconds", "0.01", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    line = found.pop("line")
    assert line == bench.Bench(**found).line and line.startswith(found["machine"])
    assert f"{torch.get_num_threads()} threads" in found["machine"]
    assert (found["recipe"], found["stage"], found["steps"]) == ("mine", "stage 2 (povid)", 1)
    assert found["pairs_per_second"] == pytest.approx(1 / found["seconds_per_step"])
    assert found["peak_gib"] > 0.1 and found["plan_peak_gib"] is None and found["plan_seconds_per_step"] is None
    assert list(work.iterdir()) == [] and not [path for path in cache.rglob("*") if path.is_file()]


def test_the_clock_runs_behind_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 5 s, the first three of 100 s: 2 of them are over after 7 s."""
    now = 0.0

    def steps() -> Iterator[int]:
        nonlocal now
        for number in range(100):
            now += 100 if number < 3 else 5
            yield number

    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: now))
    assert bench.timed(steps(), 7) == (2, 5.0)


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [("nonsense", "nonsense"), ("llava7b_qlora", "7.1 billion parameters and torch finds no CUDA GPU on this machine")],
)
def test_what_is_refused(recipe: str, sentence: str) -> None:
    result = CliRunner().invoke(main, ["bench", recipe])
    assert result.exit_code == 2 and sentence in result.stderr and result.stdout == ""


def test_a_card_without_bfloat16_is_refused_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        **{"is_available": True, "get_device_capability": (7, 5), "get_device_name": "Tesla T4"},
        **{"mem_get_info": (15 * 2**30, 15 * 2**30)},
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(random_inputs, "write_model", None)
    with pytest.raises(MinipovidError, match=r"^The Tesla T4 \(compute capability 7.5\) has no bfloat16"):
        bench.bench(None, None, print)


def test_memory_that_runs_out_has_trains_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench, "_measured", full)
    with pytest.raises(MinipovidError, match=r"^The memory ran out; .* GiB were predicted"):
        bench.bench("tinyworld", 1, print)


def test_a_full_disk_is_said_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(MinipovidError, match=r"^The random model takes 0\.0 GiB .* set TMPDIR"):
        bench.bench("tinyworld", 1, print)


@pytest.mark.parametrize(("free", "recipe"), [(24, "llava7b_qlora"), (12, "llava7b_qlora"), (8, "llava7b_8gb")])
def test_the_recipe_of_a_card(free: float, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(plan, "free_gib", lambda: free)
    assert bench.fitting() == recipe


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("NVIDIA GeForce RTX 4090", 23.5, "RTX 4090"),
        ("NVIDIA H200", 139.8, "H200"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce RTX 3060 Ti", 8, None),
        ("NVIDIA GeForce RTX 3060", 8, None),
    ],
)
def test_a_card_is_known_by_name_and_size(name: str, gib: float, card: str | None) -> None:
    found = cards.known(name, gib)
    assert (found and found.name) == card


def test_a_stage_takes_its_share_of_the_mean() -> None:
    """Three epochs of the first and one of the second stage."""
    model, recipe = shapes("llava-hf/llava-1.5-7b-hf"), recipes.read(recipes.find("llava7b_qlora"))
    card = cards.CARDS[1]
    settled = plan.settled_for(model, recipe, card.gib)
    first, second = (plan.stage_seconds_per_step(model, settled, card, number) for number in (0, 1))
    assert second > first
    assert plan.seconds_per_step(model, settled, card) == pytest.approx((3 * first + second) / 4)


def test_the_random_model_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several shards, each weight loaded as it was drawn, of the shapes that were asked for."""
    monkeypatch.setattr(random_inputs, "SHARD", 2**20)
    count = random_inputs.write_model(tmp_path, config("tinyworld"), torch.float32, "cpu")
    assert count == shapes("tinyworld").weights == shapes(str(tmp_path)).weights
    assert len(shards(tmp_path)) > 2
    stored = Tensors(tmp_path)
    section = ModelSection(path=str(tmp_path), load_in_4bit=False, dtype="float32")
    model = load(section, LoraSection(r=2, alpha=4), device=torch.device("cpu"))
    weights = {name.replace(".base_layer", ""): value for name, value in model.base.named_parameters()}
    assert {name for name in weights if "lora_" not in name} == set(stored)
    for name, tensor in stored.items():
        assert (torch.from_numpy(tensor.rows()) == weights[name]).all(), name


def test_pairs_have_the_lengths_that_are_asked_for(tmp_path: Path) -> None:
    """Counted by the encoder of the model that they are for."""
    rows = random_inputs.write_pairs(tmp_path / "pairs", 4, 1, 60, 100)
    section = ModelSection(path=str(CHECKPOINT), load_in_4bit=False, dtype="float32")
    model = load(section, LoraSection(r=2, alpha=4), device=torch.device("cpu"))
    encoder = Encoder.of(model, 1024)
    for row in rows:
        example = encoder(row["prompt"], {name: row[name] for name in ("chosen", "rejected")})
        assert 60 <= len(example.prompt) - model.image_tokens <= 62
        assert all(100 <= len(ids) <= 102 for ids in example.answers.values())
        assert (tmp_path / "pairs" / row["image"]).is_file()
