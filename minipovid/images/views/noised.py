"""The noised view: the picture after k steps of a diffusion process, made once and kept on disk.

POVID (arXiv 2402.11411, section 3.2; schedule and step from the official code):

    beta_k = sigmoid(-6 .. 6)_k * (0.005 - 0.00001) + 0.00001           k = 0 .. 999
    abar_k = prod_{j <= k} (1 - beta_j)
    x_k    = sqrt(abar_k) * x + sqrt(1 - abar_k) * e,    e ~ N(0, I)

What x is, is the domain; the same k means different things in each (correlation with the clean picture at k = 500):
    normalized   the tower's own input, padding included (VCD, arXiv 2311.16922); about .84
    clamp        RGB in [0, 1] at the picture's own size, clamped before it becomes bytes; about .7
    wrap         the same without the clamp: bytes wrap modulo 256, as the official code has it; about 0
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from minipovid.common.caches import cache_folder
from minipovid.common.caches.ring import RingCache
from minipovid.images.load import digest, load
from minipovid.images.transform import ImageTransform
from minipovid.images.views import generator
from minipovid.recipe.schema import NoiseSection

Settings = NoiseSection  # a section of its own, because it is older than `views:`
Domain = Literal["normalized", "clamp", "wrap"]
STEPS = 1000
_BAND = 1 << 22  # samples noised at a time: a photograph of any size costs some tens of MiB, not gigabytes


@cache
def schedule() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """beta and abar, [1000] each, in float32 as the official code has them; torch, too, multiplies in float64."""
    ramp = np.linspace(-6, 6, STEPS, dtype=np.float32)
    sigmoid = 1 / (1 + np.exp(-ramp))
    beta = sigmoid * np.float32(0.5e-2 - 1e-5) + np.float32(1e-5)
    return beta, np.cumprod(1 - beta, dtype=np.float64).astype(np.float32)


def diffuse(x: npt.NDArray[np.float32], step: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """x after `step` steps; any shape."""
    abar = schedule()[1][step]
    keep, spread = np.sqrt(abar), np.sqrt(np.float32(1) - abar)
    result: npt.NDArray[np.float32] = keep * x + spread * rng.standard_normal(x.shape, dtype=np.float32)
    return result


def to_bytes(x: npt.NDArray[np.float32], domain: Domain) -> npt.NDArray[np.uint8]:
    """RGB in [0, 1], noised beyond it, as bytes: truncated, after a clamp or modulo 256 (-0.1 -> 231, 1.1 -> 24).

    The modulo is what torchvision's ToPILImage, mul(255).byte(), does to the official code's noised pictures.
    """
    if domain == "clamp":
        x = np.clip(x, 0, 1)
    levels: npt.NDArray[np.int32] = (x * np.float32(255)).astype(np.int32)
    return levels.astype(np.uint8)


def noised(
    image: Image.Image, transform: ImageTransform, step: int, domain: Domain, rng: np.random.Generator
) -> npt.NDArray[np.float16]:
    """The noised view [3, S, S] of an RGB picture, rounded to what the cache stores, cached or not."""
    if domain == "normalized":
        return diffuse(transform(image), step, rng).astype(np.float16)
    rgb = np.array(image)
    flat = rgb.reshape(-1)
    for start in range(0, flat.size, _BAND):
        band = flat[start : start + _BAND]
        band[:] = to_bytes(diffuse(band.astype(np.float32) / np.float32(255), step, rng), domain)
    return transform(Image.fromarray(rgb)).astype(np.float16)


def is_fresh_each_epoch(settings: Settings) -> bool:
    return settings.refresh == "epoch"


def opened(settings: Settings, transform: ImageTransform, seed: int, folder: Path | None = None) -> Noiser:
    """With the cache in `folder`, by default the user's cache folder."""
    shape = (3, transform.size, transform.size)
    cache = RingCache(folder or cache_folder(), "noise", "noised pictures", shape, settings.cache_gib)
    return Noiser(transform, settings, seed, cache)


@dataclass(frozen=True)
class Noiser:
    """The noised views of a run. Each data loader's worker may have one; the cache is shared."""

    transform: ImageTransform
    settings: Settings
    run_seed: int
    cache: RingCache

    def __call__(self, path: Path, pair_id: str, epoch: int) -> npt.NDArray[np.float16]:
        """The noised view [3, S, S] of the picture at `path`; new noise every epoch if the recipe says so.

        Raises MinipovidError as `images.load`, from the cache too where the file is gone.
        """
        epoch = epoch if is_fresh_each_epoch(self.settings) else 0

        def make() -> npt.NDArray[np.float16]:
            rng = generator(self.run_seed, pair_id, epoch, "noised")
            return noised(load(path), self.transform, self.settings.step, self.settings.domain, rng)

        return self.cache.get(self.key(path, pair_id, epoch), make)

    def key(self, path: Path, pair_id: str, epoch: int) -> bytes:
        """All that decides the pixels, 32 bytes.

        The picture goes by its content: hashing it costs less than a tenth of decoding it, a moved folder keeps its
        cache, and no clock or file system can pass an edited picture off as the old one. Other versions of numpy
        and Pillow may draw or resize otherwise.
        """
        facts = [self.transform, self.settings.step, self.settings.domain, self.run_seed, pair_id, epoch]
        versions = [np.__version__, PIL.__version__]
        return hashlib.sha256(digest(path) + repr(facts + versions).encode()).digest()
