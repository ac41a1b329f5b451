"""Run folders for the report's tests: scripted models that answer POPE and CHAIR over small pictures of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from minipovid.evaluate import Result, evaluate, find
from minipovid.inference.backends import Question
from minipovid.recipe import read as recipes

THINGS = ("dog", "cat", "boat", "tree", "car", "lamp")
SIDE = 48


@dataclass(frozen=True)
class Model:
    """Wrong about this share of what it is asked, and it names this share of what is there; always the same answers."""

    wrong: float = 0.0
    names: float = 1.0
    name: str = "gguf-f16"
    size: int = 2_000_000
    also_says: str = ""  # behind every description
    salt: str = ""

    concurrency: ClassVar[int] = 1

    @property
    def decoding(self) -> dict[str, Any]:
        return {}

    def identity(self) -> dict[str, Any]:
        files = {"files": [[f"m-{self.name}.gguf", self.size, 0]]} if self.name.startswith("gguf") else {}
        return {"wrong": self.wrong, "names": self.names, "says": self.also_says, "salt": self.salt, **files}

    def check(self, questions: Sequence[Question]) -> None: ...

    def close(self) -> None: ...

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        for question in questions:
            label = question.truth.get("label")
            yield self._yes(question, label) if label else self._description(question)

    def _yes(self, question: Question, label: str) -> str:
        is_right = self._draw(question.id) >= self.wrong
        return "Yes." if (label == "yes") is is_right else "No."

    def _description(self, question: Question) -> str:
        there = question.truth["objects"]
        named = [name for name in there if self._draw(question.id, name) < self.names]
        absent = [name for name in THINGS if name not in there and self._draw(question.id, name) < self.wrong]
        return " ".join(f"There is a {name}." for name in (*named, *absent)) + self.also_says

    def _draw(self, *names: str) -> float:
        """[0, 1), the same for the same names: who is wrong less often is wrong about a part of the same."""
        return int(hashlib.sha256(repr((*names, self.salt)).encode()).hexdigest()[:8], 16) / 2**32


def pictures(folder: Path, count: int = 24, side: int = SIDE) -> Path:
    """pictures.jsonl and objects.txt with noisy pictures of two or three things each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "pictures.jsonl").open("w") as file:
        for number in range(count):
            objects = [THINGS[(number + step) % len(THINGS)] for step in range(2 + number % 2)]
            file.write(json.dumps({"image": f"{number:03}.png", "objects": objects}) + "\n")
            pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / "objects.txt").write_text("\n".join(THINGS) + "\n")
    return folder / "pictures.jsonl"


def examine(run: Path, file: Path, model: Model, **pope: Any) -> list[Result]:
    options = {"pope": {"each": 2, "suffix": "", **pope}}
    return evaluate(run, find([f"pope={file}", f"chair={file}"], options), model)


def train(run: Path, steps: int = 20) -> None:
    """What training leaves in a run: the tiny world's recipe and pairs, and a log of two stages."""
    run.mkdir(parents=True, exist_ok=True)
    recipes.write(recipes.read(recipes.find("tinyworld")), run / "recipe.yaml")
    with (run / "log.jsonl").open("w") as log:
        log.write(json.dumps({"event": "data", "pairs": 7, "bad_rows": 0, "bad": []}) + "\n")
        for step in range(1, steps + 1):
            figures = {
                "loss": 0.7 - step / 100,
                "rewards/chosen": step / 50,
                "rewards/rejected": -step / 20,
                "rewards/margins": step * 0.07,
                "rewards/accuracies": 0.5 + step / 50,
                "logps/chosen": -6.0,
                "logps/rejected": -6.0 - step,
                "learning_rate": 1e-6 * step,
                "weights/changed": 0.97,
                "grad_norm": 0.5,
            }
            line = {"step": step * 10, "stage": int(step > steps // 2), "epoch": step / steps, **figures}
            log.write(json.dumps(line) + "\n")
        log.write(json.dumps({"event": "warning", "stage": 1, "warning": "The chosen answers <sink>."}) + "\n")
        log.write('{"step": 999, "lo')  # a run that was killed


def verified(run: Path) -> None:
    rows = [
        {
            "file": "trained (transformers)",
            "merge_base": "nf4",
            "MiB": "",
            "KL": 0.0,
            "agreement": 1.0,
            "verdict": "ok",
        },
        {"file": "m-F16.gguf", "merge_base": "nf4", "MiB": 1.9, "KL": 2e-7, "agreement": 0.996, "verdict": "ok"},
    ]
    told = {"ok": True, "pairs": 32, "table": rows, "causes": [], "faults": [], "notes": ["Read /home/ann/x/y.gguf."]}
    (run / "verify.json").write_text(json.dumps(told))
