"""One tensor of a file against what it should hold: whose rows are these, and how much of the adapter is in them?

The adapter's part is fitted, not looked for: file = base + s * adapter by least squares. s is 1 in a good file, 0 where
the adapter was forgotten, and known to a few percent even where rounding is many times larger than the adapter.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, dequantize, quantize
from gguf import GGMLQuantizationType as Kind

from minipovid.common.arrays import Floats
from minipovid.export.merge import interleave
from minipovid.verify.expected import Expected, RowSpan

# |file - expected| / |expected| of a good file, at most. Rounding a normal distribution to b bits in blocks of 32 costs
# 1.3 / (2^b - 1); the bounds below are 2.5 times that. Another model's weights are 1.4 away.
FLOAT_ERROR = {Kind.F32: 1e-5, Kind.F16: 2e-3, Kind.BF16: 6e-3}


class TensorFit(NamedTuple):
    """What became of one tensor."""

    name: str  # in the GGUF
    kind: Kind = Kind.F32
    fault: str = ""  # "": base and adapter are where they should be, the latter `share` times
    instead: str = ""  # whose rows they are
    share: float | None = None  # s; None: no adapter, or not to be told
    doubt: float = 0.0  # the standard error of s
    due: float = 1.0  # s in base + adapter when that is rounded to this type; 1 where this cannot be done here

    @property
    def is_exact(self) -> bool:
        """Is it stored in eight bits or more?"""
        return self.kind in FLOAT_ERROR or self.kind is Kind.Q8_0


def compare(tensor: Any, expected: Expected, other: Expected | None = None) -> TensorFit:
    """Compare some rows of a gguf.ReaderTensor; `other` is the same model on the other base."""
    name, kind = tensor.name, tensor.tensor_type
    shape = tuple(reversed(tensor.shape.tolist()))
    if shape != expected.shape(name):
        return TensorFit(name, kind, "other shape", str(list(shape)))
    if not is_readable(kind):
        return TensorFit(name, kind)
    spans = expected.spans(name)
    stored = np.concatenate([rows(tensor, span) for span in spans])
    base = np.concatenate([expected.base(name, span) for span in spans])
    parts = [part for span in spans if (part := expected.adapter(name, span)) is not None]
    adapter = np.concatenate(parts) if parts else np.zeros_like(base)
    share, doubt, left = fit(stored, base, adapter)
    if left > allowed(kind) * np.linalg.norm(base):
        return TensorFit(name, kind, *_instead(tensor, expected, other, spans[0]))
    return TensorFit(name, kind, share=share, doubt=doubt, due=_due(kind, base, adapter))


@cache
def is_readable(kind: Kind) -> bool:
    """Can gguf-py make numbers of this type again?"""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:  # younger than gguf-py, such as Q1_0
        return False
    return True


def rows(tensor: Any, span: RowSpan) -> Floats:
    """[rows, columns] in float32; a vector's numbers are its rows."""
    some: Floats = dequantize(tensor.data[span[0] : span[1]], tensor.tensor_type)
    return some.reshape(span[1] - span[0], -1)


def allowed(kind: Kind) -> float:
    """The relative error that rounding to this type explains."""
    bits = re.search(r"\d+", kind.name)
    return FLOAT_ERROR.get(kind) or 3.3 / (2 ** int(bits[0] if bits else 8) - 1)


def fit(stored: Floats, base: Floats, adapter: Floats) -> tuple[float | None, float, float]:
    """(s, its standard error, |stored - base - s * adapter|)."""
    rest, part = (stored - base).astype(np.float64).ravel(), adapter.astype(np.float64).ravel()
    power = float(part @ part)
    if not power:
        return None, 0.0, float(np.linalg.norm(rest))
    share = float(rest @ part) / power
    rest -= share * part
    left = float(np.linalg.norm(rest))
    return share, left / (rest.size * power) ** 0.5, left


def _due(kind: Kind, base: Floats, adapter: Floats) -> float:
    """How much of the adapter rounding leaves. Where its steps are wider than what training changed, nothing may be
    left of a base that was rounded alike; a base that was not makes rounding fair, and the share uncertain."""
    if not adapter.any():
        return 1.0
    try:
        rounded = dequantize(quantize(base + adapter, kind), kind)
    except NotImplementedError:  # K-quants are llama.cpp's alone
        return 1.0
    share, doubt, _ = fit(rounded, base, adapter)
    return min(1.0, (share or 0.0) + 4 * doubt)


def _instead(tensor: Any, expected: Expected, other: Expected | None, span: RowSpan) -> tuple[str, str]:
    """(fault, whose rows these are) of a tensor that does not hold its own."""
    name, bound = tensor.name, allowed(tensor.tensor_type)
    stored = rows(tensor, span)
    if not stored.any():
        return "empty", ""
    head = expected.head(name)
    if head and _near(interleave(stored, head), expected.merged(name, span), bound):
        return "q/k not permuted", ""
    if other is not None and _near(stored, other.merged(name, span), bound):
        return "other base", other.merge_base
    alike = [each for each in expected.names if each != name and expected.shape(each) == expected.shape(name)]
    swapped = next((each for each in alike if _near(stored, expected.merged(each, span), bound)), None)
    return ("swapped", swapped) if swapped else ("foreign", "")


def _near(stored: Floats, wanted: Floats, bound: float) -> bool:
    return bool(np.linalg.norm(stored - wanted) <= bound * np.linalg.norm(wanted))
