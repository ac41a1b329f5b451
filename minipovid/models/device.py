"""What torch computes on: which device, whether it can do what training asks, and how an error says that it is full."""

from __future__ import annotations

import os
import sys

import torch

from minipovid.common.errors import MinipovidError
from minipovid.recipe.schema import ModelSection

NEEDED = (8, 0)  # the first compute capability with bfloat16: GeForce RTX 30, A100
# Rows differ in width from pair to pair; blocks that can grow leave half the gaps between them.
ALLOCATOR = "expandable_segments:True"


def prepare_allocator() -> None:
    """Let torch's blocks of GPU memory grow, unless the user has settled that. Before torch first uses the GPU.

    The name is as old as torch 2.9; older ones read PYTORCH_CUDA_ALLOC_CONF alone. Windows has no such blocks.
    """
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    if sys.platform != "win32" and torch.version.cuda and not any(name in os.environ for name in names):
        os.environ.update(dict.fromkeys(names, ALLOCATOR))


def check_bfloat16(model: ModelSection) -> None:
    """Raise MinipovidError where this machine's GPU is to compute in bfloat16 and has no units for it.

    torch would do it all the same, many times slower, and keep all scores of attention.
    """
    if model.dtype not in ("auto", "bfloat16") or not torch.cuda.is_available():
        return
    capability = torch.cuda.get_device_capability()
    if capability < NEEDED and torch.version.hip is None:
        raise MinipovidError(
            f"The {torch.cuda.get_device_name()} (compute capability {capability[0]}.{capability[1]}) has no bfloat16, "
            f"in which training computes on a GPU: take a card of 8.0 or more (GeForce RTX 30 or newer), or set "
            f"model.dtype: float32, which takes twice the memory and several times as long (see `minipovid plan`). "
            f"Exported GGUF files answer on this card all the same."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own has a type; what CUDA, cuBLAS and a CPU's allocator raise is known by what it says."""
    text = str(error).lower()
    signs = ("out of memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in text for sign in signs)
