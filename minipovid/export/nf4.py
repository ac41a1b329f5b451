"""The 4-bit base as QLoRA training saw it: NF4 in blocks of 64 with double quantisation (arXiv 2305.14314, section 3).

A QLoRA adapter was trained on top of these values, not of the original ones; adding it to them gives the model that was
trained and evaluated.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def round_trip(weight: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.float32]:
    """What remains of a whole weight [out, in] after NF4 and back; `dtype` is the one it was loaded in for training.

    Double quantisation takes the mean over all blocks, so part of a weight will not do.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    tensor = torch.from_numpy(weight).to(getattr(torch, dtype))
    packed, state = quantize_4bit(tensor, blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(packed, state).float().numpy()
