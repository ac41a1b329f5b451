"""A loaded model that computes in float32, whatever it was loaded in: the trained side must not bring its own noise.

A random model 256 wide that computes in bfloat16 is a KL of 0.001 away from itself in float32, as much as a 16-bit file
may lose; with the rounding below left out, a good one is 0.000006 away. So the sheet says what base and adapter are,
not in which precision training computed. Matrices of the language model stay as small as they are stored, NF4 among
them, and are widened one at a time while they are used. All else (embeddings, head, norms, tower) is widened for good:
about 1 GiB more beside a 7B model.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from minipovid.models.model import Model
from minipovid.models.stored_tensors import StoredTensor

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def widen(model: Model, base: Mapping[str, StoredTensor]) -> None:
    """Let a model compute in float32 from now on.

    `base` are its weights as they are stored, by canonical name. They take the place of those that loading rounded;
    4-bit weights stay, for these are what training saw and what the files hold.
    """
    text = model.family.text_model(model.base)
    matrices = {module for module in text.modules() if isinstance(module, nn.Linear) and module is not model.head}
    for name, module in model.base.named_modules():
        for key, value in module.named_parameters(recurse=False):
            stored = base.get(model.family.canonical(f"{name}.{key}".replace(".base_layer.", ".")))
            if stored is not None and value.is_floating_point():
                rows = torch.from_numpy(stored.rows())
                value.data = rows.to(value.device, DTYPES[stored.dtype] if module in matrices else torch.float32)
        if module in matrices:
            module.forward = MethodType(_forward, module)
        else:
            for value in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                value.data = value.data.float() if value.is_floating_point() else value.data


def _forward(self: Any, x: Tensor) -> Tensor:
    """[..., out] of x [..., in], float32. 4-bit weights go through the type that training loaded them in, as there."""
    weight: Any = self.weight
    if isinstance(self, Linear4bit):
        weight = dequantize_4bit(weight.data, weight.quant_state)
    return F.linear(x, weight.float(), None if self.bias is None else self.bias.float())
