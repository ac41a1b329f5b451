"""Does the file see pictures as training does? If not: which known fault makes just these features of them?

Two made-up pictures, one wide and one tall, go through llama.cpp. What the language model gets to see of them [N, H] is
compared with what transformers' tower says, and with what it says under each fault: another canvas, another layer, the
class token in llama.cpp's place, the projector's layers swapped. H is projected to k by a fixed random matrix, which
keeps distances to some percent and the sheet small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from minipovid.common.arrays import Array, Floats
from minipovid.images.transform import ImageTransform
from minipovid.verify.causes import Cause

TRUE = "trained"
WIDTH = 128  # k
# |features - expected| / |expected|, at most. Good files on four towers: f16 0.001, bf16 0.008, q8_0 0.022. Faults: 0.5
# to 7, but 0.045 where a tower's last layer does little; so what is expected must also be the nearest of all.
ERROR = 0.05
SENTENCES = {
    "crop": ("centre-crop instead of padding", "the picture's sides are cut off, where training pads them"),
    "stretch": ("stretched picture", "the picture is squeezed to a square, where training pads it"),
    "channels": ("swapped colours", "red and blue are exchanged"),
    "class token": (
        "class token misplaced",
        "it stands behind the patches, where the tower was trained with it in front: every patch has its neighbour's "
        "position (ggml-org/llama.cpp issue 25814), and the remedy is not at work",
    ),
    "projector": ("projector layers swapped", "the projector's second layer comes first"),
}


class PictureEncoder(Protocol):
    """Whoever sees a picture: minipovid.inference.llama_cpp.Runtime is one."""

    def embed(self, image: Image.Image) -> Floats: ...


def probes() -> list[Image.Image]:
    """A wide and a tall picture of coloured patches, the same on every machine."""
    colours = np.random.Generator(np.random.Philox(7)).integers(0, 256, (12, 18, 3), dtype=np.uint8)
    patches = np.kron(colours, np.ones((20, 20, 1), np.uint8))  # [240, 360, 3]
    return [Image.fromarray(patches), Image.fromarray(np.ascontiguousarray(patches.swapaxes(0, 1)[::-1]))]


def padded(image: Image.Image, transform: ImageTransform) -> Array:
    """As training sees it."""
    return transform.canvas(image)


def cropped(image: Image.Image, transform: ImageTransform) -> Array:
    """As CLIP's own processor does it: the shorter side fits, the middle is taken."""
    side, scale = transform.size, transform.size / min(image.size)
    fitted = image.resize([max(side, int(length * scale)) for length in image.size], Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in fitted.size)
    return np.array(fitted.crop((left, top, left + side, top + side)))


def stretched(image: Image.Image, transform: ImageTransform) -> Array:
    return np.array(image.resize((transform.size, transform.size), Image.Resampling.BICUBIC))


def swapped(image: Image.Image, transform: ImageTransform) -> Array:
    return np.ascontiguousarray(transform.canvas(image)[..., ::-1])


CANVASES: dict[str, Callable[[Image.Image, ImageTransform], Array]] = {
    "crop": cropped,
    "stretch": stretched,
    "channels": swapped,
}


def projected(features: Array) -> Array:
    """[..., H] -> [..., k], k = H where that is no more than 128."""
    hidden = features.shape[-1]
    if hidden <= WIDTH:
        return features
    matrix = np.random.Generator(np.random.Philox(hidden)).standard_normal((hidden, WIDTH), np.float32)
    product: Array = features @ (matrix / np.float32(WIDTH**0.5))
    return product


def compare(runtime: PictureEncoder, features: Mapping[str, Any], file: str) -> Cause | None:
    """What is wrong with how a runtime sees the probe pictures, by the sheet's features; `file` is the mmproj."""
    rows = np.stack([projected(runtime.embed(picture)) for picture in probes()])
    if rows.shape != features[TRUE].shape:
        shapes = [list(each.shape[1:]) for each in (rows, features[TRUE])]
        what = f"a picture becomes {shapes[0]} features, and {shapes[1]} in the trained model"
        return Cause.of(file, "mmproj of another model", what)
    errors = {name: _error(rows, expected) for name, expected in features.items()}
    best = min(errors, key=lambda name: errors[name])
    if errors[best] > ERROR:
        what = (
            f"a picture's features are off by {errors[TRUE]:.0%}, and no known fault of the model's own tower does that"
        )
        return Cause.of(file, "mmproj of another model", what)
    if best in SENTENCES:
        return Cause.of(file, *SENTENCES[best])
    what = f"the features are those behind {best} of the tower"
    return None if best == TRUE else Cause.of(file, "wrong feature layer", what)


def _error(rows: Array, expected: Array) -> float:
    """Relative, and no number that is none: a tower that overflows is like no other."""
    a, b = rows.astype(np.float64), expected.astype(np.float64)
    return float(np.nan_to_num(np.linalg.norm(a - b) / np.linalg.norm(b), nan=np.inf))
