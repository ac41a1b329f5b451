"""Attention over a forest, as one of transformers' attention implementations.

    dense    one call over whole rows, with the mask added to the scores
    split    two calls for every tree: the prefix by itself, which is plainly causal and needs no mask, and all answers
             with the tree's part of the mask. On LLaVA-1.5's 836 columns it computes half of the dense one's scores

Both call transformers' scaled_dot_product_attention and differ in the last digits alone. `perf/attention.py` measures
them on a device; SPLIT_FROM is what came out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from minipovid.models.tree_attention.forest import Forest

NAME = "minipovid_forest"
# Columns of a row from which on `split` is the faster, by device. On CUDA it is unmeasured and not used.
SPLIT_FROM = {"cpu": 400}


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    forest: Forest | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """[R, W, heads, D] from query, key and value [R, heads, W, D] and the forest's mask [R, 1, W, W]; without a forest
    what transformers' own `sdpa` gives. `module` is the model's attention layer."""
    if forest is None or attention_mask is None or not splits(query.shape[2], query.device.type):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    is_last = module.layer_idx == module.config.num_hidden_layers - 1
    rows: list[list[Tensor]] = [[] for _ in range(len(query))]
    for row, start, fork, end in forest.trees:
        here = slice(row, row + 1)
        q, k, v = (tensor[here, :, start:end] for tensor in (query, key, value))
        n = fork - start
        if is_last:  # of the prefix nothing but its end is read (layers.LastLayer)
            n -= 1
            prefix = query.new_zeros(1, n, *query.shape[1::2])
        else:
            prefix, _ = sdpa_attention_forward(module, q[:, :, :n], k[:, :, :n], v[:, :, :n], None, **settings)
        mask = attention_mask[here, :, start + n : end, start:end]
        answers, _ = sdpa_attention_forward(module, q[:, :, n:], k, v, mask, **settings)
        rows[row] += [prefix, answers]
    whole = [_row(pieces, query.shape[2]) for pieces in rows]
    return torch.cat(whole) if len(whole) > 1 else whole[0], None


def splits(columns: int, device: str) -> bool:
    """Are rows of so many columns computed in two calls on a "cpu" or on "cuda"?"""
    return device in SPLIT_FROM and columns >= SPLIT_FROM[device]


def _row(pieces: list[Tensor], width: int) -> Tensor:
    """One row [1, W, heads, D] of its trees' pieces, with nothing in the columns behind them."""
    first = pieces[0]
    rest = width - sum(piece.shape[1] for piece in pieces)
    return torch.cat([*pieces, first.new_zeros(1, rest, *first.shape[2:])], 1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
