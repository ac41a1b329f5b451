"""The one shape that a square tower takes, made from a picture of any size exactly as llama.cpp makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

PADDING = (122, 116, 104)  # RGB; llama.cpp pads with CLIP's mean x 255, truncated, whatever the tower


@dataclass(frozen=True)
class ImageTransform:
    """One family's way from a picture to pixels; S is `size`, mean and std are per channel of RGB in [0, 1]."""

    name: ClassVar[str] = "pad_bicubic_" + "_".join(map(str, PADDING))  # of what `canvas` does, in a GGUF
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Normalised pixels [3, S, S] of an RGB picture of any size."""
        return self.normalise(self.canvas(image))

    def canvas(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The picture scaled to fit and centred on a square [S, S, 3], as llama.cpp's mtmd does it for LLaVA.

        The scale is float32 and the sides are rounded up, as there: one pixel more or less moves every patch. Rows are
        resized before columns, as there; Pillow 13 by itself begins with whichever is less work.
        """
        side = self.size
        if image.size == (side, side):
            return np.array(image)
        width, height = image.size
        scale = min(np.float32(side) / np.float32(width), np.float32(side) / np.float32(height))
        fit_width = min(int(np.ceil(np.float32(width) * scale)), side)
        fit_height = min(int(np.ceil(np.float32(height) * scale)), side)
        square = Image.new("RGB", (side, side), PADDING)
        fitted = image.resize((fit_width, height), Image.Resampling.BICUBIC)
        fitted = fitted.resize((fit_width, fit_height), Image.Resampling.BICUBIC)
        square.paste(fitted, ((side - fit_width) // 2, (side - fit_height) // 2))
        return np.array(square)

    def normalise(self, canvas: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [S, S, 3] -> float32 [3, S, S]: (x / 255 - mean) / std, every step in float32 as in llama.cpp."""
        scaled = canvas.astype(np.float32) / np.float32(255)
        normalised = (scaled - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return np.ascontiguousarray(normalised.transpose(2, 0, 1))
