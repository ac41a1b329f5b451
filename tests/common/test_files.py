"""Files that appear when they are finished, whose errors name them, and folders that one process writes to."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone, finished, read_json


def test_a_refusal_of_the_system_names_the_file_and_not_its_draft(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, finished(tmp_path / "a") as draft:
        (draft / "deep" / "b").read_text()
    assert raised.value.filename == str(tmp_path / "a" / "deep" / "b")


def test_a_refusal_that_a_library_in_rust_tells_is_one_of_the_system(tmp_path: Path) -> None:
    """safetensors raises an error of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised, finished(tmp_path / "a") as draft:
            save_file({"x": np.zeros(1000)}, draft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())


HOLD = """
import sys, time
from pathlib import Path
from minipovid.common.files import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_no_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(MinipovidError, match=f"Another process is writing to {tmp_path}; "), alone(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with alone(tmp_path):
        pass


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"[" * 100_000, "is nested more than 100 deep"), (b"{", "cannot be read as JSON"), (b"[]", "no")],
)
def test_what_is_no_json_object_is_a_sentence(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MinipovidError, match=why):
        read_json(tmp_path / "a.json")
