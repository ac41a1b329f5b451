"""Pictures in the cells of data files: base64 as tools write it, objects that hold them, paths as other systems do."""

from __future__ import annotations

import base64
import io
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from minipovid.common.data_files import Bad
from minipovid.common.errors import MinipovidError
from minipovid.images import embedded
from minipovid.images.load import inside, load


def png() -> bytes:
    """91 bytes or so, whose base64 has both letters that the two alphabets write differently, and padding."""
    for shade in range(256):
        file = io.BytesIO()
        Image.new("RGB", (5, 3), (shade, 7 * shade % 256, 200)).save(file, "PNG")
        words = base64.b64encode(file.getvalue()).decode()
        if "+" in words and "/" in words and words.endswith("="):
            return file.getvalue()
    raise AssertionError("no such picture")


PNG = png()
WORDS = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()
SPELLINGS = {
    "plain": WORDS,
    "without padding": WORDS.rstrip("="),
    "lines of MIME": base64.encodebytes(PNG).decode(),
    "lines of Windows": base64.encodebytes(PNG).decode().replace("\n", "\r\n"),
    "spaces": " " + " ".join(WORDS[at : at + 40] for at in range(0, len(WORDS), 40)) + " ",
    "url-safe": URL_SAFE,
    "url-safe, without padding, in lines": "\n".join((URL_SAFE[:60], URL_SAFE[60:].rstrip("="))),
}
ESCAPED = quote(WORDS, safe="")


@pytest.mark.parametrize("words", SPELLINGS.values(), ids=SPELLINGS)
def test_base64_is_read_as_it_comes(words: str) -> None:
    """Bare, in data URLs, and in the objects of data sets and chats."""
    assert embedded.from_base64(words) == PNG
    heads = ("data:image/png;base64,", "DATA:IMAGE/PNG;CHARSET=UTF-8;BASE64,", " data:;base64,")
    urls = [head + words for head in heads]
    objects = [{"bytes": words}, {"base64": urls[0]}, {"type": "image_url", "image_url": {"url": urls[1]}}]
    cells: list[Any] = [words, *urls, *objects, [{"image": words}]]
    for cell in cells:
        image = embedded.of({"image": cell}, "image")
        assert isinstance(image, embedded.Embedded) and image.data == PNG


def test_a_data_url_may_be_percent_encoded() -> None:
    image = embedded.of({"image": f"data:image/png;base64,{ESCAPED}"}, "image")
    assert "%2F" in ESCAPED and isinstance(image, embedded.Embedded) and image.data == PNG


@pytest.mark.parametrize("words", ["%%%%", WORDS[:-3] + "=" + WORDS[-3:], "é" * 40, WORDS[:41], "iVBO*Rw0KGgo"])
def test_what_is_no_base64_is_refused(words: str) -> None:
    with pytest.raises(Bad, match="^image is not base64: |^image holds .* bytes that are no picture"):
        embedded.of({"image": f"data:image/png;base64,{words}"}, "image")


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (None, "image is missing; a preference about a picture needs one"),
        (float("nan"), "image is missing; a preference about a picture needs one"),
        ([None], "image names no picture"),
        ({"type": "image"}, "image names no picture"),
        (
            {"image_url": {"url": "https://x.org/a.png"}},
            "image is the address 'https://x.org/a.png'; minipovid f",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "image holds a git-LFS pointer and not the file itself; ru",
        ),
    ],
)
def test_a_cell_without_a_picture_gets_its_sentence(cell: Any, why: str) -> None:
    with pytest.raises(Bad) as caught:
        embedded.of({"image": cell}, "image")
    assert str(caught.value).startswith(why)


# --- paths ---

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Bäume/Löwe é.png") for form in ("NFC", "NFD"))  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name in ("17.png", "deep/my cat.png", DECOMPOSED, "100%25.png", "a\\b.png", "Löwe.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(PNG)
    return root


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("17.png", "17.png"),
        (" 17.png\n", "17.png"),
        ("photos/17.png", "17.png"),
        ("photos\\17.png", "17.png"),
        ("deep\\my cat.png", "deep/my cat.png"),
        (".\\deep\\my%20cat.png", "./deep/my cat.png"),
        ("deep/my%20cat.png", "deep/my cat.png"),
        ("C:\\Users\\me\\photos\\deep\\my cat.png", "deep/my cat.png"),
        ("file:///C:/Users/me/photos/deep/my%20cat.png", "deep/my cat.png"),
        ("file://{root}/deep/my%20cat.png", "deep/my cat.png"),
        ("FILE://localhost{root}/17.png", "17.png"),
        ("file:deep/my%20cat.png", "deep/my cat.png"),
        ("{root}/deep/my%20cat.png", "deep/my cat.png"),
        (COMPOSED, DECOMPOSED),
        (COMPOSED.replace("/", "\\"), DECOMPOSED),
        (quote(COMPOSED), DECOMPOSED),
        (unicodedata.normalize("NFD", "Löwe.png"), "Löwe.png"),
        ("100%25.png", "100%25.png"),  # a file that is called so is never taken for another
        ("a\\b.png", "a\\b.png"),
    ],
)
def test_a_picture_is_found_as_other_systems_write_its_path(name: str, found: str, photos: Path) -> None:
    name = name.replace("{root}", str(photos))
    assert embedded.placed(photos, embedded.of({"image": name}, "image")) == found
    assert load(inside(photos, found)).size == (5, 3)


@pytest.mark.parametrize(
    "name",
    [
        "..\\secret.png",
        "%2e%2e/secret.png",
        "file://{root}/../secret.png",
        "C:\\secret.png",
        "deep%2F..%2F../secret.png",
    ],
)
def test_no_spelling_leads_outside(name: str, photos: Path) -> None:
    with pytest.raises(MinipovidError, match="lies outside the image folder .*; name it relative to that folder"):
        inside(photos, embedded.placed(photos, name.replace("{root}", str(photos))))


ABSENT = ["18.png", "deep\\18.png", "my cat.png", "x" * 5000, "a\0b", "\ud800.png", "photos\\18.png"]


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_stays_as_it_is_written(name: str, photos: Path) -> None:
    assert embedded.placed(photos, name) == name
