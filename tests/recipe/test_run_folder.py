"""What is no run folder is told in one sentence that fits, in every command that takes one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from minipovid.cli import main

FILE = "{0} is a file; name a run folder, which `minipovid train` makes"
ABSENT = "There is no folder {0}; name a run folder, which `minipovid train` makes."


def a_file(path: Path) -> Path:
    path.write_text("x")
    return path


def gguf_files(path: Path) -> Path:
    path.mkdir()
    (path / "m-F16.gguf").write_bytes(b"GGUF")
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "{run}", "p.png", "What?"],
        ["chat", "{run}"],
        ["serve", "{run}"],
        ["eval", "{run}", "pope=q.jsonl"],
        ["export", "{run}"],
        ["verify", "{run}"],
        ["report", "{run}"],
    ],
    ids=lambda command: command[0],
)
def test_each_command_says_it(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.png").touch()
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "p.png", "text": "Is it?", "label": "no"}\n')
    cases: dict[str, tuple[Callable[[Path], Path], str]] = {
        "absent": (lambda path: path, ABSENT),
        "notes.txt": (a_file, f"{FILE}."),
        "m.gguf": (a_file, f"{FILE}, or to ask it the folder of this file and its mmproj."),
    }
    if command[0] in ("export", "verify", "report"):
        cases["files"] = (
            gguf_files,
            "{0} is no run folder: it holds GGUF files and no recipe.yaml. `minipovid ask`, `chat`, `serve` and `eval` "
            "take such a folder; the other commands need the one that `minipovid train` made.",
        )
    for name, (make, sentence) in cases.items():
        run = make(tmp_path / name)
        told = CliRunner().invoke(main, [each.format(run=run) for each in command], catch_exceptions=False)
        assert (told.exit_code, told.stderr) == (2, sentence.format(run) + "\n")


def test_scores_and_training_find_no_place_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.png").touch()
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "image": "p.png", "text": "Is it?", "label": "no"}\n')
    (tmp_path / "a.jsonl").write_text('{"question_id": 1, "answer": "no"}\n')
    run = a_file(tmp_path / "notes.txt")
    for command in (
        ["eval", run, "pope=q.jsonl", "--predictions", "a.jsonl"],
        ["train", "tinyworld", "--out", run],
    ):
        told = CliRunner().invoke(main, list(map(str, command)), catch_exceptions=False)
        assert (told.exit_code, told.stderr.splitlines()[-1]) == (2, f"{FILE}.".format(run))
        assert run.read_text() == "x"
