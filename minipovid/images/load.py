"""Pictures: found under their root, decoded without surprises, and brought into the one shape that the tower takes.

    path = inside(root, pair.image)
    pixels = transform(load(path))            # float32 [3, S, S]

The transform is llama.cpp's, pixel for pixel (scale to fit, then pad), so that training, evaluation and the exported
GGUF see the same picture. What a loss is shown instead of it stands on the shelf views/.
"""

from __future__ import annotations

import stat
import struct
import warnings
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from minipovid.common import files
from minipovid.common.errors import MinipovidError
from minipovid.common.text_files import HEAD, unusable

MAX_SIDE = 20_000  # pixels
MAX_PIXELS = 178_956_970  # where Pillow, too, takes a picture for a decompression bomb
# A closed list: Pillow also knows formats that start other programs (EPS: Ghostscript). JPEG includes phones' MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")

# What Pillow's decoders raise on bytes that make no sense.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, NotImplementedError, RuntimeError, struct.error, zlib.error),
)
_ORIENTATION = 0x0112  # EXIF tag
_TELLS_IT = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def inside(root: Path, relative: str) -> Path:
    """The resolved path of `relative` under `root`. Raises MinipovidError where it, or a link on its way, leads out."""
    place = PureWindowsPath(relative)  # knows both kinds of absolute path
    try:
        path, top = (root / relative).resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL in the name
        raise MinipovidError(f"The picture path {relative!r} cannot be followed: {error}.") from None
    if place.drive or place.root or not path.is_relative_to(top):
        raise MinipovidError(
            f"The picture {relative!r} lies outside the image folder {root}; name it relative to that folder."
        )
    return path


def load(path: Path) -> Image.Image:
    """The picture as the viewer sees it: RGB, upright by its EXIF tag, 16 bits cut to 8, transparency on white.

    Animations give their first frame. Raises MinipovidError for what is missing, empty, too large, no picture, cut
    short, or has samples that are no colours; size is judged by the header alone, before anything is decoded.
    """
    _check_file(path)
    with _file(path) as file, _open(file, path) as image:
        return _upright_rgb(image, path, MAX_PIXELS)


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """What `load` gives, of a picture that came without a file; `name` stands for it in the sentence of an error."""
    if not data:
        raise MinipovidError(f"The picture {name} is empty (0 bytes); send it again.")
    with _open(BytesIO(data), name) as image:
        return _upright_rgb(image, name, max_pixels)


def upright_rgb(image: Image.Image) -> Image.Image:
    """What `load` gives, of a picture that is already open. What `load`, `decode` and this gave comes back equal."""
    return _upright_rgb(image, getattr(image, "filename", "") or "in memory", MAX_PIXELS)


def _upright_rgb(image: Image.Image, name: Path | str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    try:
        image.load()
    except _DAMAGE as error:
        raise _damaged(name, error) from None
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:  # a tag block that makes no sense: viewers show such a picture as it lies
        turn = None
    upright = _rgb(image, name)
    upright = upright if turn is None else upright.transpose(turn)
    for key in _TELLS_IT:  # Pillow hands it on, and whoever looks again would turn the picture again
        upright.info.pop(key, None)
    return upright


def digest(path: Path) -> bytes:
    """SHA-256 of the file, 32 bytes: what caches know a picture by. Raises MinipovidError where there is no file."""
    _check_file(path)
    try:
        return files.digest(path)
    except OSError as error:
        raise MinipovidError(f"The picture {path} cannot be read: {error.strerror}.") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MinipovidError(
            f"There is no picture {path}; check the name and the image folder (data.images in the recipe)."
        ) from None
    except OSError as error:
        raise MinipovidError(f"The picture {path} cannot be read: {error.strerror}.") from None
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device might never end
        raise MinipovidError(f"{path} is not a file; an image path must name a picture.")
    if not status.st_size:
        raise MinipovidError(f"The picture {path} is empty (0 bytes); copy it again, or leave it out.")


def _file(path: Path) -> BinaryIO:
    """Not the path for Pillow: it maps files that it can open by itself, and a turned TIFF by the sides that it has
    once upright, which scrambles the samples."""
    try:
        return path.open("rb")
    except OSError as error:
        raise MinipovidError(f"The picture {path} cannot be read: {error.strerror}.") from None


def _open(source: BinaryIO, name: Path | str) -> Image.Image:
    """Reads the header only."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # below our limit it is a big photograph
            return Image.open(source, formats=_formats())
    except Image.DecompressionBombError:
        raise _bomb(name) from None
    except UnidentifiedImageError:
        source.seek(0)
        if why := unusable(source.read(HEAD)):
            raise MinipovidError(f"{name} is {why}.") from None
        raise MinipovidError(
            f"{name} is not a picture that minipovid can read ({', '.join(_formats())}); convert it to PNG or JPEG."
        ) from None
    except _DAMAGE as error:
        raise _damaged(name, error) from None


@cache
def _formats() -> tuple[str, ...]:
    """FORMATS that this Pillow was built with; it breaks on a name that it does not know."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, path: Path | str, max_pixels: int) -> None:
    width, height = image.size
    if max(width, height) > MAX_SIDE:
        raise MinipovidError(
            f"The picture {path} is {width} x {height} pixels, and a side may have at most {MAX_SIDE}; "
            "scale it down, or leave it out."
        )
    if width * height > max_pixels:  # Pillow's own limit may have been switched off by another library
        raise _bomb(path, max_pixels)


def _rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; the high byte is what Pillow itself keeps of 16-bit RGB
        samples = np.asarray(image)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise _no_colours(path, "32-bit")
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise _no_colours(path, {"F": "floating-point", "LAB": "CIELAB"}[image.mode])
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _damaged(path: Path | str, error: Exception) -> MinipovidError:
    why = " ".join(str(error).split()) or type(error).__name__
    return MinipovidError(f"The picture {path} is cut short or damaged ({why}); copy it again, or leave it out.")


def _bomb(path: Path | str, max_pixels: int = MAX_PIXELS) -> MinipovidError:
    return MinipovidError(f"The picture {path} has more than {max_pixels:,} pixels; scale it down, or leave it out.")


def _no_colours(path: Path | str, samples: str) -> MinipovidError:
    return MinipovidError(f"The picture {path} has {samples} samples; save it with 8 or 16 bits per channel.")
