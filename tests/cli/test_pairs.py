"""`minipovid pairs`: the commands on small real files, with their exit codes and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from minipovid.cli import main

ANSWER = "A red cup stands to the left of a large dog on the table."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LLaVA file of three good answers, and pictures; no teacher in the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MINIPOVID_TEACHER_API_KEY", "MINIPOVID_TEACHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows = []
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        talk = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"{ANSWER} {number}."}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    return tmp_path


def pairs(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pairs", *map(str, arguments)], prog_name="minipovid")


def last(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_made_by_rule_then_checked_and_taken_to_trl(folder: Path) -> None:
    made = last(pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--json"))
    assert (made["rows"], made["pairs"], made["failures"], made["left"]) == (3, 3, 0, 0)
    again = pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--estimate", "--json")
    assert last(again)["finished"] == 3
    file = folder / "made" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["chosen"] != row["rejected"] and row["spans"] for row in rows)
    exported = pairs("export", file, "--to", folder / "trl.parquet", "--images", folder)
    assert exported.stdout == f"{folder / 'trl.parquet'}\n"
    imported = last(pairs("import", folder / "trl.parquet", "--to", folder / "back", "--json"))
    assert (imported["format"], imported["pairs"], imported["pictures"]) == ("trl", 3, 3)
    checked = pairs("check", folder / "back" / "pairs.jsonl", "--json")
    assert json.loads(checked.stdout.splitlines()[-1])


def test_a_teacher_must_be_named_and_reachable(folder: Path) -> None:
    where = [folder / "llava.json", "--to", folder / "made"]
    unnamed = pairs("make", *where)
    assert unnamed.exit_code == 2 and "name it with --model, or take --maker rule" in unnamed.stderr
    priceless = pairs("make", *where, "--model", "gpt", "--max-cost", "1")
    assert priceless.exit_code == 2 and "--max-cost needs --price" in priceless.stderr
    keyless = pairs("make", *where, "--model", "gpt")
    assert keyless.exit_code == 2 and "MINIPOVID_TEACHER" in keyless.stderr
    assert "Traceback" not in unnamed.stderr + priceless.stderr + keyless.stderr


def test_what_cannot_be_read_is_one_sentence(folder: Path) -> None:
    for command in (["import", folder / "none.json", "--to", folder / "x"], ["check", folder / "none.json"]):
        refused = pairs(*command)
        assert refused.exit_code == 2 and len(refused.stderr.strip().splitlines()) == 1
