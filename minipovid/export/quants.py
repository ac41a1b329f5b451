"""The one table of quantisations: what users type, and how each is made.

Four are written here, block by block. All others are llama.cpp's own: their names are read from the installed library,
and whether one can be made, and whether it needs an importance matrix, is asked of the library, never of a list.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from minipovid.common.errors import MinipovidError

ColumnWeights = Mapping[str, npt.NDArray[np.float32]]  # tensor name -> mean square of each input column
log = logging.getLogger(__name__)


class Quant(NamedTuple):
    """One quantisation. Its label in file names is its key in capitals."""

    file_type: int  # llama.cpp's llama_ftype
    kind: Kind | None  # of matrices written here; None: llama.cpp makes it from an F16 file


WRITTEN = {"f32": Kind.F32, "f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}
# For --help, best first; in bits per weight of a 7B Llama.
HELP = {
    "f32": "32 bits: every number as it was computed",
    "f16": "16 bits: the model as it was trained, for all purposes",
    "bf16": "16 bits, for models with numbers beyond float16's 65,504",
    "q8_0": "8.5 bits: next to no loss",
    "q6_k": "6.6 bits: a small loss",
    "q5_k_m": "5.7 bits: the smallest that is advised where all of the adapter's effect shall be kept",
    "q4_k_m": "4.8 bits: a loss that can be measured; check it with `minipovid verify`",
    "iq4_xs": "4.3 bits; give it an importance matrix",
    "q3_k_m": "3.9 bits: the last resort; give it an importance matrix",
}


class _Table(Mapping[str, Quant]):
    """Name -> Quant. The library is loaded when somebody first looks."""

    def __getitem__(self, name: str) -> Quant:
        return _quants()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_quants())

    def __len__(self) -> int:
        return len(_quants())


QUANTS: Mapping[str, Quant] = _Table()


@cache
def _quants() -> dict[str, Quant]:
    """The sensible ones first, then whatever else the library has constants for."""
    import llama_cpp

    prefixes = ("LLAMA_FTYPE_ALL_", "LLAMA_FTYPE_MOSTLY_")
    types = {
        name.removeprefix(prefix).lower(): int(value)
        for name, value in vars(llama_cpp).items()
        for prefix in prefixes
        if name.startswith(prefix)
    }
    names = [name for name in HELP if name in types] + sorted(types.keys() - HELP.keys())
    return {name: Quant(types[name], WRITTEN.get(name)) for name in names}


def valid_names(names: Sequence[str]) -> list[str]:
    """The same names in lower case, each once. Raises MinipovidError, with all that are known, for another one."""
    lower = list(dict.fromkeys(name.lower() for name in names))
    for name in lower:
        if name not in QUANTS:
            nearest = get_close_matches(name, QUANTS, 1)
            hint = f" did you mean {nearest[0]}?" if nearest else ""
            raise MinipovidError(f"There is no quantisation {name!r};{hint} known: {', '.join(QUANTS)}.")
    return lower


def valid_mmproj(name: str) -> str:
    """The name in lower case. Raises MinipovidError for one that vision files are not written as."""
    quant = valid_names([name])[0]
    if quant not in WRITTEN:
        raise MinipovidError(f"The mmproj is written as one of {', '.join(WRITTEN)}, not as {quant}; take f16 or q8_0.")
    return quant


def kind_of(quant: str, shape: Sequence[int], full: bool, half: bool = False) -> Kind:
    """How one tensor is stored: vectors in float32, rows that 8-bit blocks of 32 do not fit in float16.

    `full` keeps it in float32 whatever the file's quantisation, `half` in float16 where the file's has fewer bits.
    """
    kind = QUANTS[quant].kind
    if kind is None or full or len(shape) == 1:
        return Kind.F32
    return Kind.F16 if kind is Kind.Q8_0 and (half or shape[-1] % 32) else kind


def by_llama_cpp(
    source: Path,
    target: Path,
    quant: str,
    imatrix: ColumnWeights | None = None,
    n_threads: int | None = None,
    keys: Mapping[str, str] | None = None,
) -> None:
    """Write `target` as `quant` from an F16 GGUF, weighing errors by `imatrix` where there is one.

    `keys` replace metadata of the source, at most 127 bytes each. Matrices that llama.cpp stored otherwise than the
    name says are told in the log. Raises MinipovidError, with llama.cpp's own reason, where no whole file comes of it.
    """
    if imatrix is None and needs_imatrix(quant):
        raise MinipovidError(f"{quant} needs an importance matrix; set export.imatrix, or take another quantisation.")
    reason = _quantize(source, target, QUANTS[quant].file_type, imatrix or {}, n_threads or 0, keys or {})
    if reason is not None:
        raise MinipovidError(f"llama.cpp could not write {_final(target)} as {quant} from {_final(source)} ({reason}).")
    if not _is_whole(target):
        raise MinipovidError(f"llama.cpp left {_final(target)} incomplete; look whether the disk is full.")


@cache
def needs_imatrix(quant: str) -> bool:
    """Does llama.cpp refuse to make this one without an importance matrix? Found out on a tiny model.

    Raises MinipovidError for one that it cannot make at all, though it has a name for it.
    """
    if QUANTS[quant].kind is not None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "probe.gguf", Path(folder) / "quantised.gguf"
        _write_probe(source)
        reason = _quantize(source, target, QUANTS[quant].file_type, {}, 1, {})
    if reason is not None and "imatrix" not in reason:
        raise MinipovidError(f"This llama.cpp cannot make {quant} ({reason}); take another quantisation.")
    return reason is not None


_PROBE_WIDTH = 256  # columns, so that every block size fits
_PROBE_LAYERS = 8  # llama.cpp picks other types for the first and the last eighth of the layers


def _write_probe(path: Path) -> None:
    """A model of two rows per matrix (one alone counts as a vector): all that llama.cpp looks at to choose types."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(_PROBE_LAYERS)
    writer.add_context_length(8)
    writer.add_embedding_length(_PROBE_WIDTH)
    writer.add_feed_forward_length(_PROBE_WIDTH)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(2)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    rows = np.linspace(-1, 1, 2 * _PROBE_WIDTH, dtype=np.float16).reshape(2, -1)
    for name in ("token_embd", "output", *(f"blk.{i}.{part}" for i in range(_PROBE_LAYERS) for part in parts)):
        writer.add_tensor(f"{name}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _quantize(
    source: Path, target: Path, file_type: int, imatrix: ColumnWeights, n_threads: int, keys: Mapping[str, str]
) -> str | None:
    """llama_model_quantize; None where it succeeded, else its reason."""
    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = file_type, n_threads
    rows = {name: np.ascontiguousarray(row, np.float32) for name, row in imatrix.items()}
    weights, overrides = _imatrix_data(rows), _overrides(keys)  # held until the call returns, as `rows` are
    if imatrix:
        parameters.imatrix = ctypes.cast(weights, ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    if keys:
        parameters.kv_overrides = ctypes.cast(overrides, ctypes.POINTER(llama_cpp.llama_model_kv_override))
    with _listening() as messages:
        code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(parameters))
    _tell_fallbacks(_final(target), "".join(text for level, text in messages if level == WARN))
    return None if code == 0 else _reason([text for level, text in messages if level == ERROR])


