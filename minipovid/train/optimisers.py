"""The optimisers that `train.optim` names: one AdamW, its two moments kept in four ways.

    name                bytes per weight     where
    adamw_torch         8                    on the device
    paged_adamw_32bit   8                    in pages that CUDA moves to the host's memory when the card is full
    adamw_8bit          2 + 8 per 256        on the device
    paged_adamw_8bit    2 + 8 per 256        in pages, as above

Eight bits are a table of 256 values and a float32 scale for each block of 256 weights (Dettmers et al. 2022, "8-bit
Optimizers via Block-wise Quantization", arXiv 2110.02861, section 2); where gradients in a block differ a hundredfold,
the small ones are told coarsely. Tensors of fewer than 4,096 weights keep float32 moments there. On a CPU there is
nothing to page: paged_adamw_32bit is then adamw_torch to float error, and paged_adamw_8bit is adamw_8bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit, PagedAdamW32bit
from torch import nn

from minipovid.recipe.schema import TrainSection

# One pass over weight, gradient and moments, with no temporary; on CPU 2 to 5 times as fast as torch's other two ways.
FUSED = {"cpu", "cuda", "mps", "xpu"}
BITSANDBYTES = {"adamw_8bit": AdamW8bit, "paged_adamw_32bit": PagedAdamW32bit, "paged_adamw_8bit": PagedAdamW8bit}


def build(train: TrainSection, weights: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """The optimiser `train.optim` over `weights`: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2."""
    weights = list(weights)
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": train.weight_decay}
    settings |= {"betas": (0.9, 0.999), "eps": 1e-8}
    if train.optim == "adamw_torch":
        fused = all(weight.device.type in FUSED for weight in weights)
        return torch.optim.AdamW(weights, **settings, fused=fused)
    warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")  # the docstring above says it
    return BITSANDBYTES[train.optim](weights, **settings)
