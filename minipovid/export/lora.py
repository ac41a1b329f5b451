"""A LoRA adapter on disk as what it adds to each weight: scale * B @ A, by canonical tensor name, in float32.

scale is alpha / r (Hu et al. 2021, arXiv 2106.09685, section 4.1) or alpha / sqrt(r) for rsLoRA
(Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minipovid.checkpoint import StoredTensor, Tensors, read_json
from minipovid.errors import MinipovidError

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")
# What would change the weights in a way that `delta` does not compute.
_REFUSED = ["use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "target_parameters"]

_HARMLESS_INIT = [True, False, "gaussian", "eva", "orthogonal"]  # others (PiSSA, OLoRA, ...) alter the base weights


@dataclass(frozen=True)
class Factor:
    """One adapted weight: W + scale * B @ A with A [r, in] and B [out, r]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of scale * B @ A."""
        product: npt.NDArray[np.float32] = self.b.rows(start, stop) @ self.a.rows()
        product *= np.float32(self.scale)
        return product


def read(folder: Path, canonical: Callable[[str], str]) -> dict[str, Factor]:
    """Every factor of the adapter by the canonical name of the weight that it changes.

    Raises MinipovidError, naming the setting or tensor, where the adapter is more than plain LoRA.
    """
    settings = read_json(folder / SETTINGS)
    _check(settings, folder)
    halves: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in Tensors(folder / WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if not match:
            raise MinipovidError(f"The adapter {folder} holds {key}, which is no LoRA matrix; it cannot be merged.")
        halves.setdefault(match[1], {})[match[2]] = tensor
    return {canonical(f"{module}.weight"): _factor(module, pair, settings) for module, pair in halves.items()}


def sha256(folder: Path) -> str:
    """Over the weights and the settings: what the GGUF records of the adapter."""
    digest = hashlib.sha256()
    for name in (SETTINGS, WEIGHTS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _check(settings: Mapping[str, Any], folder: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise MinipovidError(f"The adapter {folder} is of type {settings.get('peft_type')}; only LORA can be merged.")
    for key in _REFUSED:
        if settings.get(key):
            raise MinipovidError(f"The adapter {folder} has {key}: {settings[key]}; only plain LoRA can be merged.")
    if settings.get("init_lora_weights", True) not in _HARMLESS_INIT:
        raise MinipovidError(
            f"The adapter {folder} began with {settings['init_lora_weights']}, which changes the base as well; "
            "only plain LoRA can be merged."
        )
    if settings.get("bias", "none") != "none":
        raise MinipovidError(f"The adapter {folder} trains biases ({settings['bias']}); only plain LoRA can be merged.")


def _factor(module: str, pair: Mapping[str, StoredTensor], settings: Mapping[str, Any]) -> Factor:
    if len(pair) != 2:
        raise MinipovidError(f"The adapter holds only lora_{next(iter(pair))} of {module}; its other half is missing.")
    rank = pair["A"].shape[0]
    alpha = _by_pattern(module, settings.get("alpha_pattern") or {}, settings["lora_alpha"])
    return Factor(pair["A"], pair["B"], alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _by_pattern(module: str, patterns: Mapping[str, float], default: float) -> float:
    """PEFT's rule: the first pattern that matches the module's name from some dot to its end."""
    matches = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matches, default)
