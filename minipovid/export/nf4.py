"""The 4-bit base as QLoRA training saw it: NF4 in blocks of 64 with double quantisation (arXiv 2305.14314, section 3).

A QLoRA adapter was trained on top of these values, not of the original ones; adding it to them gives the model that was
trained and evaluated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from bitsandbytes import functional as bnb

from minipovid.common.errors import MinipovidError
from minipovid.models.stored_tensors import StoredTensor

BLOCK = 64  # numbers that share a scale
CHUNK = 2**18  # numbers that are quantised at a time


class Nf4Tensor:
    """A weight after NF4 and back, bit for bit as bitsandbytes holds it; it keeps half a byte per number in memory.

    Double quantisation needs the mean of all scales, so the whole weight is read once before the first row is known.
    `dtype` is the one that the weight was loaded in for training. Raises MinipovidError for rows of odd width.
    """

    def __init__(self, tensor: StoredTensor, dtype: str) -> None:
        self.shape, self.size, self.dtype = tensor.shape, tensor.size, getattr(torch, dtype)
        if self._width % BLOCK:  # blocks run across rows: bitsandbytes on a CPU dequantises them wrongly
            raise MinipovidError(
                f"{tensor.name} has rows of {self._width}, which is no multiple of {BLOCK}: its 4-bit values cannot be "
                f"had on a CPU; export with merge_base original."
            )
        step = max(1, CHUNK // self._width)
        self._packed = torch.empty(self.size // 2, dtype=torch.uint8)
        scales = torch.empty(self.size // BLOCK)
        for start in range(0, self.shape[0], step):
            codes, largest = quantise(torch.from_numpy(tensor.rows(start, start + step)).to(self.dtype))
            first = start * self._width
            self._packed[first // 2 :][: len(codes)] = codes
            scales[first // BLOCK :][: len(largest)] = largest
        self._scales = _double_quantise(scales)

    @property
    def _width(self) -> int:
        return self.size // self.shape[0]

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows [start, stop) in float32."""
        first, last = start * self._width // BLOCK, stop * self._width // BLOCK
        state = bnb.QuantState(
            absmax=self._scales[first:last],
            shape=torch.Size([stop - start, self._width]),
            code=bnb.get_4bit_type("nf4", device="cpu"),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )
        packed = self._packed[first * BLOCK // 2 : last * BLOCK // 2]
        rows: npt.NDArray[np.float32] = bnb.dequantize_4bit(packed[:, None], state).float().numpy()
        return rows


def quantise(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 4-bit codes a byte, and each block's largest size: bitsandbytes' `quantize_4bit` in a quarter of its time.

    A code is the number of midpoints between neighbouring values of NF4 that lie below the scaled number.
    """
    blocks = rows.float().view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    scaled = blocks * (1.0 / largest.clamp(min=1e-38))[:, None]  # what bitsandbytes takes for a block of zeros
    values = bnb.get_4bit_type("nf4", device="cpu")
    codes = torch.zeros(scaled.shape, dtype=torch.uint8)
    for midpoint in ((values[1:] + values[:-1]) / 2).tolist():
        codes += scaled > midpoint
    pairs = codes.view(-1, 2)
    return pairs[:, 0] << 4 | pairs[:, 1], largest


def _double_quantise(scales: torch.Tensor) -> torch.Tensor:
    """The scales after 8 bits and back, in blocks of 256 around their mean."""
    offset = scales.mean()
    codes, state = bnb.quantize_blockwise(scales - offset, blocksize=256)
    return bnb.dequantize_blockwise(codes, state) + offset
