"""Pictures: every format and mode, upright and turned, whole and broken; through images.load and images.decode.

The oracle of a whole picture is the array that it was made of (of JPEG and AVIF: what Pillow alone decodes), turned and
laid on white with numpy; of a broken one what Pillow alone says.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzzing.case import REFUSED, Case, harmed

# How the EXIF standard's table places the stored rows and columns (row 0, column 0 of the stored picture).
_TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],  # row 0 is the top, column 0 the right side
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
_MODES = {  # which modes a format keeps without loss
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "TIFF": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "RGB"],
    "GIF": ["P", "L"],
    "WEBP": ["RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "JPEG2000": ["L", "RGB"],
    "AVIF": ["RGB"],
}
_STRANGERS = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + b"4d7a" * 16
    + b"\nsize 12345\n",
    "HTML": b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>',
    "PDF": b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer << /Root 1 0 R >>\n%%EOF\n",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n%%EOF\n",
    "nothing": b"",
    "zeros": bytes(2000),
    "a zip": b"PK\x03\x04" + bytes(60),
}


def case(dice: Random, folder: Path) -> Case:
    if dice.random() < 0.12:
        name, data = dice.choice([*_STRANGERS.items(), _bomb(dice)])
        return _read(dice, folder, name, data, lambda: REFUSED, True)
    form = dice.choice(list(_MODES))
    mode = dice.choice(_MODES[form])
    image, truth = _drawn(dice, mode)
    turn = dice.randint(2, 8) if form in ("JPEG", "PNG", "WEBP", "TIFF") and dice.random() < 0.5 else 1
    if form in ("JPEG", "JPEG2000", "AVIF"):
        truth = _by_pillow(_saved(Random(0), image, form, 1))
    data = _saved(dice, image, form, turn)
    name = f"{form} {mode}" + (" turned by EXIF" if turn > 1 else "")
    if dice.random() < 0.1:
        name, data = f"{name} with a zip behind it", data + b"PK\x05\x06" + bytes(18)
    if dice.random() < 0.5:
        return _read(dice, folder, name, data, lambda: np.ascontiguousarray(_TURNS[turn](truth)), False)
    for _ in range(dice.randint(1, 3)):
        how, data = harmed(dice, data)
    return _read(dice, folder, f"{form} {mode}, {how}", data, lambda: _of_broken(data), True)


def _read(dice: Random, folder: Path, name: str, data: bytes, want: Any, may_refuse: bool) -> Case:
    from minipovid.images import load as images

    path = folder / dice.choice(["a.png", "b.jpg", "c", "ü.tif"])
    path.write_bytes(data)
    open_ = dice.choice([lambda: images.load(path), lambda: images.decode(data, "sent")])
    return Case(name, data, lambda: np.asarray(open_()), want, may_refuse, _differs)


def _differs(got: Any, want: Any) -> str:
    if got.shape != want.shape or got.dtype != np.uint8:
        return f"{got.dtype} {got.shape} for {want.shape}"
    most = int(np.abs(got.astype(int) - want.astype(int)).max(initial=0))
    return f"other colours, by more than {1 if most < 9 else 8}" if most > 1 else ""


def _drawn(dice: Random, mode: str) -> tuple[Image.Image, Any]:
    """A picture of noise, and what a viewer sees: uint8 [H, W, 3]."""
    noise = np.random.default_rng(dice.getrandbits(32))
    size = dice.randint(1, 9), dice.randint(1, 9)
    if mode == "P":
        image = Image.fromarray(noise.integers(0, 4, size, np.uint8), "P")
        palette = noise.integers(0, 256, (4, 3), np.uint8)
        image.putpalette(palette.tobytes())
        return image, palette[np.asarray(image)]
    if mode == "1":
        bits = noise.integers(0, 2, size).astype(bool)
        return Image.fromarray(bits), np.repeat(bits[..., None] * np.uint8(255), 3, 2)
    if mode == "I;16":
        samples = noise.integers(0, 1 << 16, size, np.uint16)
        return Image.fromarray(samples), np.repeat((samples // 256).astype(np.uint8)[..., None], 3, 2)
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    samples = noise.integers(0, 256, (*size, bands), np.uint8)
    image = Image.fromarray(samples[..., 0] if bands == 1 else samples, mode)
    if mode == "CMYK":
        return image, np.asarray(image.convert("RGB"))
    colours = samples[..., :3] if bands > 2 else np.repeat(samples[..., :1], 3, 2)
    if mode.endswith("A"):
        cover = samples[..., -1:].astype(float) / 255
        colours = np.round(colours * cover + 255 * (1 - cover)).astype(np.uint8)
    return image, colours


def _saved(dice: Random, image: Image.Image, form: str, turn: int) -> bytes:
    file, options = BytesIO(), dict[str, Any]()
    if turn > 1:
        exif = Image.Exif()
        exif[0x0112] = turn
        options["exif"] = exif
    if form == "WEBP":
        options |= {"lossless": True, "exact": True}
    if form == "JPEG2000":
        options["irreversible"] = False
    if form in ("GIF", "WEBP", "TIFF") and turn == 1 and dice.random() < 0.3:  # the first picture of several counts
        options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.ROTATE_180)]}
    if form == "TIFF" and image.mode != "1" and dice.random() < 0.5:
        options["compression"] = dice.choice(["tiff_lzw", "tiff_adobe_deflate"])
    image.save(file, form, **options)
    return file.getvalue()


def _by_pillow(data: bytes) -> Any:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _of_broken(data: bytes) -> Any:
    """What Pillow alone reads, upright and on white; REFUSED where it reads nothing, or what is no RGB picture."""
    from PIL import ImageOps

    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
            known = image.format in (*_MODES, "MPO")
            if not known or max(image.size) > 20_000 or image.mode in ("F", "LAB", "I"):
                return REFUSED
            try:
                upright = ImageOps.exif_transpose(image)
            except Exception:
                upright = image
            if upright.mode.startswith("I;16"):
                return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, 2)
            if not upright.has_transparency_data:
                return np.asarray(upright.convert("RGB"))
            samples = np.asarray(upright.convert("RGBA")).astype(float)
            cover = samples[..., 3:] / 255
            return np.round(samples[..., :3] * cover + 255 * (1 - cover)).astype(np.uint8)
    except Exception:  # whatever Pillow raises of broken bytes
        return REFUSED


def _bomb(dice: Random) -> tuple[str, bytes]:
    """A PNG whose head promises more pixels than anybody wants, with a little of them."""
    width, height = dice.choice([(20_001, 1), (1, 20_001), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (19_999, 19_999)])

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    return "a bomb", b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b"")
