"""mDPO's dispreferred picture (arXiv 2406.11839): a small piece of it, scaled back to its size."""

from __future__ import annotations

import numpy as np
from PIL import Image


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """mDPO's dispreferred picture: a piece of 1-20 % of the area, scaled back to the picture's own size.

    Paper (arXiv 2406.11839): 0-20 %; the official code, followed here, draws area in 1-20 % and the log of the aspect
    ratio in log 3/4 .. log 4/3, both uniformly. A piece that would stick out is cut to the picture.
    """
    width, height = image.size
    area = rng.uniform(0.01, 0.20) * width * height
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
    piece_width = min(max(round(np.sqrt(area * ratio)), 1), width)
    piece_height = min(max(round(np.sqrt(area / ratio)), 1), height)
    left = int(rng.integers(width - piece_width + 1))
    top = int(rng.integers(height - piece_height + 1))
    box = (left, top, left + piece_width, top + piece_height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
