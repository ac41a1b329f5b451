"""The step on a card that is not there: the shipped recipes at LLaVA-1.5-7B's widths, three layers deep.

What only a card would tell is asked of torch's shapes (tests/helpers/fake_cuda.py): that no operation mixes devices or
types, how often the host waits, which attention kernel is chosen, how many kernels there are, and that memory and
operations are those that `minipovid plan` predicts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_cuda
import pytest

ROOT = Path(__file__).parents[2]
LAYERS = 3
CASES = {  # recipe, stage -> checkpointed layers, kernels of a step with the reference kept, frozen 4-bit products
    ("llava7b_qlora", 0): ("false", 1150, 3 * 7),
    ("llava7b_qlora", 1): ("false", 1895, 2 * 3 * 7),  # and a view of the noised picture, without gradient
    ("llava7b_8gb", 0): ("1", 1187, 3 * 7 + 6),  # of the layer that is computed again, all but the last product
    ("llava7b_8gb", 1): ("1", 1932, 2 * 3 * 7 + 6),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = fake_cuda.build(tmp_path_factory.mktemp("guard"))
    if built is None:
        pytest.skip("there is no C++ compiler to build the device guard with")
    return built


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def counted(request: pytest.FixtureRequest, library: Path) -> dict[str, Any]:
    """What perf/fake_gpu.py says of one stage of a recipe."""
    recipe, stage = request.param
    script = [sys.executable, str(ROOT / "perf" / "fake_gpu.py"), "--library", str(library), "--layers", str(LAYERS)]
    script += ["--recipe", recipe, "--stage", str(stage), "--checkpointing", CASES[request.param][0]]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "perf"), *sys.path])}
    done = subprocess.run(script, env={**os.environ, **paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(done.stdout.splitlines()[-1])["stages"]
    return {**found, "case": request.param}


def test_the_host_waits_once_and_for_new_scores_once_more(counted: dict[str, Any]) -> None:
    """For the step's figures all together; in the first epoch for the reference's scores in one copy."""
    assert [len(counted[visit]["waits_at"]) for visit in ("kept", "computed")] == [1, 2], counted


def test_attention_never_falls_back(counted: dict[str, Any]) -> None:
    """Flash in the tower, the memory-efficient kernel under the mask, which no layer converts or pads."""
    for visit in ("kept", "computed"):
        assert counted[visit]["attention"].keys() == {"flash", "efficient"}


def test_kernels_are_no_more_than_there_were(counted: dict[str, Any]) -> None:
    _, kernels, products = CASES[counted["case"]]
    assert 0.9 * kernels < counted["kept"]["kernels"] < 1.02 * kernels
    assert counted["kept"]["4-bit products"] == products


def test_memory_is_what_plan_predicts(counted: dict[str, Any]) -> None:
    assert counted["kept"]["peak_gib"] == pytest.approx(counted["predicted"]["peak_gib"], rel=0.01)
    parts = counted["predicted"]["parts"]
    always = ("language model", "embeddings and output head", "vision tower and projector", "adapters")
    idle = sum(parts[part] for part in always)
    frozen = parts["adapters"] / 3 if counted["stage"] else 0  # copied when the stage begins
    assert counted["idle_gib"] == pytest.approx(idle - frozen, rel=0.01)


@pytest.mark.parametrize("visit", ["kept", "computed"])
def test_operations_are_what_plan_predicts(counted: dict[str, Any], visit: str) -> None:
    assert counted[visit]["tflop"] == pytest.approx(counted["predicted"][f"{visit}_tflop"], rel=0.01)
