"""What the tests of training share: a recipe on a small world, and the lines of its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from minipovid.recipe import read as recipes
from minipovid.recipe import schema

STAGES = [
    {"loss": {"name": "dpo", "beta": 0.5}, "epochs": 1},
    {"loss": {"name": "povid", "beta": 0.5}, "epochs": 2},
]


def a_recipe(world: Path, path: Path, **changes: Any) -> schema.Recipe:
    tree: dict[str, Any] = {
        "name": "test",
        "model": {"path": str(world / "model")},
        "lora": {"r": 4, "alpha": 8},
        "data": {"path": str(world / "pairs.jsonl"), "max_length": 128, "held_out": 0},
        "stages": STAGES,
        "train": {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "logging_steps": 2, "save_steps": 3},
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        if key:
            tree[section] = {**tree[section], key: value}
        else:
            tree[section] = value
    path.write_text(yaml.safe_dump(tree))
    return recipes.read(path)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
