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
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from minipovid.common.errors import MinipovidError
from minipovid.common.files import read_json
from minipovid.models.stored_tensors import StoredTensor, Tensors
from minipovid.recipe import run_folder

ROWS = 1024  # of a matrix in memory at a time while it is hashed
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")
# Settings that change nothing in scale * B @ A, or that are read below; any other that is set is refused by its name.
_PLAIN = {
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config", "qalora_group_size"),
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "megatron_core", "runtime_config"),
}
_HARMLESS_INIT = [True, False, "gaussian", "eva", "orthogonal"]  # others (PiSSA, OLoRA, ...) alter the base weights


@dataclass(frozen=True)
class Factor:
    """One adapted weight: W + scale * B @ A with A [r, in] and B [out, r]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    def rows(self, start: int, stop: int, a: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of scale * B @ A; who asks for more than one block reads A once and hands it in as `a`."""
        b = torch.from_numpy(self.b.rows(start, stop))
        product = b @ torch.from_numpy(self.a.rows() if a is None else a)
        return product.mul_(self.scale).numpy()


def read(folder: Path, canonical: Callable[[str], str]) -> dict[str, Factor]:
    """Every factor of the adapter by the canonical name of the weight that it changes.

    Raises MinipovidError, naming the setting or tensor, where the adapter is more than plain LoRA.
    """
    settings = read_json(folder / run_folder.ADAPTER_SETTINGS)
    _check(settings, folder)
    halves: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in Tensors(folder / run_folder.ADAPTER_WEIGHTS).items():
        module, half = matrix(key) or ("", "")
        if not module:
            raise MinipovidError(f"The adapter {folder} holds {key}, which is no LoRA matrix; it cannot be merged.")
        halves.setdefault(module, {})[half] = tensor
    if not halves:
        raise MinipovidError(f"The adapter {folder} holds no LoRA matrix; save it again where it was trained.")
    factors = {canonical(f"{module}.weight"): _factor(module, pair, settings) for module, pair in halves.items()}
    if len(factors) != len(halves):
        raise MinipovidError(f"The adapter {folder} holds some matrices twice, under two spellings; train it again.")
    return dict(sorted(factors.items()))


def matrix(key: str) -> tuple[str, Literal["A", "B"]] | None:
    """(module, which half) of a stored tensor's name, as PEFT and others spell it; None for what is no LoRA matrix."""
    match = _KEY.fullmatch(key)
    return (match[1], "A" if match[2] == "A" else "B") if match else None


def sha256(folder: Path, canonical: Callable[[str], str] = str) -> str:
    """Over what the adapter does to a model: canonical names, shapes, numbers and scales. The GGUF records it.

    So it is the same for every spelling of the names, order of the tensors and type of float that holds them exactly.
    """
    digest = hashlib.sha256()
    for name, factor in read(folder, canonical).items():
        for half in (factor.a, factor.b):
            digest.update(f"{name} {half.shape} {factor.scale!r}\n".encode())
            for start in range(0, half.shape[0], ROWS):
                digest.update(half.rows(start, start + ROWS).data)
    return digest.hexdigest()


def _check(settings: Mapping[str, Any], folder: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise MinipovidError(f"The adapter {folder} is of type {settings.get('peft_type')}; only LORA can be merged.")
    for key in ("r", "lora_alpha"):
        if not isinstance(settings.get(key), (int, float)):
            raise MinipovidError(f"The adapter {folder} says {key}: {settings.get(key)}, but that must be a number.")
    for key, value in settings.items():
        if value and key not in _PLAIN:
            raise MinipovidError(f"The adapter {folder} has {key}: {value}; only plain LoRA can be merged.")
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
    rank = _by_pattern(module, settings.get("rank_pattern") or {}, settings["r"])
    if (pair["A"].shape[0], pair["B"].shape[-1]) != (rank, rank):
        raise MinipovidError(
            f"The adapter's settings give {module} rank {rank}, but its matrices are {list(pair['A'].shape)} and "
            f"{list(pair['B'].shape)}; it cannot be merged."
        )
    alpha = _by_pattern(module, settings.get("alpha_pattern") or {}, settings["lora_alpha"])
    return Factor(pair["A"], pair["B"], alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))


def _by_pattern(module: str, patterns: Mapping[str, float], default: float) -> float:
    """PEFT's rule: the first pattern that matches the module's name from some dot to its end, or, where the pattern
    begins with ^, from its beginning."""
    whole = {pattern: pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})$" for pattern in patterns}
    return next((patterns[pattern] for pattern, rule in whole.items() if re.match(rule, module)), default)
