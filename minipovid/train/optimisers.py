"""The optimisers that `train.optim` names: one AdamW, its two moments kept in four ways.

    name                bytes per weight     where
    adamw_torch         8                    on the device
    paged_adamw_32bit   8                    in pages that CUDA moves to the host's memory when the card is full
    adamw_8bit          2 + 8 per 256        on the device
    paged_adamw_8bit    2 + 8 per 256        in pages, as above

Eight bits are a table of 256 values and a float32 scale for each block of 256 weights (Dettmers et al. 2022, "8-bit
Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2); where gradients in a block differ a hundredfold,
the small ones are told coarsely. Tensors of fewer than 4,096 weights keep float32 moments there. Moments of fewer than
100,000 weights stay on the device. On a CPU there is nothing to page: paged_adamw_32bit is then adamw_torch to float
error, and paged_adamw_8bit is adamw_8bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import bitsandbytes.functional
import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from torch import Tensor, nn

from minipovid.recipe.schema import TrainSection

# One pass over weight, gradient and moments, with no temporary; on CPU 2 to 5 times as fast as torch's other two ways.
FUSED = {"cpu", "cuda", "mps", "xpu"}
BITSANDBYTES = {"adamw_8bit": AdamW8bit, "paged_adamw_32bit": PagedAdamW32bit, "paged_adamw_8bit": PagedAdamW8bit}
Page = tuple[torch.Size, torch.dtype, torch.device]


def build(train: TrainSection, weights: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser `train.optim` over `weights`: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
    weights = list(weights)
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": train.weight_decay}
    settings |= {"betas": (0.9, 0.999), "eps": 1e-8}
    if train.optim == "adamw_torch":
        fused = all(weight.device.type in FUSED for weight in weights)
        return torch.optim.AdamW(weights, **settings, fused=fused)
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # the docstring above says it
    return _ONE_WAIT[train.optim](weights, **settings)  # type: ignore[no-any-return]


def release(optimizer: torch.optim.Optimizer) -> None:
    """Forget the moments at a stage's end; pages are kept for the next one, as CUDA's are never given back."""
    for weight, state in optimizer.state.items():
        for value in state.values():
            if getattr(value, "is_paged", False):
                _OneWait.spare.setdefault((value.shape, value.dtype, weight.device), []).append(value)
    optimizer.state.clear()


class _OneWait:
    """bitsandbytes' optimisers without their wait for the GPU behind every weight: kernels keep their order anyway."""

    spare: dict[Page, list[Tensor]] = {}

    @torch.no_grad()
    def step(self: Any, closure: None = None) -> None:
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for place, group in enumerate(self.param_groups):
            for index, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                if not self.state[weight]:
                    self.init_state(group, weight, place, index)
                self.prefetch_state(weight)
                self.update_step(group, weight, place, index)
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()  # the host may read the pages

    def get_state_buffer(self: Any, weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        spare = self.spare.get((weight.shape, dtype, weight.device))
        if not spare:
            return super().get_state_buffer(weight, dtype)  # type: ignore[misc,no-any-return]
        page = spare.pop()
        bitsandbytes.functional.fill(page, 0)
        return page


_ONE_WAIT: dict[str, Any] = {name: type(own.__name__, (_OneWait, own), {}) for name, own in BITSANDBYTES.items()}
