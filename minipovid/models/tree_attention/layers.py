"""How the language model's layers are run here: the same numbers as transformers and peft give, with less work.

    fuse_lora(text, active)    W x + s B A x, added by the matrix product itself, in place. peft scales and adds what
                               comes out: two more trips through memory, and a copy where W is in 4 bits
    fuse_norms(text)           RMSNorm as one kernel each way on a GPU; transformers takes seven forward
    recompute_less(layer)      of a checkpointed layer, not the last product of all: nobody reads it again
    LastLayer(text)            of the last layer only the columns that predict a token go on: what it would make of
                               picture and prompt is read by nobody

Both leave the modules, their names and their weights as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from minipovid.models.tree_attention.forest import Forest


class ActiveAdapter:
    """Which adapter all LoRA layers add: one by its name, or none. peft's own switch walks through every module."""

    def __init__(self, name: str | None) -> None:
        self.name = name


def fuse_lora(text: nn.Module, active: ActiveAdapter) -> None:
    """Give every LoRA layer the forward pass below."""
    for module in text.modules():
        if isinstance(module, LoraLayer):
            module.frozen_last = False  # type: ignore[assignment]
            module.forward = partial(_forward, module, active)  # type: ignore[method-assign]


def _forward(layer: Any, active: ActiveAdapter, x: Tensor) -> Tensor:
    """[..., out] of x [..., in]: the frozen layer, and the active adapter on top of it."""
    name = active.name
    if name is None or layer.disable_adapters:
        return layer.base_layer(x)  # type: ignore[no-any-return]
    rows = x.flatten(0, -2)
    narrow, b, scale = layer.lora_A[name](rows), layer.lora_B[name].weight, layer.scaling[name]  # [rows, r], [out, r]
    if narrow.dtype == b.dtype:
        narrow = narrow * scale
    else:
        b = _ScaledCast.apply(b, scale, narrow.dtype)
    if layer.frozen_last:
        wide = torch.mm(narrow, b.t()).add_(layer.base_layer(rows))
    else:
        wide = layer.base_layer(rows).addmm_(narrow, b.t())  # autocast knows addmm alone, which would copy
    return wide.unflatten(0, x.shape[:-1])


class _ScaledCast(torch.autograd.Function):
    """A matrix times a number in another type, one kernel each way."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        ctx.scale, ctx.dtype = scale, matrix.dtype
        return torch.mul(matrix, scale, out=torch.empty_like(matrix, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return torch.mul(grad, ctx.scale, out=torch.empty_like(grad, dtype=ctx.dtype)), None, None


def recompute_less(layer: nn.Module) -> None:
    """A checkpointed layer is computed again up to the last tensor that the backward pass needs. In its last LoRA layer
    that is what B reads: with the frozen product behind it, that one is not computed again."""
    *_, last = [module for module in layer.modules() if isinstance(module, LoraLayer)]
    last.frozen_last = True  # type: ignore[assignment]


def fuse_norms(text: nn.Module) -> None:
    """Compute RMSNorm in one kernel where there is one. It rounds once, where transformers rounds twice: a last digit
    of bfloat16 differs. (Norms that scale by 1 + weight name their epsilon otherwise and stay as they are.)"""
    for module in text.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)  # type: ignore[method-assign]


def _rms_norm(norm: Any, x: Tensor) -> Tensor:
    if not x.is_cuda:
        return type(norm).forward(norm, x)  # type: ignore[no-any-return]
    with torch.autocast(x.device.type, enabled=False):  # it would make a float32 copy of x, and all behind it float32
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


class LastLayer:
    """Within `only(forest)` the last layer's column-wise parts see the forest's predicting columns alone."""

    def __init__(self, text: nn.Module, columnwise: Sequence[str]) -> None:
        """`columnwise`: names within a layer of the modules that compute each column by itself (families)."""
        self.forest: Forest | None = None
        layer = text.layers[-1]  # type: ignore[index,union-attr]
        for name in columnwise:
            module = layer.get_submodule(name)  # type: ignore[union-attr]
            module.register_forward_pre_hook(self._select)
            module.register_forward_hook(self._spread)

    @contextmanager
    def only(self, forest: Forest) -> Iterator[None]:
        self.forest = forest
        try:
            yield
        finally:
            self.forest = None

    def _select(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        """[R, W, ...] -> [columns that predict, ...]."""
        if self.forest is None:
            return None
        return (inputs[0].flatten(0, 1).index_select(0, self.forest.read),)

    def _spread(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        """Back to [R, W, ...], zero in all other columns."""
        if self.forest is None:
            return None
        whole = output.new_zeros(self.forest.ids.numel(), *output.shape[1:])
        return whole.index_copy(0, self.forest.read, output).unflatten(0, self.forest.ids.shape)
