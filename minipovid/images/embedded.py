"""The one picture of a data set's row; one that comes inside the data file is named by its content.

    image = of(row, "images", "image")   # a path, or Embedded: "<sha256>.png", a str whose .data are the bytes
    name = Store(folder).keep(image)     # folder/<sha256>.png now holds them, byte for byte

A reader (pairs/formats) only names pictures; who wants files keeps them. A name that says the content makes all
of it safe to repeat: killed, run twice or by two runs at once, no file is ever half-written or written twice.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, Literal
from urllib.parse import unquote

from minipovid.common.data_files import Bad, is_absent, short, text
from minipovid.common.errors import MinipovidError
from minipovid.common.text_files import unusable

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

    A cell is a path, a data URL, bytes, bytes as base64, an object that holds one of these ({"bytes", "path"} of
    datasets, {"image"}, {"url"} and {"base64"} of chats), or a list of one. Raises Bad, with the column's name, for
    none, several, a web address and bytes that are no picture.
    """
    column = next((name for name in columns if has(row, name)), None)
    if column is None:
        raise Bad(f"{columns[0]} is missing; a preference about a picture needs one")
    return _in_cell(row[column], column)


def has(row: Mapping[str, Any], column: str) -> bool:
    """Whether the column holds anything."""
    return not is_absent(row.get(column)) and row[column] not in ("", [])


def _in_cell(cell: Any, column: str) -> str:
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0]
    if isinstance(cell, list):
        raise Bad(f"{column} holds {len(cell)} pictures, and a pair has one; leave the row out or split it")
    while isinstance(cell, Mapping):
        key = next((name for name in HOLDERS if cell.get(name) is not None), None)
        if key in ("bytes", "base64") and isinstance(cell[key], str):
            return _embedded(_from_base64(cell[key].rpartition(",")[2], column), column)
        cell = None if key is None else cell[key]
    if is_absent(cell):
        raise Bad(f"{column} names no picture")
    if isinstance(cell, bytes):
        return _embedded(cell, column)
    path = text({column: cell}, column)
    bare = path.lstrip()
    if bare[:5].lower() == "data:":
        return _embedded(_from_base64(bare.partition(",")[2], column), column)
    if "://" in bare[:12] and not _is_file_url(bare):
        raise Bad(f"{column} is the address {short(path)}; minipovid fetches nothing, so download it and name the file")
    return _embedded(_from_base64(path, column), column) if _is_base64(path) else path


HOLDERS = ("bytes", "base64", "image", "path", "url", "image_url")  # what an object calls the picture in it


def _is_base64(words: str) -> bool:
    """Whether a text is a picture's bytes and no path: longer than any path, or a picture at its first characters."""
    head = "".join(words[:128].split())[:64]
    if len(head) < 32 or "." in head:
        return False
    try:
        return extension(from_base64(head[:32])) is not None
    except ValueError:
        return False


def from_base64(words: str) -> bytes:
    """The bytes of base64 as browsers take it in a data URL: in lines, without padding, of either alphabet (RFC 4648,
    4 and 5), percent-encoded. Raises ValueError where it is none."""
    try:
        return base64.b64decode(words, validate=True)
    except ValueError:
        bare = "".join(unquote(words).split()).rstrip("=").translate(_ALPHABET)
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)


_ALPHABET = str.maketrans("-_", "+/")


def _from_base64(words: str, column: str) -> bytes:
    try:
        return from_base64(words)
    except ValueError as error:
        raise Bad(f"{column} is not base64: {error}") from None


def _embedded(data: bytes, column: str) -> Embedded:
    image = embedded(data)
    if image is None and (why := unusable(data)):
        raise Bad(f"{column} holds {why}")
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

    Some name it bare or with the root's own name in front (POVID's README has both), some by its absolute path. Where
    no file is called exactly so, the same path as other systems write it: with backslashes, a drive, a file:// URL,
    percent-escapes, composed or decomposed letters, white space around it.
    """
    if not os.path.isabs(name) and os.path.lexists(root / name):
        return name
    spellings = dict.fromkeys(_below(root, each) for each in _spellings(name))
    there = (found for each in spellings if (found := _there(root, each)) is not None)
    return next(there, next(iter(spellings)))


def _below(root: Path, name: str) -> str:
    if os.path.isabs(name):
        top, path = root.resolve(), Path(name).resolve()
        return path.relative_to(top).as_posix() if path.is_relative_to(top) else name
    own, steps = os.path.basename(os.path.abspath(root)), name.split("/")
    if steps[0] == own and len(steps) > 1 and not os.path.lexists(root / name):
        return "/".join(steps[1:])
    if PureWindowsPath(name).drive and own in steps:  # C:/photos/17.png, of which the folder photos came here
        return "/".join(steps[steps.index(own) + 1 :])
    return name


def _spellings(name: str) -> Iterator[str]:
    yield name
    bare = name.strip()
    if _is_file_url(bare):
        host, slash, path = bare[5:].removeprefix("//").partition("/")
        bare = unquote(slash + path if bare[5:7] == "//" and host in ("", "localhost") else host + slash + path)
        bare = bare[1:] if PureWindowsPath(bare[1:]).drive else bare  # file:///C:/photos/17.png
    for each in dict.fromkeys((bare, bare.replace("\\", "/"))):
        yield each
        yield unquote(each)


def _is_file_url(name: str) -> bool:
    return name[:5].lower() == "file:"


def _there(root: Path, name: str) -> str | None:
    """The name of the file as the disk spells its letters; None where there is none."""
    found = ""
    for step in name.split("/"):
        forms = (found + form for form in dict.fromkeys((step, *(unicodedata.normalize(f, step) for f in _FORMS))))
        there = next((each for each in forms if os.path.lexists(root / each)), None)
        if there is None:
            return None
        found = there + "/"
    return found[:-1]


_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")  # macOS writes names decomposed, most others composed
