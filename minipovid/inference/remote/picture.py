"""How a picture travels to the teacher: scaled down, without its metadata, as a JPEG or PNG in a data URL.

The file is read when the request is sent, and no earlier: who is answered from the cache decodes nothing.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from math import ceil
from pathlib import Path

from PIL import Image

from minipovid.images import load as images

MAX_SIDE = 768  # pixels; the short side that tiled teachers scale a larger picture to
QUALITY = 90  # of the JPEG
TILE = 512  # pixels
TILE_TOKENS, BASE_TOKENS = 170, 85


@dataclass(frozen=True)
class Picture:
    """A picture file, to be sent with its longer side at most `max_side` pixels; `lossless` as PNG, three times as big.

    A teacher sees well enough through a JPEG; a model that is examined shall see what the others see.
    """

    path: Path
    max_side: int = MAX_SIDE
    lossless: bool = False

    @cached_property
    def name(self) -> str:
        """What the cache knows it by: SHA-256 of the file, and the size it is sent in. Raises MinipovidError."""
        return f"{images.digest(self.path).hex()}-{self.max_side}{'-png' if self.lossless else ''}"

    def url(self) -> str:
        """A data URL. The encoder writes pixels only: no EXIF, no place where the photograph was taken.

        Raises MinipovidError for what is no picture.
        """
        image = images.load(self.path)
        image.thumbnail((self.max_side, self.max_side), Image.Resampling.BICUBIC)
        file = BytesIO()
        kind = "png" if self.lossless else "jpeg"
        image.save(file, kind, **({} if self.lossless else {"quality": QUALITY}))
        return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode("ascii")

    def tokens(self) -> int:
        """An estimate: 85 and 170 for every tile of 512 pixels, as OpenAI counts for GPT-4o. LLaVA-1.5 takes 576."""
        width, height = self._size()
        scale = min(1.0, self.max_side / max(width, height))
        tiles = ceil(width * scale / TILE) * ceil(height * scale / TILE)
        return BASE_TOKENS + TILE_TOKENS * tiles

    def _size(self) -> tuple[int, int]:
        """By the header alone; a full square where it cannot be read, which the request will say properly."""
        try:
            Image.init()
            with Image.open(self.path, formats=[name for name in images.FORMATS if name in Image.OPEN]) as header:
                width, height = header.size
                return width, height
        except (OSError, ValueError, Image.DecompressionBombError):
            return self.max_side, self.max_side
