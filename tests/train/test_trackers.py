"""Trackers: a TensorBoard file written and read back, what wandb and trackio are told, and what is not told to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.utils import LoggerType

from minipovid.common.errors import MinipovidError
from minipovid.recipe.schema import Recipe
from minipovid.train import trackers
from minipovid.train.trackers import Trackers

LINE = {"step": 10, "stage": 0, "epoch": 0.5, "loss": 0.25, "weights/changed": 1.0, "note": "text"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tree: dict[str, Any] = {
        "name": "mine",
        "model": {"path": str(tmp_path / "secret" / "model")},
        "data": {"path": str(tmp_path / "secret" / "pairs.jsonl")},
        "stages": [{"loss": {"name": "dpo", "beta": 0.5}}],
    }
    return Recipe(**tree)


def test_what_is_not_installed_is_named() -> None:
    for name in ("wandb", "trackio"):
        if name not in map(str, trackers.get_available_trackers()):
            with pytest.raises(MinipovidError, match=f"names {name}, which is not installed; `pip install {name}`"):
                Trackers([name])


def test_no_trackers_do_nothing(recipe: Recipe, tmp_path: Path) -> None:
    none = Trackers([])
    accelerator = Accelerator(**none.settings(tmp_path))
    none.start(accelerator, recipe, tmp_path)
    none.log(accelerator, LINE)
    none.finish(accelerator)
    assert list(tmp_path.iterdir()) == []


def scalars(run: Path) -> list[tuple[int, str, float]]:
    """Every number in a run's event files, and where a writer started at a step, in the order of writing."""
    found = []
    for path in sorted((run / "tensorboard" / "minipovid").glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        for event in events(path):
            if event.session_log.status:
                found.append((event.step, "start", 0.0))
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    return [each for each in found if each[0]]


def events(path: Path) -> Iterator[Any]:
    """A file of TFRecords: length (8 bytes), its check sum (4), the message, its check sum (4)."""
    message = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    data = path.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield message.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def run_once(recipe: Recipe, run: Path, line: dict[str, Any], step: int = 0) -> None:
    if "tensorboard" not in map(str, trackers.get_available_trackers()):
        pytest.skip("needs tensorboard or tensorboardX")
    ours = Trackers(["tensorboard"])
    accelerator = Accelerator(**ours.settings(run))
    ours.start(accelerator, recipe, run, step)
    ours.log(accelerator, line)
    ours.finish(accelerator)


def test_tensorboard_written_and_read_back(recipe: Recipe, tmp_path: Path) -> None:
    run_once(recipe, tmp_path, LINE)
    assert scalars(tmp_path) == [(10, "stage", 0), (10, "epoch", 0.5), (10, "loss", 0.25), (10, "weights/changed", 1)]


def test_a_resumed_run_goes_on_at_its_step(recipe: Recipe, tmp_path: Path) -> None:
    """The second start tells TensorBoard to forget what a killed run wrote from step 6 on."""
    run_once(recipe, tmp_path, {"step": 8, "loss": 0.5})
    run_once(recipe, tmp_path, {"step": 8, "loss": 0.25}, step=5)
    assert scalars(tmp_path) == [(8, "loss", 0.5), (6, "start", 0), (8, "loss", 0.25)]


class Remembering:
    """Stands for an Accelerator with trackers."""

    is_main_process = True

    def init_trackers(self, project: str, config: dict[str, Any], init_kwargs: dict[str, Any]) -> None:
        self.project, self.config, self.keywords = project, config, init_kwargs


def test_what_wandb_and_trackio_are_told(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same id at every start of a run folder, another in another one; no path, no None, only scalars."""
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: [LoggerType.WANDB, LoggerType.TRACKIO])
    ours = Trackers(["wandb", "trackio"])
    told = []
    for name in ("run", "run", "other"):
        accelerator: Any = Remembering()
        ours.start(accelerator, recipe, tmp_path / name)
        told.append(accelerator)
    first, again, other = (each.keywords["wandb"] for each in told)
    assert first == again == {"name": "mine", "id": first["id"], "resume": "allow", "dir": str(tmp_path / "run")}
    assert len(first["id"]) == 8 and other["id"] != first["id"]
    assert told[0].keywords["trackio"] == {"name": f"mine-{first['id']}", "resume": "allow"}
    config = told[0].config
    assert told[0].project == "minipovid"
    assert (config["data.path"], config["model.path"], config["stages.0.loss.beta"]) == ("pairs.jsonl", "model", 0.5)
    assert all(isinstance(value, (bool, int, float, str)) for value in config.values())
    assert not any(os.sep in str(value) for value in config.values())


def test_only_the_main_process_starts_them(recipe: Recipe, tmp_path: Path) -> None:
    accelerator: Any = SimpleNamespace(is_main_process=False)
    Trackers(["tensorboard"]).start(accelerator, recipe, tmp_path)
    assert list(tmp_path.iterdir()) == []
