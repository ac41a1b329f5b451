"""The small world that the tests of training train on."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import tiny_llava
from PIL import Image


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, eight pictures and twelve pairs."""
    folder = tmp_path_factory.mktemp("world")
    tiny_llava.build(folder / "model")
    dice = random.Random(0)
    for number in range(8):
        size = (dice.randint(20, 60), dice.randint(20, 60))
        Image.frombytes("RGB", size, dice.randbytes(3 * size[0] * size[1])).save(folder / f"{number}.png")
    words = ["a red cat", "two dogs", "the sea", "a green table near a wall", "no bird"]
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(12):
            chosen, rejected = dice.sample(words, 2)
            row = {"id": str(number), "image": f"{number % 8}.png", "prompt": "What?", "chosen": chosen}
            file.write(json.dumps({**row, "rejected": rejected}) + "\n")
    return folder
