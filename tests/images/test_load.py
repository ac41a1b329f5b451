"""Pictures: what is refused and how it is said, what the decoder makes of odd files, and llama.cpp's transform."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.images.load import decode, digest, inside, load
from minipovid.images.transform import ImageTransform
from minipovid.images.views import generator
from minipovid.images.views.cropped import crop

CLIP = ImageTransform(336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
Image.init()
KNOWN = "JPEG, PNG, WEBP, AVIF, GIF, BMP, TIFF, PPM, JPEG2000".replace(
    " AVIF," if "AVIF" not in Image.OPEN else "?", ""
)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that ends after its header: whoever tries to decode it says "damaged", never "too large"."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunks + struct.pack(">I", 9) + b"IDAT"


def _sentence(path: Path) -> str:
    with pytest.raises(MinipovidError) as caught:
        load(path)
    return str(caught.value)


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The file's bytes (None: no file; "dir": a folder) and the whole sentence, with {p} for the path."""
    bomb = "The picture {p} has more than 178,956,970 pixels; scale it down, or leave it out."
    table: list[tuple[bytes | str | None, str]] = [
        (None, "There is no picture {p}; check the name and the image folder (data.images in the recipe)."),
        ("dir", "{p} is not a file; an image path must name a picture."),
        ("pipe", "{p} is not a file; an image path must name a picture."),
        (b"", "The picture {p} is empty (0 bytes); copy it again, or leave it out."),
        (b"<svg>404</svg>", f"{{p}} is not a picture that minipovid can read ({KNOWN}); convert it to PNG or JPEG."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", f"{{p}} is not a picture that minipovid can read ({KNOWN}); "
         "convert it to PNG or JPEG."),
        (_png_header(100_000, 10), "The picture {p} is 100000 x 10 pixels, and a side may have at most 20000; "
         "scale it down, or leave it out."),
        (_png_header(10, 20_001), "The picture {p} is 10 x 20001 pixels, and a side may have at most 20000; "
         "scale it down, or leave it out."),
        (_png_header(100_000, 100_000), bomb),
        (_png_header(20_000, 20_000), bomb),
    ]  # fmt: skip
    for number, (content, expected) in enumerate(table):
        path = tmp_path / f"{number}.png"
        if content == "dir":
            path.mkdir()
        elif content == "pipe":
            os.mkfifo(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        assert _sentence(path) == expected.replace("{p}", str(path))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif"])
def test_a_file_cut_short_is_refused_in_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    Image.fromarray(_noise(40, 60)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    said = _sentence(path)
    assert said.startswith(f"The picture {path} is cut short or damaged (")
    assert said.endswith("); copy it again, or leave it out.")


def test_formats_that_start_other_programs_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.eps"
    Image.new("RGB", (4, 4)).save(path)
    assert _sentence(path) == (f"{path} is not a picture that minipovid can read ({KNOWN}); convert it to PNG or JPEG.")


PAGE = "a web page that was saved in the file's place; download the file again"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a git-LFS pointer and not the file itself; run `git lfs ",
        ),
        (b"\xef\xbb\xbf <!doctype HTML><html>", PAGE),
        (b"<html lang='en'>", PAGE),
    ],
)
def test_what_stands_in_a_pictures_place_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert _sentence(tmp_path / "a.jpg").startswith(f"{tmp_path}/a.jpg is {why}")
    with pytest.raises(MinipovidError, match=f"^no. 1 is {why[:14]}"):
        decode(content, "no. 1")


def test_the_size_is_refused_even_where_pillows_own_limit_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(_png_header(20_000, 20_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "has more than 178,956,970 pixels" in _sentence(path)


def test_a_big_photograph_is_no_bomb_and_warns_of_nothing(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (10_000, 9_000)).save(path)  # 90 million pixels: where Pillow begins to warn
    assert load(path).size == (10_000, 9_000)
    assert not recwarn.list


def test_a_forbidden_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played, because root, who runs many a test, may read everything."""
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert _sentence(path) == f"The picture {path} cannot be read: Permission denied."


def test_every_exif_orientation_comes_out_upright(tmp_path: Path) -> None:
    """What the eight EXIF values mean, in numpy: 6 is a camera held so that the file must be turned right by 90."""
    stored = _noise(2, 3)
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored.swapaxes(0, 1)[::-1],
        9: stored,  # no such value
    }
    for value, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = value
        for name, pixels, mode in (
            ("a.png", stored, "RGB"),
            ("a.tif", stored, "RGB"),
            ("grey.tif", stored[..., 0], "L"),
        ):
            Image.fromarray(pixels).save(tmp_path / name, exif=exif)
            right = expected if mode == "RGB" else expected[..., :1].repeat(3, 2)
            np.testing.assert_array_equal(
                np.array(load(tmp_path / name)), right, err_msg=f"{name}, orientation {value}"
            )


@pytest.mark.parametrize("kind", ["GIF", "MPO", "TIFF"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, kind: str) -> None:
    red, blue = Image.new("RGB", (8, 8), (250, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 250))
    red.save(tmp_path / "a", format=kind, save_all=True, append_images=[blue])
    shade = load(tmp_path / "a").getpixel((0, 0))
    assert isinstance(shade, tuple) and shade[0] > 240 and shade[2] < 10


def test_a_broken_tag_block_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.fromarray(_noise(8, 9)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00no tags at all")
    assert load(tmp_path / "a.jpg").size == (9, 8)


def _pixel(image: Image.Image, path: Path, **options: Any) -> tuple[int, int, int]:
    image.save(path, **options)
    loaded = load(path)
    assert loaded.mode == "RGB" and loaded.size == image.size
    return loaded.getpixel((0, 0))  # type: ignore[return-value]


def test_every_kind_of_sample_becomes_rgb(tmp_path: Path) -> None:
    """Transparent black on white is white; half-transparent (alpha 128) black is 255 * (1 - 128 / 255) = 127."""
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 10, 200, 30])
    png, tif = tmp_path / "a.png", tmp_path / "a.tif"
    assert _pixel(Image.new("1", (2, 2), 1), png) == (255, 255, 255)
    assert _pixel(Image.new("L", (3, 2), 77), png) == (77, 77, 77)
    assert _pixel(Image.new("LA", (2, 2), (0, 128)), png) == (127, 127, 127)
    assert _pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), png) == (255, 255, 255)
    assert _pixel(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), png) == (127, 127, 127)
    assert _pixel(Image.new("RGBA", (2, 2), (5, 6, 7, 255)), png) == (5, 6, 7)
    assert _pixel(palette, png) == (10, 200, 30)
    assert _pixel(palette, png, transparency=1) == (255, 255, 255)
    assert _pixel(Image.new("RGB", (2, 2), (1, 2, 3)), png, transparency=(1, 2, 3)) == (255, 255, 255)
    assert _pixel(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), tif) == (0, 255, 255)
    assert _pixel(Image.fromarray(np.full((2, 2), 0x8100, np.uint16)), png) == (0x81, 0x81, 0x81)
    assert _pixel(Image.fromarray(np.full((2, 2), 0x8100, np.int32)), tif) == (0x81, 0x81, 0x81)


@pytest.mark.parametrize(
    ("image", "samples"),
    [
        (Image.new("F", (2, 2), 0.5), "floating-point"),
        (Image.new("LAB", (2, 2)), "CIELAB"),
        (Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "32-bit"),
    ],
)
def test_samples_that_are_no_colours_are_refused(tmp_path: Path, image: Image.Image, samples: str) -> None:
    path = tmp_path / "a.tif"
    image.save(path)
    assert _sentence(path) == (f"The picture {path} has {samples} samples; save it with 8 or 16 bits per channel.")


def test_paths_stay_under_their_root(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for place in (tmp_path, root, root / "sub"):
        Image.new("RGB", (1, 1)).save(place / "a.png")
    (root / "out.png").symlink_to(tmp_path / "a.png")
    (root / "in.png").symlink_to(root / "sub" / "a.png")
    (tmp_path / "photos2").mkdir()
    (tmp_path / "link").symlink_to(root)

    assert inside(root, "sub/a.png") == (root / "sub" / "a.png").resolve()
    assert inside(root, "sub/../a.png") == (root / "a.png").resolve()
    assert inside(root, "in.png") == (root / "sub" / "a.png").resolve()
    assert inside(tmp_path / "link", "a.png") == (root / "a.png").resolve()
    assert inside(root, "not there.png") == root.resolve() / "not there.png"
    for bad in ("../a.png", "sub/../../a.png", "../photos2/a.png", "out.png", "/etc/passwd", str(root / "a.png"),
                "C:\\a.png", "\\\\host\\share\\a.png"):  # fmt: skip
        with pytest.raises(MinipovidError) as caught:
            inside(root, bad)
        assert str(caught.value) == (
            f"The picture {bad!r} lies outside the image folder {root}; name it relative to that folder."
        )
    with pytest.raises(MinipovidError, match="cannot be followed"):
        inside(root, "a\0.png")


def test_the_digest_follows_the_content_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a").hex().startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-2, example 1
    with pytest.raises(MinipovidError, match="There is no picture"):
        digest(tmp_path / "b")


def _bicubic_lines(lines: np.ndarray, out: int) -> np.ndarray:
    """Slow twin of Pillow's one-dimensional pass over axis 0: Keys' cubic, a = -1/2, widened when it shrinks."""
    count = lines.shape[0]
    scale = count / out
    stretch = max(scale, 1.0)
    result = np.empty((out, *lines.shape[1:]))
    for place in range(out):
        centre = (place + 0.5) * scale
        first, last = max(int(centre - 2 * stretch + 0.5), 0), min(int(centre + 2 * stretch + 0.5), count)
        distance = np.abs((np.arange(first, last) - centre + 0.5) / stretch)
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
        result[place] = np.tensordot(weights / weights.sum(), lines[first:last], axes=1)
    return np.clip(np.floor(result + 0.5), 0, 255)


def _twin_canvas(rgb: np.ndarray, side: int) -> np.ndarray:
    """facts/gguf.md section 5 in numpy; the sides are hand-worked by the caller's table."""
    height, width = rgb.shape[:2]
    scale = np.float32(side) / np.float32(max(height, width))
    new_height, new_width = (min(int(np.ceil(np.float32(n) * scale)), side) for n in (height, width))
    wide = _bicubic_lines(rgb.swapaxes(0, 1).astype(float), new_width) if new_width != width else rgb.swapaxes(0, 1)
    small = _bicubic_lines(wide.swapaxes(0, 1), new_height) if new_height != height else wide.swapaxes(0, 1)
    square = np.tile(np.array([122, 116, 104], np.uint8), (side, side, 1))
    top, left = (side - new_height) // 2, (side - new_width) // 2
    square[top : top + new_height, left : left + new_width] = small
    return square


@pytest.mark.parametrize(
    ("width", "height", "side", "columns", "rows"),
    [  # columns x rows that the picture itself takes, worked by hand: ceil, never round
        (640, 480, 64, 64, 48),
        (640, 427, 64, 64, 43),  # 427 * .1 = 42.7
        (641, 425, 64, 64, 43),  # 425 * 64 / 641 = 42.43: nearest would be 42
        (425, 641, 64, 43, 64),
        (31, 64, 64, 31, 64),
        (20, 11, 64, 64, 36),  # enlarged: 35.2
        (200, 1, 64, 64, 1),  # .32 of a row is a row
        (3, 300, 64, 1, 64),
        (64, 64, 64, 64, 64),
    ],
)
def test_the_canvas_is_llama_cpps(width: int, height: int, side: int, columns: int, rows: int) -> None:
    rgb = _noise(height, width)
    rgb[rgb == 122] = 121  # so that no picture row or column can pass for padding
    canvas = ImageTransform(side, CLIP.mean, CLIP.std).canvas(Image.fromarray(rgb))
    assert canvas.shape == (side, side, 3) and canvas.dtype == np.uint8
    padding = (canvas == (122, 116, 104)).all(axis=2)
    top, left = (side - rows) // 2, (side - columns) // 2
    expected = np.ones((side, side), bool)
    expected[top : top + rows, left : left + columns] = False
    assert (padding == expected).mean() > 0.999  # a resized pixel may by chance have the padding's colour
    assert padding[expected].all()
    difference = np.abs(canvas.astype(int) - _twin_canvas(rgb, side).astype(int))
    assert difference.max() <= 1  # Pillow's weights are fixed-point
    assert (difference > 0).mean() < 5e-3


def test_a_picture_of_the_right_size_is_copied_unchanged() -> None:
    rgb = _noise(336, 336)
    np.testing.assert_array_equal(CLIP.canvas(Image.fromarray(rgb)), rgb)


def test_normalise_is_float32_arithmetic_in_llama_cpps_order() -> None:
    """Channel 0 of white: (1 - .48145466) / .26862954 = 1.930336; of black: -.48145466 / .26862954 = -1.792263."""
    white, black = np.full((336, 336, 3), 255, np.uint8), np.zeros((336, 336, 3), np.uint8)
    assert CLIP.normalise(white)[0, 0, 0] == pytest.approx(1.930336, abs=1e-6)
    assert CLIP.normalise(black)[0, 5, 5] == pytest.approx(-1.792263, abs=1e-6)
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    got = ImageTransform(16, CLIP.mean, CLIP.std).normalise(levels)
    assert got.shape == (3, 16, 16) and got.dtype == np.float32 and got.flags.c_contiguous
    for level in range(256):
        for channel, (mean, std) in enumerate(zip(CLIP.mean, CLIP.std, strict=True)):
            expected = (np.float32(level) / np.float32(255.0) - np.float32(mean)) / np.float32(std)
            assert got[channel, level // 16, level % 16] == expected


def test_calling_the_transform_is_canvas_then_normalise() -> None:
    image = Image.fromarray(_noise(50, 90))
    np.testing.assert_array_equal(CLIP(image), CLIP.normalise(CLIP.canvas(image)))


def test_a_view_s_randomness_is_pinned_and_every_part_of_its_name_counts() -> None:
    """Philox's raw words are the same on every platform and in every numpy: this number may never change."""
    assert generator(42, "a", 0, "noised").bit_generator.random_raw() == 13362474253885694017
    names = [(42, "a", 0, "noised"), (43, "a", 0, "noised"), (42, "b", 0, "noised"), (42, "a", 1, "noised"),
             (42, "a", 0, "cropped"), (4, "2a", 0, "noised"), (42, 'a", 0, "', 0, "noised")]  # fmt: skip
    assert len({generator(*name).bit_generator.random_raw() for name in names}) == len(names)


def test_a_crop_keeps_1_to_20_percent_and_comes_back_at_full_size() -> None:
    """The picture is a chart of its own coordinates, so that the corners of a crop tell where it was cut."""
    x, y = np.meshgrid(np.linspace(0, 255, 400), np.linspace(0, 255, 300))
    chart = Image.fromarray(np.stack([x, y, 0 * x], axis=2).round().astype(np.uint8))
    areas, corners = [], set()
    for number in range(300):
        piece = np.array(crop(chart, generator(1, str(number), 0, "cropped")))
        assert piece.shape == (300, 400, 3)
        across, down = (np.ptp(piece[..., channel]) / 255 for channel in (0, 1))
        areas.append(across * down)
        corners.add((int(piece[0, 0, 0]), int(piece[0, 0, 1])))
    assert 0.003 < min(areas) < 0.03 and 0.17 < max(areas) < 0.21
    assert np.mean(areas) == pytest.approx(0.105, abs=0.015)  # uniform on .01 .. .20
    assert len(corners) > 290
    again = np.array(crop(chart, generator(1, "7", 0, "cropped")))
    np.testing.assert_array_equal(again, np.array(crop(chart, generator(1, "7", 0, "cropped"))))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 500), (500, 1)])
def test_a_crop_of_an_odd_shape_is_still_a_picture_of_it(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (7, 8, 9))
    for number in range(20):
        piece = crop(image, generator(1, str(number), 0, "cropped"))
        assert piece.size == size and piece.getpixel((0, 0)) == (7, 8, 9)
