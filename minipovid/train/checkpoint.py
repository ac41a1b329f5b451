"""Checkpoints: everything a stopped run needs to go on bit for bit, without pickle.

    checkpoint-120/adapter_model.safetensors, adapter_config.json    the policy, in PEFT's layout
                   reference.safetensors                             the frozen adapter of later stages
                   optimizer.safetensors                             AdamW's state, "<weight>.<moment>"
                   state.json                                        where the run stood, and the log's open sums
                   SHA256SUMS                                        of all these, as `sha256sum -c` reads them

There is no random state to save: pictures, noise, crops and order are functions of the seed, the pair and the epoch.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest, finished, need_space, read_json, remove
from minipovid.recipe import run_folder

if TYPE_CHECKING:
    from minipovid.models.model import Model

SUMS = "SHA256SUMS"
REFERENCE = "reference.safetensors"


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
    """Write checkpoint-<global step> and remove all but the newest `keep`. `meter`: what the log has not told yet.

    Raises MinipovidError or OSError where the disk has no room for it; what stood there still stands then.
    """
    reference = {key: value.detach() for key, value in model.adapter("reference").items()}
    moments = _moments(optimizer)
    need_space(run, sum(value.nbytes for part in (model.adapter(), reference, moments) for value in part.values()))
    with finished(run / f"{run_folder.CHECKPOINT}{position.global_step}") as draft:
        model.save_adapter(draft)
        if reference and not _linked(run, position, draft / REFERENCE):
            save_file(reference, draft / REFERENCE)
        save_file(moments, draft / "optimizer.safetensors")
        state = {"position": asdict(position), "meter": meter, "processes": processes}
        (draft / "state.json").write_text(json.dumps(state), encoding="utf-8")
        sums = [f"{digest(path).hex()}  {path.name}\n" for path in sorted(draft.iterdir())]
        (draft / SUMS).write_text("".join(sums), encoding="utf-8")
    for old in _checkpoints(run)[:-keep]:
        remove(old)


def _linked(run: Path, position: Position, file: Path) -> bool:
    """Let `file` be the frozen adapter that the stage's last checkpoint holds, where the file system has links.

    A gigabyte at rank 128 that no step changes. What the checkpoint at a stage's beginning holds is the one before.
    """
    before = latest(run)
    if before is None or before.position.stage != position.stage or not before.position.step:
        return False
    try:
        file.hardlink_to(before.folder / REFERENCE)
    except OSError:
        return False
    return True


class Checkpoint(NamedTuple):
    """A folder, where the run stood, and what its log had not told yet."""

    folder: Path
    position: Position
    meter: Mapping[str, Any]
    processes: int  # that shared each step's pairs


def drop_damaged(run: Path) -> None:
    """Remove the newest checkpoints that are damaged, and say so, where a whole one stands before them.

    Raises MinipovidError, with nothing removed, where none does.
    """
    damaged: list[str] = []
    found = _checkpoints(run)
    while found and (damage := _damage(found[-1])):
        damaged.append(f"{found.pop()} is damaged ({damage})")
    if not damaged:
        return
    if not found:
        raise MinipovidError(
            f"No checkpoint of {run} is whole: {'; '.join(damaged)}. Put back a copy of one, or remove them to train "
            "from the beginning."
        )
    for path in _checkpoints(run)[len(found) :]:
        remove(path)
    step = read(found[-1]).position.global_step
    print(f"{'; '.join(damaged)}; training goes on from {found[-1].name}, step {step}.", file=sys.stderr)


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; nothing where it is whole. One from before SHA256SUMS must at least be read."""
    try:
        files = {"state.json", run_folder.ADAPTER_SETTINGS, run_folder.ADAPTER_WEIGHTS, "optimizer.safetensors"}
        if (folder / SUMS).is_file():
            lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
            sums = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
            if not sums.keys() >= files:
                return f"{SUMS} was cut short"
            changed = [name for name, expected in sums.items() if digest(folder / name).hex() != expected]
            return f"{changed[0]} is not as it was written" if changed else ""
        for name in sorted(files):
            if name.endswith(".safetensors"):
                with safe_open(folder / name, "pt"):
                    pass
            else:
                read_json(folder / name)
        read(folder)
    except FileNotFoundError as error:
        return f"it has no {Path(str(error.filename or error)).name}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError, MinipovidError) as error:
        return str(error).rstrip(".")
    return ""


def exists(run: Path) -> bool:
    """Is there any, whole or damaged?"""
    return bool(_checkpoints(run))


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint, if there is one."""
    found = _checkpoints(run)
    return read(found[-1]) if found else None


def read(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; its tensors are read by `restore` and `restore_optimizer`."""
    state = read_json(folder / "state.json")
    return Checkpoint(folder, Position(**state["position"]), state["meter"], state["processes"])


def restore(folder: Path, model: Model) -> None:
    """Put policy and reference back as they were."""
    model.load_adapter(folder)
    if (folder / REFERENCE).is_file():
        model.freeze_reference()
        saved = load_file(folder / REFERENCE)
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
