"""Some rows of a weight as the 4-bit base has them, in half a byte a number.

A 7B model's runs take 66 MiB so, where float32 took half a GiB; to make them anew for every file takes a minute each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minipovid.export.nf4 import BLOCK, Nf4Tensor
from minipovid.models.stored_tensors import StoredTensor
from minipovid.verify.spans import Floats, Span


class Nf4Runs(Nf4Tensor):
    """An Nf4Tensor that forgets all but some runs of rows; their numbers are those of the whole weight, bit for bit."""

    def __init__(self, tensor: StoredTensor, dtype: str, spans: Sequence[Span]) -> None:
        super().__init__(tensor, dtype)
        kept = [(start * self._width // BLOCK, stop * self._width // BLOCK) for start, stop in spans]
        half = BLOCK // 2
        self._packed = torch.cat([self._packed[first * half : last * half] for first, last in kept])
        self._scales = torch.cat([self._scales[first:last] for first, last in kept])
        lengths = [stop - start for start, stop in spans]
        self._places = {span: sum(lengths[:number]) for number, span in enumerate(spans)}

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) in float32; they are one of the runs."""
        at = self._places[start, stop]
        return super().rows(at, at + stop - start)
