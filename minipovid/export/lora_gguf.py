"""The adapter alone as a GGUF: it runs on anyone's base GGUF, and needs of the base only config.json and the tokenizer.

    llama-server -m llava-1.5-7B-Q4_K_M.gguf --mmproj mmproj.gguf --lora llava-1.5-7B-minipovid-v1.0-F16-LoRA.gguf

llama.cpp adds alpha / rank * B @ A to a product, with one alpha for the whole file (src/llama-adapter.h, get_scale) and
the rank of each pair. The scales of an adapter may differ (rsLoRA over several ranks, PEFT's alpha_pattern): alpha is
taken from the most common one, and what another scale differs by goes into its B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.export import writer
from minipovid.export.merge import interleave
from minipovid.export.quants import QUANTS
from minipovid.models.adapter import Factor
from minipovid.models.families import Family
from minipovid.models.parts import Place


def places(family: Family, config: Any, factors: Mapping[str, Factor]) -> dict[str, Place]:
    """Where each adapted weight lies in the text GGUF.

    Raises MinipovidError, with its name, for a weight that llama.cpp's adapters cannot reach.
    """
    by_name = {}
    for name in factors:
        place = family.place(name, config)
        if place is None or place.file != "text":
            raise MinipovidError(
                f"The adapter changes {name}, which is no part of the language model; a LoRA GGUF cannot hold that: "
                "export merged files, without --lora-only."
            )
        by_name[name] = place
    return by_name


def write_lora(
    path: Path,
    factors: Mapping[str, Factor],
    places: Mapping[str, Place],
    metadata: Mapping[str, Any],
    quant: str = "f16",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the adapter; `quant` is f16 or f32.

    `metadata` holds `general.architecture`, the language model's, and whatever else the file shall tell. Raises
    MinipovidError for numbers that the type cannot hold, and for rows that do not divide into the base's heads.
    """
    kind = QUANTS[quant].kind
    assert kind is not None
    alpha = common_alpha(factors)
    keys = {
        **metadata,
        "general.type": "adapter",
        "general.file_type": QUANTS[quant].file_type,
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
    }
    entries = []
    for name, factor in factors.items():
        _check(name, factor, places[name])
        gguf_name = places[name].name
        rows_a, rows_b = partial(_a, name, factor), partial(_b, name, factor, places[name].heads, alpha)
        entries.append(writer.TensorEntry(f"{gguf_name}.lora_a", factor.a.shape, kind, rows_a))
        entries.append(writer.TensorEntry(f"{gguf_name}.lora_b", factor.b.shape, kind, rows_b))
    writer.write(path, keys, entries, progress)


def common_alpha(factors: Mapping[str, Factor]) -> float:
    """The alpha = scale * rank that most factors have. Never 0: llama.cpp takes that for "no alpha", a scale of 1."""
    counts = Counter(factor.scale * factor.a.shape[0] for factor in factors.values())
    counts.pop(0.0, None)
    return float(counts.most_common(1)[0][0]) if counts else 1.0


def _a(name: str, factor: Factor) -> Iterator[Floats]:
    yield _finite(name, factor.a.rows())


def _b(name: str, factor: Factor, heads: int, alpha: float) -> Iterator[Floats]:
    """B [out, r] in GGUF order, times what this factor's scale is over the one that llama.cpp will use."""
    rows = factor.b.rows() * np.float32(factor.scale / (alpha / factor.a.shape[0]))
    yield _finite(name, interleave(rows, len(rows) // heads) if heads else rows)


def _finite(name: str, rows: Floats) -> Floats:
    if not np.isfinite(rows).all():
        raise MinipovidError(f"The adapter's {name} holds infinities or NaN; the training is broken.")
    return rows


def _check(name: str, factor: Factor, place: Place) -> None:
    """What can be known without the base's weights; llama.cpp compares widths and heights when it loads the file."""
    out = factor.b.shape[0]
    if place.heads and out % (2 * place.heads):
        raise MinipovidError(
            f"The adapter changes {out} rows of {name}, which do not divide into {place.heads} heads: it was trained "
            "on another model."
        )
