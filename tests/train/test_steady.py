"""perf/memory.py sees a leak, and a run of 1,000 steps has none."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minipovid.recipe import read as recipes
from minipovid.recipe import schema

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    """perf/memory.py, which is no part of the package."""
    found = importlib.util.spec_from_file_location("perf_memory", ROOT / "perf" / "memory.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


# Logs steps 10, 20, 30 and 40 to the run folder, and holds argv[2] MiB more at each.
FAKE_RUN = """
import json, pathlib, sys, time
run, held = pathlib.Path(sys.argv[1]), []
run.mkdir()
with (run / "log.jsonl").open("w") as log:
    log.write('{"event": "data", "pairs": 2}\\n')
    for step in (10, 20, 30, 40):
        held.append(bytes(b"x" * (int(sys.argv[2]) << 20)))
        log.write(json.dumps({"step": step})[:5])
        log.flush()
        time.sleep(0.1)
        log.write(json.dumps({"step": step})[5:] + "\\n")
        log.flush()
        time.sleep(0.5)
sys.exit(int(sys.argv[3]))
"""


@pytest.mark.parametrize("leak", [0, 20])
def test_what_a_process_holds_more_at_each_line_of_its_log_is_seen(
    tmp_path: Path, memory: ModuleType, leak: int
) -> None:
    """20 MiB more at each of two lines after the first: 40 MiB, give or take what Python itself moves."""
    run = tmp_path / "run"
    curve = memory.watch([sys.executable, "-c", FAKE_RUN, str(run), str(leak), "0"], run)
    assert list(curve) == [10, 20, 30]
    assert curve[20].all - curve[10].all == pytest.approx(leak, abs=1)
    assert curve[30].all - curve[10].all == pytest.approx(2 * leak, abs=1)
    assert 0 <= curve[30].files < curve[30].all - 2 * leak


def test_a_run_that_fails_is_no_measurement(tmp_path: Path, memory: ModuleType) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        memory.watch([sys.executable, "-c", FAKE_RUN, str(tmp_path / "run"), "0", "3"], tmp_path / "run")


def test_the_recipe_is_the_shipped_one_cut_to_the_steps_that_are_asked_for(tmp_path: Path, memory: ModuleType) -> None:
    """1,000 + 50 steps of 2 out of 400 pairs: 5.25 epochs, so 6."""
    shipped = recipes.read(recipes.find(schema.BUILTIN))
    made = recipes.read(memory.prepare(tmp_path, steps=1000, every=50, stage=1))
    assert made.stages == [shipped.stages[1].model_copy(update={"epochs": 6})]
    assert made.train.max_steps == 1050 and made.train.per_device_train_batch_size == 2
    assert (made.model, made.lora, made.noise) == (shipped.model, shipped.lora, shipped.noise)


@pytest.mark.slow
def test_memory_stands_still_from_step_100_to_step_1000() -> None:
    """About two minutes on two quiet cores. POVID, six visits to each of 400 pairs."""
    script = [sys.executable, str(ROOT / "perf" / "memory.py"), "--steps", "1000"]
    done = subprocess.run(
        script, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    assert 200 < figures["rss_step_100_mib"] < 2000
    assert figures["growth"] < 0.02, done.stdout
