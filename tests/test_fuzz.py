"""What users bring, in spellings and damages drawn anew: perf/fuzz.py finds nothing in a few hundred of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[1] / "perf" / "fuzz.py"


@pytest.mark.slow
def test_a_few_hundred_inputs_are_read_rightly_or_refused() -> None:
    told = subprocess.run([sys.executable, FUZZ, "--small"], capture_output=True, text=True, check=False).stdout
    found = json.loads(told.splitlines()[-1])
    assert found == {"inputs": 300, "tracebacks": 0, "hangs": 0, "disagreements": 0}, told
