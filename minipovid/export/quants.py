"""The one table of quantisations: what users type, and how each is made."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from gguf import GGMLQuantizationType as Kind

from minipovid.errors import MinipovidError


class Quant(NamedTuple):
    """One quantisation. Its label in file names is its key in capitals."""

    file_type: int  # llama.cpp's llama_ftype
    kind: Kind | None  # of matrices written here; None: llama.cpp makes it from an F16 file


QUANTS = {
    "f32": Quant(0, Kind.F32),
    "f16": Quant(1, Kind.F16),
    "bf16": Quant(32, Kind.BF16),
    "q8_0": Quant(7, Kind.Q8_0),
    "q6_k": Quant(18, None),
    "q5_k_m": Quant(17, None),
    "q4_k_m": Quant(15, None),
}


def known(names: Sequence[str]) -> list[str]:
    """The same names in lower case, each once. Raises MinipovidError, with all that are known, for another one."""
    lower = list(dict.fromkeys(name.lower() for name in names))
    for name in lower:
        if name not in QUANTS:
            raise MinipovidError(f"There is no quantisation {name!r}; known: {', '.join(QUANTS)}.")
    return lower


def kind_of(quant: str, shape: Sequence[int], full: bool) -> Kind:
    """How one tensor is stored: vectors in float32, rows that 8-bit blocks of 32 do not fit in float16."""
    kind = QUANTS[quant].kind
    if kind is None or full or len(shape) == 1:
        return Kind.F32
    return Kind.F16 if kind is Kind.Q8_0 and shape[-1] % 32 else kind


def by_llama_cpp(source: Path, target: Path, quant: str) -> None:
    """Write `target` as `quant` from an F16 GGUF. Raises MinipovidError where llama.cpp fails."""
    import llama_cpp

    hush()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = QUANTS[quant].file_type
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    if code != 0:
        raise MinipovidError(f"llama.cpp could not write {target.name} from {source.name} (code {code}).")


@cache
def hush() -> object:
    """Silence llama.cpp's own log for the life of the process; returns the callback, which must stay alive."""
    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    return silent
