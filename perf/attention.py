"""Which way through a forest's attention is the fastest on this device? Forward and backward of one layer, in ms.

    python perf/attention.py [--device cpu|cuda] [--heads 10] [--head-dim 64]

`flex` is torch's FlexAttention with the forest as a block mask; it has no backward pass on a CPU. `boolean` is what
transformers makes of a boolean mask, `dense` and `split` are minipovid's (attention.py). Interleaved rounds, medians
and the spread from the fastest to the slowest round; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.forest import Forest
from minipovid.models.tree_attention.tokens import Tokens

SHAPES = {  # name -> (pairs, prefix, answer)
    "tinyworld, 16 pairs": (16, 90, 40),
    "1 pair of 130 tokens": (1, 90, 20),
    "1 pair of 260": (1, 200, 30),
    "1 pair of 436": (1, 316, 60),
    "LLaVA-1.5, 1 pair": (1, 636, 100),
    "LLaVA-1.5, 4 pairs": (4, 636, 100),
}


class Layer(torch.nn.Module):
    """What transformers' attention functions ask of a layer."""

    is_causal, num_key_value_groups, layer_idx = True, 1, 0
    config = argparse.Namespace(num_hidden_layers=32)


def ways(
    forest: Forest, dtype: torch.dtype, device: torch.device, with_flex: bool = True
) -> dict[str, Callable[..., Tensor]]:
    """name -> attention of query, key and value [R, heads, W, D]."""
    additive = forest.mask(dtype)
    boolean = additive == 0

    def ours(split_from: int) -> Callable[..., Tensor]:
        def run(*qkv: Tensor) -> Tensor:
            with mock.patch.dict(attention.SPLIT_FROM, {device.type: split_from}):
                return attention.attend(Layer(), *qkv, additive, forest=forest)[0].transpose(1, 2)

        return run

    found: dict[str, Callable[..., Tensor]] = {
        "boolean": lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=boolean),
        "dense": ours(1 << 62),
        "split": ours(0),
    }
    if device.type == "cuda" and with_flex:
        found["flex"] = _flex(boolean)
    return found


def _flex(boolean: Tensor) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows, _, width, _ = boolean.shape
    block = create_block_mask(lambda b, h, q, k: boolean[b, 0, q, k], rows, None, width, width, boolean.device)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=block)


def milliseconds(way: Callable[..., Tensor], qkv: list[Tensor]) -> float:
    """Forward and backward, once."""
    wait = torch.cuda.synchronize if qkv[0].is_cuda else (lambda: None)
    wait()
    start = time.perf_counter()
    way(*qkv).sum().backward()
    wait()
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--heads", type=int, default=10)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-flex", action="store_true", help="without FlexAttention, which is compiled first")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    result: dict[str, dict[str, float]] = {}
    for name, (pairs, prefix, answer) in SHAPES.items():
        parts = [Tokens.padded([[1] * length] * pairs) for length in (prefix, answer, answer)]
        forest = Forest([part.to(device) for part in parts], device)
        shape = (forest.ids.shape[0], arguments.heads, forest.ids.shape[1], arguments.head_dim)
        qkv = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for _ in range(3)]
        choices = ways(forest, dtype, device, not arguments.no_flex)
        for way in choices.values():
            milliseconds(way, qkv)
        times: dict[str, list[float]] = {way: [] for way in choices}
        for _ in range(arguments.rounds):
            for way, run in choices.items():
                times[way].append(milliseconds(run, qkv))
        result[name] = {way: round(statistics.median(each), 3) for way, each in times.items()}
        spread = "  ".join(
            f"{way} {statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})" for way, each in times.items()
        )
        print(f"{name:24}{forest.ids.shape[0]:>3} x {forest.ids.shape[1]:<6}{spread}")
    print(json.dumps({"device": str(device), "threads": torch.get_num_threads(), "milliseconds": result}))


if __name__ == "__main__":
    main()
