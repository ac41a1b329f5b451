"""Text files of any editor: the marks that are passed over, and the sentences for what is no text."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from minipovid.common import text_files
from minipovid.common.errors import MinipovidError

WORDS = "Zwei Bäume, 猫 😀\nand a line\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_every_marked_encoding_is_one_text(mark: bytes, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(mark + WORDS.replace("\n", "\r\n").encode(encoding))
    assert text_files.read(tmp_path / "a.txt", "captions") == WORDS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (WORDS[:10].encode("cp1252"), "it is not UTF-8 text; save it as UTF-8"),
        (b"x" * 10_000 + b"\xe9", "it is not UTF-8 text; save it as UTF-8"),
        (WORDS.encode("utf-16-le"), "it is not UTF-8 text; save it as UTF-8"),  # without its mark
        (codecs.BOM_UTF16_LE + b"a\0b", "it is not UTF-8 text; save it as UTF-8"),  # cut in the middle
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
            "it is a git-LFS pointer and not the file itself; run `git lfs pull` where it was cloned",
        ),
        (
            b"\n<!DOCTYPE html>\n<html>",
            "it is a web page that was saved in the file's place; download the file again",
        ),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_text_is_refused_by_name(content: bytes | None, why: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(MinipovidError) as caught:
        text_files.read(tmp_path / "a.txt", "captions")
    assert str(caught.value) == f"The captions {tmp_path}/a.txt cannot be read: {why}."
