"""Text files as people's editors and tools save them: UTF-8 with or without a mark, or UTF-16 with one.

    with opened(path, "captions") as file: ...
    words = read(path, "word list")
    unusable(head)      # "a git-LFS pointer ...": what stands in the place of many a download

Whatever a user wrote is read through here, so that a file is the same to every reader. A file that is neither is
refused by name: to guess an encoding is to read wrong words.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from minipovid.common.errors import MinipovidError

HEAD = 4096  # bytes that tell what a file is
_MARKS = {  # the longer first: UTF-32's little-endian mark begins like UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_OTHERS = {  # by their first bytes
    b"PK\x03\x04": "a spreadsheet or another zip archive; save it as CSV",
    b"\xd0\xcf\x11\xe0": "a spreadsheet of the old kind; save it as CSV",
    b"\x80": "pickled, and to read that may run any program; save it as JSON",
}


def encoding(head: bytes) -> str:
    """How a file that begins like this is decoded, its mark passed over."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8-sig")


def unusable(head: bytes) -> str | None:
    """What a file is that only stands in another's place, with the remedy; None where it begins like no such file."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a git-LFS pointer and not the file itself; run `git lfs pull` where it was cloned"
    if head.removeprefix(codecs.BOM_UTF8).lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page that was saved in the file's place; download the file again"
    return None


def no_text(head: bytes) -> str | None:
    """What a file of rows or words is instead, with the remedy; None where it may be one."""
    return unusable(head) or next((kind for start, kind in _OTHERS.items() if head.startswith(start)), None)


@contextmanager
def opened(path: Path, what: str, newline: str | None = None) -> Iterator[IO[str]]:
    """The file, decoded, as `open` gives it. What goes wrong, in the block too, is a MinipovidError that calls the file
    "The {what} {path}"."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if why := no_text(head):
            raise MinipovidError(f"The {what} {path} cannot be read: it is {why}.")
        if b"\0" in head and encoding(head) == "utf-8-sig":  # UTF-16 without its mark, or no text at all
            raise UnicodeError
        with path.open(encoding=encoding(head), newline=newline) as text:
            yield text
    except (OSError, UnicodeError) as error:
        raise unreadable(path, what, error) from None


def read(path: Path, what: str) -> str:
    """All of the file, as `opened` does it."""
    with opened(path, what) as file:
        return file.read()


def unreadable(path: Path, what: str, error: Exception) -> MinipovidError:
    """The sentence for a file that the system or the decoder gave up on."""
    why = str(error)
    if isinstance(error, UnicodeError):
        why = "it is not UTF-8 text; save it as UTF-8"
    elif isinstance(error, OSError):
        why = error.strerror or why
    return MinipovidError(f"The {what} {path} cannot be read: {why}.")
