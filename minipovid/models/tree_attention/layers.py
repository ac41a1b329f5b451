"""How the language model's layers are run here: the same numbers as transformers and peft give, with less work.

    fuse_lora(text)    W x + s B A x, scaled in the narrow middle and added by the matrix product itself. peft scales
                       and adds what comes out: two more trips through memory, and a copy where W is in 4 bits
    LastLayer(text)    of the last layer only the columns that predict a token go on: what it would make of picture and
                       prompt is read by nobody

Both leave the modules, their names and their weights as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

if TYPE_CHECKING:
    from minipovid.models.tree_attention.forest import Forest


def fuse_lora(text: nn.Module) -> None:
    """Give every LoRA layer the forward pass below."""
    for module in text.modules():
        if isinstance(module, LoraLayer):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(self: Any, x: Tensor) -> Tensor:
    """[..., out] of x [..., in]: the frozen layer, and the active adapter on top of it."""
    base: Tensor = self.base_layer(x)
    if self.disable_adapters:
        return base
    (name,) = self.active_adapters
    narrow = self.lora_A[name](x) * self.scaling[name]  # [..., r]
    wide = torch.addmm(base.flatten(0, -2), narrow.flatten(0, -2), self.lora_B[name].weight.t())
    return wide.view_as(base)


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
