"""The trackers that `train.report_to` names, beside log.jsonl: TensorBoard, Weights & Biases and Trackio.

The machinery is accelerate's; it speaks on the main process alone. Every tracker gets the numbers of each log line at
that line's step, under the project "minipovid" and the recipe's name, and the recipe as a flat table. A resumed run
goes on in the same place: under the id that the run folder keeps, and TensorBoard forgets what came after the
checkpoint.

    run/tensorboard/minipovid/events.out...    for `tensorboard --logdir RUN`
        tracker.json                           the id of this run at wandb, and the end of its name at trackio
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, read_json
from minipovid.recipe.read import flat
from minipovid.recipe.schema import Recipe

PROJECT = "minipovid"


class Trackers:
    """The trackers of one run; with no names nothing is tracked."""

    def __init__(self, names: Sequence[str]) -> None:
        """Raises MinipovidError where a tracker's package is not installed."""
        installed = {str(name) for name in get_available_trackers()}
        for name in names:
            if name not in installed:
                raise MinipovidError(
                    f"train.report_to names {name}, which is not installed; `pip install {name}`, or take it out."
                )
        self.names = list(names)

    def settings(self, run: Path) -> dict[str, Any]:
        """The keywords that Accelerator wants."""
        return {"log_with": self.names, "project_dir": run / "tensorboard"} if self.names else {}

    def start(self, accelerator: Accelerator, recipe: Recipe, run: Path, step: int = 0) -> None:
        """Open them in the run folder `run`, at the optimiser step that the run has done so far."""
        if self.names and accelerator.is_main_process:
            identity = _identity(run)
            keywords: dict[str, Any] = {
                # A file is called after the second it was made in; the suffix keeps a quick restart from replacing it.
                "tensorboard": {"purge_step": step + 1 if step else None, "filename_suffix": f".{step}"},
                "wandb": {"name": recipe.name, "id": identity, "resume": "allow", "dir": str(run)},
                "trackio": {"name": f"{recipe.name}-{identity}", "resume": "allow"},
            }
            accelerator.init_trackers(PROJECT, _scalars(recipe), keywords)

    def log(self, accelerator: Accelerator, line: Mapping[str, Any]) -> None:
        """Hand on the numbers of a line of log.jsonl."""
        numbers = {key: value for key, value in line.items() if key != "step" and isinstance(value, (int, float))}
        accelerator.log(numbers, step=line["step"])

    def finish(self, accelerator: Accelerator) -> None:
        """Close them: everything is written, or sent, when this returns. Ends a distributed run's process group."""
        accelerator.end_training()


def _identity(run: Path) -> str:
    """Eight letters and digits that stay with the run folder."""
    file = run / "tracker.json"
    if not file.is_file():
        with finished(file) as draft:
            draft.write_text(json.dumps({"id": uuid.uuid4().hex[:8]}), encoding="utf-8")
    return str(read_json(file).get("id"))


def _scalars(recipe: Recipe) -> dict[str, Any]:
    """Dotted keys. Of an absolute path only the last name: nobody else's business where things lie."""

    def shown(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value

    return {key: shown(value) for key, value in flat(recipe.model_dump()).items() if value is not None}