def _imatrix_data(rows: ColumnWeights) -> Any:
    """The C array of (name, numbers, how many); one without a name ends it. `rows` must outlive it."""
    import llama_cpp

    array = (llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, row) in zip(array, rows.items(), strict=False):
        entry.name, entry.size = name.encode(), row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return array


def _overrides(keys: Mapping[str, str]) -> Any:
    """The C array of metadata keys and their text; one with an empty key ends it."""
    import llama_cpp

    array = (llama_cpp.llama_model_kv_override * (len(keys) + 1))()
    for entry, (key, text) in zip(array, keys.items(), strict=False):
        entry.tag, entry.key = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR, key.encode()
        entry.value.val_str = text.encode()
    return array


WARN, ERROR = 3, 4  # GGML_LOG_LEVEL_...
_FALLBACK = re.compile(r"warning: (\S+) .*?-> falling back to +(\w+)")


@contextmanager
def _listening() -> Iterator[list[tuple[int, str]]]:
    """(level, text) of what llama.cpp says meanwhile; afterwards it talks again to whom it talked before."""
    import llama_cpp

    messages: list[tuple[int, str]] = []
    callback = llama_cpp.llama_log_callback(
        lambda level, text, _: messages.append((level, text.decode(errors="replace")))
    )
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield messages
    finally:
        llama_cpp.llama_log_set(before, data)


def _reason(errors: Sequence[str]) -> str:
    """What llama.cpp complained of, in its own words but for C++'s way to say that a file cannot be written."""
    if not errors:
        return "it gives no reason"
    reason = errors[-1].rpartition("failed to quantize: ")[2].strip(" \n.!=")
    return "the file cannot be written; the disk may be full" if "iostream" in reason else reason


def _tell_fallbacks(name: str, warnings: str) -> None:
    """Which matrices got another type because their rows are no multiple of the type's block."""
    by_kind: dict[str, list[str]] = {}
    for tensor, kind in _FALLBACK.findall(warnings):
        by_kind.setdefault(kind, []).append(tensor)
    if by_kind:
        parts = [f"{len(tensors)} as {kind} ({tensors[0]}, ...)" for kind, tensors in by_kind.items()]
        log.warning("%s: rows that are no multiple of 256 wide are stored otherwise: %s.", name, ", ".join(parts))


def _is_whole(path: Path) -> bool:
    """Is every tensor that the header names there to its last byte?"""
    try:
        gguf.GGUFReader(path)
    except (ValueError, IndexError, OSError):
        return False
    return True


def _final(path: Path) -> str:
    """The name that a draft will take (common/files)."""
    return path.name.removeprefix(".").removesuffix(".draft")
