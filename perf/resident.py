"""Memory on a CPU (Linux): what some work takes above a model that stands idle."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from minipovid.train.log import resident_gib


class Resident(NamedTuple):
    idle_gib: float
    peak_gib: float  # above that


def peak_above_idle(model: nn.Module, work: Callable[[], object]) -> Resident:
    """Resident memory of the idle model, and the most above it while `work` runs.

    What a process has once held and freed it may hold again unseen, so let a process measure one thing.
    """
    for value in model.parameters():
        value.sum()  # read from the file's pages by now, not in the first step
    gc.collect()
    idle = resident_gib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    work()
    return Resident(idle, resident_gib("VmHWM") - idle)
