"""mDPO's dispreferred picture (arXiv 2406.11839): a small piece of it, scaled back to its size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from minipovid.images.transform import ImageTransform
from minipovid.images.views import Spoiled


@dataclass(frozen=True)
class Settings:
    """None: the piece is drawn as the official code draws it."""


def is_fresh_each_epoch(settings: Settings) -> bool:
    return True


def opened(settings: Settings, transform: ImageTransform, seed: int) -> Spoiled:
    return Spoiled("cropped", crop, transform, seed, is_fresh=True)


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A piece of 1-20 % of the area, scaled back to the picture's own size.

    Paper: 0-20 %; the official code, followed here, draws area in 1-20 % and the log of the aspect ratio in
    log 3/4 .. log 4/3, both uniformly. A piece that would stick out is cut to the picture.
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
