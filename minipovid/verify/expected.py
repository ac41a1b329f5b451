"""What a file of a pair should hold, some rows of a tensor at a time: runs of whole heads, spread over all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.export.gguf_pair import GgufPair
from minipovid.export.merge import RowReader, interleave
from minipovid.models.stored_tensors import StoredTensor

RowSpan = tuple[int, int]  # rows [start, stop)
WINDOWS, ROWS = 2, 32  # so many runs of so many rows are read of each tensor


class Expected:
    """Base and adapter behind one GGUF. Its tensors go by their names there; rows are [rows, columns] in float32."""

    def __init__(
        self, pair: GgufPair, file: Literal["text", "mmproj"], merge_base: str, scales: Mapping[str, float]
    ) -> None:
        """`scales` are the adapter's, by canonical name, as the library says that trained it."""
        self.pair, self.file, self.merge_base, self.scales = pair, file, merge_base, scales
        self.names = {place.name: name for name, place in pair.places.items() if place.file == file}
        # Files share them: 4 bits take a minute of a 7B model's time.
        self._runs: dict[tuple[str, RowSpan], RowReader] = {}

    def shape(self, name: str) -> tuple[int, ...]:
        return self.pair.base[self.names[name]].shape

    def head(self, name: str) -> int:
        """Rows of an attention head whose order llama.cpp wants changed; 0: rows stay."""
        heads = self.pair.places[self.names[name]].heads
        return self.shape(name)[0] // heads if heads else 0

    def spans(self, name: str) -> list[RowSpan]:
        """Some runs of whole heads, spread over the tensor."""
        return windows(self.shape(name)[0], self.head(name) or 1)

    def scale(self, name: str) -> float | None:
        """What multiplies B A here; None where the adapter does not touch this tensor."""
        factor = self.pair.factors.get(self.names[name])
        return None if factor is None else self.scales.get(self.names[name], factor.scale)

    def base(self, name: str, span: RowSpan) -> Floats:
        """The base as training saw it, in the file's order of rows."""
        return self.ordered(name, self._source(name, span).rows(*span).reshape(span[1] - span[0], -1))

    def adapter(self, name: str, span: RowSpan) -> Floats | None:
        """What the adapter adds to that."""
        scale = self.scale(name)
        if scale is None:
            return None
        factor = self.pair.factors[self.names[name]]
        return self.ordered(name, factor.rows(*span) * np.float32(scale / factor.scale))

    def merged(self, name: str, span: RowSpan) -> Floats:
        base, adapter = self.base(name, span), self.adapter(name, span)
        return base if adapter is None else base + adapter

    def ordered(self, name: str, rows: Floats) -> Floats:
        """Rows of whole heads as llama.cpp wants them."""
        return interleave(rows, self.head(name)) if self.head(name) else rows

    def _source(self, name: str, span: RowSpan) -> RowReader:
        """What the rows come from: the base on disk, or what is kept of it in 4 bits."""
        tensor = self.pair.base[self.names[name]]
        if self.merge_base != "nf4" or not self.pair.places[self.names[name]].in_4bit:
            return tensor
        if (name, span) not in self._runs:
            own = self.spans(name)
            spans = own if span in own else [span]  # another tensor's, when its rows are looked for here
            self._runs |= dict.fromkeys(((name, each) for each in spans), Nf4Runs(tensor, self.pair.dtype, spans))
        return self._runs[name, span]


class Nf4Runs:
    """Some rows of a weight as the 4-bit base has them, bit for bit, in half a byte a number.

    A 7B model's runs take 66 MiB so, where float32 took half a GiB; to make them anew for every file takes a minute
    each.
    """

    def __init__(self, tensor: StoredTensor, dtype: str, spans: Sequence[RowSpan]) -> None:
        import torch

        from minipovid.export.nf4 import BLOCK, Nf4Tensor

        self.nf4 = Nf4Tensor(tensor, dtype)  # forgets all but the runs
        blocks = [[row * self.nf4._width // BLOCK for row in span] for span in spans]
        half = BLOCK // 2
        self.nf4._packed = torch.cat([self.nf4._packed[first * half : last * half] for first, last in blocks])
        self.nf4._scales = torch.cat([self.nf4._scales[first:last] for first, last in blocks])
        lengths = [stop - start for start, stop in spans]
        self._places = {span: sum(lengths[:number]) for number, span in enumerate(spans)}

    def rows(self, start: int, stop: int) -> Floats:
        """Rows [start, stop) in float32; they are one of the runs."""
        at = self._places[start, stop]
        return self.nf4.rows(at, at + stop - start)


def windows(rows: int, unit: int) -> list[RowSpan]:
    """Runs of whole `unit`s, spread over the rows; all of them where there are few."""
    units, length = rows // unit, max(1, ROWS // unit)
    if units <= WINDOWS * length:
        return [(0, rows)]
    starts = [round(each * (units - length) / (WINDOWS - 1)) for each in range(WINDOWS)]
    return [(start * unit, (start + length) * unit) for start in starts]


def has_4bit(pair: GgufPair) -> bool:
    """Can the model's linear layers be had in 4 bits here? Not where a row's end is no block's end."""
    return all(pair.base[name].shape[-1] % 64 == 0 for name, place in pair.places.items() if place.in_4bit)
