"""Appended lines: kept at once, a torn end cut off, damage passed over."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minipovid.common.append_only import Lines, objects


def test_what_was_added_is_read_again(tmp_path: Path) -> None:
    with Lines(tmp_path / "deep" / "x.jsonl") as lines:
        assert list(lines.read()) == []
        lines.add({"a": "ü\ud800\n"})
        lines.add({"b": 2})
        assert [row for _, row in lines.read()] == [{"a": "ü\ud800\n"}, {"b": 2}]
    with Lines(tmp_path / "deep" / "x.jsonl") as lines:
        assert len(list(lines.read())) == 2


def test_a_torn_line_is_cut_off_and_what_follows_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": ')
    with Lines(file) as lines:
        assert list(lines.read()) == [(0, {"a": 1})]
        lines.add({"a": 2})
    assert file.read_bytes() == b'{"a": 1}\n{"a": 2}\n'


def test_a_line_is_found_again_by_where_it_begins(tmp_path: Path) -> None:
    """Longer than a block, between two short ones."""
    rows = [{"a": 1}, {"long": "x" * 40_000}, {"b": 2}]
    with Lines(tmp_path / "x.jsonl") as lines:
        places = [lines.add(row) for row in rows]
        assert [lines.at(place) for place in reversed(places)] == rows[::-1]
        assert list(lines.read()) == list(zip(places, rows, strict=True))


def test_damage_in_the_middle_loses_that_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n\0\0\0\n[1]\n{"a": 2}\n')
    with Lines(file) as lines:
        assert [row for _, row in lines.read()] == [{"a": 1}, {"a": 2}]


def test_a_killed_writer_loses_nothing_that_it_was_told_is_kept(tmp_path: Path) -> None:
    """The child tells each line that `add` returned from, and is killed in the middle of its work."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom minipovid.common.append_only import Lines\n"
        "lines = Lines(Path(sys.argv[1]))\n"
        "for n in range(10**6):\n    lines.add({'n': n})\n    print(n, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "x.jsonl")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    told = [int(child.stdout.readline()) for _ in range(200)]
    os.kill(child.pid, signal.SIGKILL)
    told += [int(line) for line in child.stdout.read().split("\n")[:-1] if line]
    child.wait()
    with Lines(tmp_path / "x.jsonl") as lines:
        kept = [row["n"] for _, row in lines.read()]
    assert kept == list(range(len(kept))) and kept[-1] >= told[-1]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """The file is named, and the next line, when there is room again, is whole."""
    file = tmp_path / "x.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Lines(file) as lines:
        lines.add({"a": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        try:
            with pytest.raises(OSError, match="File too large") as raised:
                lines.add({"a": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert raised.value.filename == str(file) and file.read_bytes() == b'{"a": 1}\n'
        lines.add({"a": 2})
    assert objects(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("damage", [b"\xff\x00", b"[1]", b"[" * 100_000, b'{"a": ', b""])
def test_damaged_lines_are_passed_over(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 2}\n')
    assert objects(file) == [{"a": 1}, {"a": 2}]
    with Lines(file) as lines:
        assert [row for _, row in lines.read()] == [{"a": 1}, {"a": 2}]
    assert objects(tmp_path / "none.jsonl") == []
