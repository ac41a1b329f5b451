"""Checkpoints: everything a stopped run needs to go on bit for bit, without pickle.

    checkpoint-120/adapter_model.safetensors, adapter_config.json    the policy, in PEFT's layout
                   reference.safetensors                             the frozen adapter of later stages
                   optimizer.safetensors                             AdamW's state, "<weight>.<moment>"
                   state.json                                        where the run stood, and the log's open sums

There is no random state to save: pictures, noise, crops and order are functions of the seed, the pair and the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, remove
from minipovid.recipe import run_folder

if TYPE_CHECKING:
    from minipovid.models.model import Model


@dataclass(frozen=True)
class Position:
    """Where a run stands: optimiser steps done in this stage, and in the whole run."""

    stage: int = 0
    step: int = 0
    global_step: int = 0

    def after_step(self) -> Position:
        return replace(self, step=self.step + 1, global_step=self.global_step + 1)

    def next_stage(self) -> Position:
        return replace(self, stage=self.stage + 1, step=0)


def save(
    run: Path,
    model: Model,
    optimizer: torch.optim.Optimizer,
    position: Position,
    meter: Mapping[str, Any],
    keep: int,
    processes: int = 1,
) -> None:
    """Write checkpoint-<global step> and remove all but the newest `keep`. `meter`: what the log has not told yet."""
    with finished(run / f"{run_folder.CHECKPOINT}{position.global_step}") as draft:
        model.save_adapter(draft)
        reference = {key: value.detach() for key, value in model.adapter("reference").items()}
        if reference:
            save_file(reference, draft / "reference.safetensors")
        save_file(_moments(optimizer), draft / "optimizer.safetensors")
        state = {"position": asdict(position), "meter": meter, "processes": processes}
        (draft / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in _checkpoints(run)[:-keep]:
        remove(old)


class Checkpoint(NamedTuple):
    """A folder, where the run stood, and what its log had not told yet."""

    folder: Path
    position: Position
    meter: Mapping[str, Any]
    processes: int  # that shared each step's pairs


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint, if there is one."""
    found = _checkpoints(run)
    return read(found[-1]) if found else None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read by `restore` and `restore_optimizer`."""
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return Checkpoint(folder, Position(**state["position"]), state["meter"], state["processes"])


def restore(folder: Path, model: Model) -> None:
    """Put policy and reference back as they were."""
    model.load_adapter(folder)
    if (folder / "reference.safetensors").is_file():
        model.freeze_reference()
        saved = load_file(folder / "reference.safetensors")
        with torch.no_grad():
            for key, value in model.adapter("reference").items():
                value.copy_(saved[key])


def restore_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the moments back; the hyperparameters are the recipe's. `optimizer` is one that `optimisers.build` made.

    Raises MinipovidError where bitsandbytes now keeps its moments in another form than when they were saved.
    """
    saved: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, _, moment = key.partition(".")
        saved.setdefault(int(index), {})[moment] = value
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
    else:
        _refill(optimizer, saved, folder)


def _refill(optimizer: Any, saved: Mapping[int, Mapping[str, torch.Tensor]], folder: Path) -> None:
    """Let bitsandbytes lay out each weight's state anew, and write the saved values into it.

    Its own load_state_dict would move paged moments onto the card, where they would stay.
    """
    (group,) = optimizer.param_groups
    for index in saved:
        optimizer.init_state(group, group["params"][index], 0, index)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the card clears pages that the host writes to below
    for index, values in saved.items():
        state = optimizer.state[group["params"][index]]
        if _form(state) != _form(values):
            raise MinipovidError(
                f"{folder} holds optimiser moments in a form that the installed bitsandbytes does not use; install the "
                f"version that wrote them, or train again into another --out."
            )
        for name, value in values.items():
            if isinstance(state[name], torch.Tensor):
                state[name].copy_(value)
            else:
                state[name] = int(value)


def _form(state: Mapping[str, Any]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    """Names, types and shapes."""
    tensors = {name: torch.as_tensor(value) for name, value in state.items()}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The state of every weight that has had a step; bitsandbytes' step counts become 0-d tensors.

    The tables of its 8-bit numbers are shared by all weights; safetensors wants tensors that share no memory.
    """
    (group,) = optimizer.param_groups
    return {
        f"{index}.{name}": value.clone() if name.startswith("qmap") else torch.as_tensor(value)
        for index, weight in enumerate(group["params"])
        for name, value in optimizer.state.get(weight, {}).items()
    }


def _checkpoints(run: Path) -> list[Path]:
    """Oldest first."""
    paths = run.glob(f"{run_folder.CHECKPOINT}*")
    steps = {path: path.name.removeprefix(run_folder.CHECKPOINT) for path in paths}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: int(steps[path]))
