"""What torch itself counts of a step: the independent side of `minipovid plan`'s arithmetic, in tests and in perf/."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # the counter knows CUDA's kernels alone
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flop(step: Callable[[], object]) -> float:
    """By torch's FLOP counter, which knows the formulas of attention, but not the names of the CPU's kernels, and of
    `addmm` not the one that adds in place."""
    formulas: dict[Any, Any] = {
        _FLASH: lambda query, key, value, *_, **__: sdpa_flop(query, key, value),
        _FLASH_BACKWARD: lambda grad, query, key, value, *_, **__: sdpa_backward_flop(grad, query, key, value),
    }
    formulas[torch.ops.aten.addmm_] = lambda _, one, other, **__: 2 * one[0] * one[1] * other[1]
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step()
    return float(counter.get_total_flops())


def saved_bytes(step: Callable[[], object], weights: Iterable[torch.Tensor]) -> float:
    """What autograd saves, each storage once, weights left out.

    Under checkpointing the layers' own tensors are not seen: they are made again later.
    """
    own = {value.untyped_storage().data_ptr() for value in weights}
    seen: dict[int, torch.Tensor] = {}  # kept alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return float(sum(t.untyped_storage().nbytes() for address, t in seen.items() if address not in own))
