"""Pictures inside the page: small, as data URLs. One that is missing or broken is none, and breaks nothing."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from minipovid.common.arrays import Array
from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.embedded import placed
from minipovid.images.transform import ImageTransform

SIDE = 224  # pixels of a thumbnail
_EXACT = 80  # up to this side a picture is kept as it is: JPEG would smear the few pixels that it has


def find(name: str, *roots: Path) -> Path | None:
    """The picture's file below the first of the roots that has it."""
    for root in roots:
        try:
            path = images.inside(root, placed(root, name))
        except MinipovidError:
            continue
        if path.is_file():
            return path
    return None


def thumbnail(path: Path | None, side: int = SIDE) -> str:
    """A data URL; "" where there is no picture to be had."""
    if path is None:
        return ""
    try:
        image = images.load(path)
    except MinipovidError:
        return ""
    image.thumbnail((side, side))
    return data_url(image)


def data_url(image: Image.Image) -> str:
    kind, options = ("png", {"optimize": True}) if max(image.size) <= _EXACT else ("jpeg", {"quality": 76})
    content = BytesIO()
    image.save(content, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def as_image(pixels: Array, transform: ImageTransform) -> Image.Image:
    """A model's input [3, S, S] as a picture; what lies beyond black and white is cut there, for eyes alone."""
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (transform.mean, transform.std))
    levels = np.clip(pixels.astype(np.float32) * std + mean, 0, 1) * 255
    return Image.fromarray(levels.round().astype(np.uint8).transpose(1, 2, 0))
