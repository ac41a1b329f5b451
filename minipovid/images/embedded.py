"""The one picture of a data set's row; one that comes inside the data file is named by its content.

    image = of(row, "images", "image")   # a path, or Embedded: "<sha256>.png", a str whose .data are the bytes
    name = Store(folder).keep(image)     # folder/<sha256>.png now holds them, byte for byte

A reader (pairs/formats) only names pictures; who wants files keeps them. A name that says the content makes all
of it safe to repeat: killed, run twice or by two runs at once, no file is ever half-written or written twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, short, text
from minipovid.common.errors import MinipovidError

# A file's first bytes and what it is called then. These are the formats of images.FORMATS.
_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"\0\0\0\x0cjP  \r\n", ".jp2"),
    (b"\xff\x4f\xff\x51", ".j2k"),
)


class Embedded(str):
    """The name of a picture that lay inside the data file, "<sha256>.<extension>"; the bytes ride along."""

    __slots__ = ("data",)
    data: bytes


def embedded(data: bytes) -> Embedded | None:
    """The picture in these bytes, or None where they begin like no picture that minipovid reads."""
    suffix = extension(data)
    if suffix is None:
        return None
    image = Embedded(hashlib.sha256(data).hexdigest() + suffix)
    image.data = data
    return image


def extension(data: bytes) -> str | None:
    """What kind of picture begins like this: ".png", whatever a data set calls it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    if data[:1] == b"P" and data[1:2] in (b"1", b"2", b"3", b"4", b"5", b"6") and data[2:3].isspace():
        return ".ppm"
    return next((suffix for start, suffix in _SIGNATURES if data.startswith(start)), None)


def of(row: Mapping[str, Any], *columns: str) -> str:
    """The one picture of a row, in the first of the columns that holds any: a path as it is written, or Embedded.

    A cell is a path, a data URL, bytes, bytes as base64, datasets' {"bytes", "path"}, or a list of one of these. Raises
    Bad, with the column's name, for none, several, a web address and bytes that are no picture.
    """
    column = next((name for name in columns if row.get(name) not in (None, "", [])), None)
    if column is None:
        raise Bad(f"{columns[0]} is missing; a preference about a picture needs one")
    return _in_cell(row[column], column)


def _in_cell(cell: Any, column: str) -> str:
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, list):
        raise Bad(f"{column} holds {len(cell)} pictures, and a pair has one; leave the row out or split it")
    if isinstance(cell, Mapping):
        content = cell.get("bytes")
        cell = content if content is not None else cell.get("path", cell.get("url"))
        if isinstance(content, str):
            return _embedded(_from_base64(content, column), column)
    if cell is None:
        raise Bad(f"{column} names no picture")
    if isinstance(cell, bytes):
        return _embedded(cell, column)
    path = text({column: cell}, column)
    if path.startswith("data:"):
        return _embedded(_from_base64(path.partition(",")[2], column), column)
    if "://" in path[:12]:
        raise Bad(f"{column} is the address {short(path)}; minipovid fetches nothing, so download it and name the file")
    return _embedded(_from_base64(path, column), column) if _is_base64(path) else path


def _is_base64(words: str) -> bool:
    """Whether a text is a picture's bytes and no path: longer than any path, or a picture at its first characters."""
    if len(words) < 32 or "." in words[:64]:
        return False
    try:
        return extension(base64.b64decode(words[:32], validate=True)) is not None
    except binascii.Error:
        return False


def _from_base64(words: str, column: str) -> bytes:
    try:
        return base64.b64decode(words, validate=True)
    except ValueError as error:
        raise Bad(f"{column} is not base64: {error}") from None


def _embedded(data: bytes, column: str) -> Embedded:
    image = embedded(data)
    if image is None:
        raise Bad(f"{column} holds {len(data)} bytes that are no picture ({short(data[:16])})")
    return image


class Store:
    """A folder of pictures named by their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, image: Embedded) -> str:
        """The plain name of the picture, whose file now stands in the folder."""
        path = self.folder / image
        if not _stands(path, len(image.data)):
            # Not files.finished: two runs may keep one picture at once, and its drafts would share a name.
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=".", suffix=".draft", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(image.data)
                os.chmod(draft, 0o644)
                os.replace(draft, path)
            except BaseException as error:
                Path(draft).unlink(missing_ok=True)
                if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                    error.filename = str(path)  # a full disk names none
                raise
        return str(image)

    def adopt(self, source: Path) -> str:
        """The name of a picture that is a file already and now stands in the folder too: by a hard link, or a copy.

        Raises MinipovidError where the file is no picture.
        """
        data = source.read_bytes()
        image = embedded(data)
        if image is None:
            raise MinipovidError(f"{source} is not a picture that minipovid can read; convert it to PNG or JPEG.")
        path = self.folder / image
        if not _stands(path, len(data)):
            self.folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            try:
                os.link(source, path)
            except OSError:  # another disk, or one that knows no links
                return self.keep(image)
        return str(image)


def _stands(path: Path, size: int) -> bool:
    """Whether the file is there and whole; its name vouches for its content."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def placed(root: Path, name: str) -> str:
    """A picture's path as data sets write it, relative to `root` where it lies inside.

    Some name it bare or with the root's own name in front (POVID's README has both), some by its absolute path.
    """
    if os.path.isabs(name):
        top, path = root.resolve(), Path(name).resolve()
        return path.relative_to(top).as_posix() if path.is_relative_to(top) else name
    folder, slash, rest = name.partition("/")
    doubled = slash and folder == root.name and not (root / name).exists()
    return rest if doubled else name
