"""What an id is, in data sets that mind no rule about it: no row is lost for it, and no two rows share one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_rows import FACTORY, POVID, RATED, RLAIF, RLHF, SWIFT, TRL

from minipovid.pairs import formats as pairs
from minipovid.pairs.pair import Pair, Seed


def as_json(folder: Path, rows: list[Any]) -> Path:
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


TOLD: list[Any] = [1, 1.0, "1", 2.0, 0.5, None, float("nan"), True, [7], {"a": 7}, "", "row 6", "\ud800x", "1"]
NAMED = ["1", "1 (row 2)", "1 (row 3)", "2", "0.5", "row 6", "row 7", "row 8", "row 9", "row 10", "row 11"]
NAMED += ["row 6 (row 12)", "x", "1 (row 14)"]


@pytest.mark.parametrize(
    ("name", "row", "key"),
    [
        ("trl", TRL, "id"),
        ("ms_swift", SWIFT, "id"),
        ("llamafactory", FACTORY, "id"),
        ("povid", POVID, "id"),
        ("rlaif_v", RLAIF, "idx"),
        ("rlhf_v", RLHF, "idx"),
    ],
)
def test_no_id_costs_a_foreign_row(name: str, row: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = as_json(tmp_path, [{**row, key: told} for told in TOLD])
    assert [pair.id for pair in pairs.reader(name).read(path) if isinstance(pair, Pair)] == NAMED


def test_no_id_costs_a_seed_or_a_rating(tmp_path: Path) -> None:
    talk = {"image": "a.png", "conversations": POVID["conversations"]}
    path = as_json(tmp_path, [{**talk, "id": told} for told in TOLD])
    assert [seed.id for seed in pairs.seeds(path, "llava") if isinstance(seed, Seed)] == NAMED
    path = as_json(tmp_path, [{**RATED, "id": told, "img_path": "a.png"} for told in TOLD])
    found = [row for row in pairs.reader("vlfeedback").read(path) if isinstance(row, Pair)]
    assert [pair.id for pair in found][:2] == ["1:1:0-1", "1:2:0-1"] and len(found) == len(TOLD)
