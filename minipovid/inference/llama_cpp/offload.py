"""How much of a model llama.cpp puts on a GPU: all layers, or as many as the memory that is free holds.

The arithmetic is of whole layers: their share of the file, and keys and values of the context. What lies beside them is
allowed for, not counted: the vision side as large as its file, buffers of the computation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from minipovid.inference.llama_cpp.libraries import devices, libraries

GIB = 2**30
BESIDE = 0.7 * GIB  # on each card: buffers of the computation, and what its driver takes
ALL = -1


class LayerSizes(NamedTuple):
    """What a text GGUF says of its layers."""

    layers: int
    weights: int  # bytes of the file
    cache_per_token: int  # bytes of keys and values, 16-bit, all layers


def automatic(model_gguf: Path, mmproj_gguf: Path | None, n_ctx: int) -> int:
    """Layers for llama.cpp's n_gpu_layers: -1 where all fit, 0 where there is no GPU or this llama.cpp uses none.

    Says on stderr, in one line, what a GPU gets.
    """
    if not libraries()[0].llama_supports_gpu_offload():
        return 0
    cards = devices()
    sizes = _sizes(model_gguf)
    free = sum(max(card.free - BESIDE, 0) for card in cards) - (mmproj_gguf.stat().st_size if mmproj_gguf else 0)
    layers = fitting(sizes, n_ctx, free)
    names = " and ".join(f"{card.name} ({card.free / GIB:.1f} GiB free)" for card in cards)
    amount = "all layers" if layers == ALL else f"{layers} of {sizes.layers} layers"
    if cards:
        print(f"{model_gguf.name}: {amount} on {names}; --n-gpu-layers sets it", file=sys.stderr)
    return layers


def fitting(sizes: LayerSizes, n_ctx: int, free: float) -> int:
    """How many layers `free` bytes hold: -1 for all, with the output head, which counts as one more."""
    each = sizes.weights / (sizes.layers + 1) + sizes.cache_per_token * n_ctx / sizes.layers
    held = max(int(free // each), 0)
    return ALL if held > sizes.layers else held


def _sizes(path: Path) -> LayerSizes:
    import gguf

    fields = gguf.GGUFReader(path).fields
    architecture = fields["general.architecture"].contents()

    def number(key: str, default: int = 0) -> int:
        field = fields.get(f"{architecture}.{key}")
        return int(field.contents()) if field else default

    layers, heads = number("block_count"), number("attention.head_count")
    width = number("embedding_length") // max(heads, 1)
    lengths = number("attention.key_length", width) + number("attention.value_length", width)
    cache = 2 * layers * number("attention.head_count_kv", heads) * lengths
    return LayerSizes(layers, path.stat().st_size, cache)
