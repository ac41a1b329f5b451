"""perf/gpu.py, which proves the step on a real card, runs from its first part to its last on toy shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_has_its_figures(tmp_path: Path) -> None:
    """On a CPU no waits, no peaks: all else stands in the file."""
    script = [sys.executable, str(ROOT / "perf" / "gpu.py"), "--out", str(tmp_path / "out"), "--dry-run"]
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        [*script, "--work", str(tmp_path / "work")], env={**os.environ, **paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert list(parts) == ["weights", "card", "recipe24", "recipe8", "rate", "trl", "eval"]
    assert not any("failed" in found or "skipped" in found for found in parts.values()), parts
    stages = [stage for part in ("recipe24", "recipe8") for stage in parts[part]["stages"].values()]
    assert len(stages) == 4
    for stage in stages:
        assert stage["s_step"] > 0 and stage["s_step_first_epoch"] > 0 and stage["kernels"] > 100
    assert set(parts["card"]["attention_ms"]["LLaVA-1.5, 1 pair"]) == {"boolean", "dense", "split"}
    assert parts["eval"]["8 at once, tokens/s"] > 0
    assert not (tmp_path / "work").exists()
