"""The log line: means, the machine's figures after a restart, memory, and the share of weights that a step changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minipovid.train import log as meter
from minipovid.train.log import MACHINE, Changed, TrainingLog


class Clock:
    """Stands for the module `time`; it goes on when it is told to."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def test_a_line_by_hand(tmp_path: Path, clock: Clock) -> None:
    """Losses 1 over 2 pairs and 4 over 1: a mean of 2. In 4 s: 3 pairs, 700 tokens, 0.5 s of waiting."""
    log = TrainingLog(tmp_path, stage=1, every=2)
    clock.now += 1
    assert log.add({"loss": 1.0}, 2, 1, 0.1, False, tokens=500, waited_s=0.4) is None
    clock.now += 3
    line = log.add({"loss": 4.0}, 1, 2, 0.2, False, tokens=200, waited_s=0.1)
    assert line is not None
    assert line.pop("peak_gib") > 0
    wanted = {"step": 2, "stage": 1, "epoch": 0.2, "loss": 2.0}
    assert line == {**wanted, "pairs_per_s": 0.75, "tokens_per_s": 175.0, "data_wait": 0.125}
    assert json.loads((tmp_path / "log.jsonl").read_text())["tokens_per_s"] == 175.0


def test_the_next_line_begins_anew(tmp_path: Path, clock: Clock) -> None:
    log = TrainingLog(tmp_path, 0, 1)
    for tokens in (900, 100):
        clock.now += 2
        line = log.add({}, 1, 1, 0.0, False, tokens=tokens, waited_s=5.0)
    assert line is not None
    assert (line["pairs_per_s"], line["tokens_per_s"], line["data_wait"]) == (0.5, 50.0, 1.0)


def test_after_a_restart_means_tell_of_all_pairs_and_speeds_of_the_new_ones(tmp_path: Path, clock: Clock) -> None:
    """4 pairs with loss 1 before, 2 with loss 4 in the 2 s since: a mean of 2, and one pair a second."""
    log = TrainingLog(tmp_path, 0, 2)
    clock.now += 50
    log.add({"loss": 1.0}, 4, 1, 0.0, False, tokens=10**6, waited_s=40.0)
    state = json.loads(json.dumps(log.state))
    resumed = TrainingLog(tmp_path, 0, 2, state)
    clock.now += 2
    line = resumed.add({"loss": 4.0}, 2, 2, 0.0, False, tokens=30, waited_s=1.0)
    assert line is not None
    assert (line["loss"], line["pairs_per_s"], line["tokens_per_s"], line["data_wait"]) == (2.0, 1.0, 15.0, 0.5)


def test_machine_names_all_that_differs_between_two_runs(tmp_path: Path, clock: Clock) -> None:
    log = TrainingLog(tmp_path, 0, 1)
    clock.now += 1
    line = log.add({"loss": 1.0}, 1, 1, 0.0, True)
    assert line is not None
    machine = MACHINE if torch.cuda.is_available() else MACHINE[:-1]  # what is reserved, a card's allocator alone tells
    assert list(line) == ["step", "stage", "epoch", "loss", *machine]


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells of the card")
def test_peak_memory_is_this_process_own_and_a_peak() -> None:
    """A child of a process that held 300 MiB more has not; 100 MiB that were held for a moment stay in the figure."""
    code = "from minipovid.train import log; a = log.peak_gib(); bytearray(b'x' * (50 << 20)); print(a, log.peak_gib())"
    weight = bytearray(b"x" * (300 << 20))
    before, after = map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    del weight
    assert meter.peak_gib() * 1024 > 400
    assert before < meter.peak_gib()
    assert (after - before) * 1024 == pytest.approx(100, abs=25)


@pytest.mark.parametrize(("platform", "gib"), [("darwin", 3.0), ("win32", 2.0), ("cuda", 1.5)])
def test_peak_memory_elsewhere(platform: str, gib: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS counts bytes, where Linux' getrusage would count kilobytes; Windows and CUDA have calls of their own."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=2 << 30))
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=3 << 30))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    monkeypatch.setitem(sys.modules, "resource", usage)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: platform == "cuda")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 << 29)
    monkeypatch.setattr(sys, "platform", platform)
    assert meter.peak_gib() == gib


def share_of(weights: list[Tensor], change: Any) -> float:
    changed = Changed(weights)
    with torch.no_grad():
        change()
    return changed.share().item()


def test_tensors_count_by_their_size() -> None:
    """All 1,000 weights of one tensor moved and none of 99,000: 1 %, although 1,000 of 4,960 samples moved."""
    large, small = torch.zeros(300, 330), torch.zeros(1000)
    assert share_of([large, small], lambda: small.add_(1)) == pytest.approx(0.01, rel=1e-4)
    assert share_of([large, small], lambda: large.add_(1)) == pytest.approx(0.99, rel=1e-4)
    assert share_of([large, small], lambda: None) == 0


def test_a_step_does_not_count_the_one_before_it() -> None:
    weight = torch.zeros(100)
    changed = Changed([weight])
    weight[:50] += 1
    assert changed.share().item() == pytest.approx(0.5)
    weight[90:] += 1
    assert changed.share().item() == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(4096, 128), (128, 4096), (4096, 4096)])
def test_the_sample_meets_every_column(shape: tuple[int, int]) -> None:
    """One column in 64 moved: a sample with an even stride would see all of it or nothing."""
    weight = torch.zeros(shape)
    assert len(Changed([weight]).earlier) <= 4096
    assert share_of([weight], lambda: weight[:, 5::64].add_(1)) == pytest.approx(1 / 64, rel=0.25)


@pytest.mark.parametrize(("dtype", "wanted"), [(torch.float32, 1.0), (torch.bfloat16, 0.032)])
def test_bfloat16_loses_updates_that_float32_keeps(dtype: torch.dtype, wanted: float) -> None:
    """facts/peers.md, section 4: of a fresh lora_A (uniform, fan-in 4,096) steps of 1e-6 leave 96.8 % where it was."""
    bound = 4096**-0.5  # kaiming_uniform_(a=sqrt(5)): sqrt(6 / (1 + 5) / fan-in)
    weights = [((torch.rand(16, 4096) * 2 - 1) * bound).to(dtype) for _ in range(8)]
    share = share_of(weights, lambda: [weight.add_(1e-6) for weight in weights])
    assert share == pytest.approx(wanted, abs=0.005)


def test_a_weight_without_a_gradient_is_unchanged() -> None:
    """B A x with B = 0: the first step moves B alone, the second both (hence a first line below 1)."""
    a, b = nn.Parameter(torch.randn(4, 30)), nn.Parameter(torch.zeros(10, 4))
    optimizer = torch.optim.AdamW([a, b], lr=1e-6, weight_decay=0.0)
    changed = Changed([a, b])
    for wanted in (40 / 160, 1.0):
        (b @ a @ torch.ones(30)).square().add(b @ a @ torch.ones(30)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert changed.share().item() == pytest.approx(wanted, rel=1e-6)


class Syncs(TorchDispatchMode):
    """Counts the calls that make the host wait for a device."""

    waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_one_wait_per_step() -> None:
    weights = [torch.zeros(50, 200) for _ in range(6)]
    changed = Changed(weights)
    with Syncs() as syncs:
        changed.share().item()
    assert syncs.waits == 1
