"""The noised view: the paper's schedule, three domains, seeds, and what its cache is asked by."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.images.load import load
from minipovid.images.transform import ImageTransform
from minipovid.images.views import generator
from minipovid.images.views.noised import Noiser, Settings, diffuse, noised, opened, schedule, to_bytes

CLIP = ImageTransform(336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SMALL = ImageTransform(16, CLIP.mean, CLIP.std)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A synthetic photograph: smooth light, some structure, a little grain; 640 x 480."""
    y, x = np.mgrid[:480, :640]
    light = [127 + 90 * np.sin(x / 97 + channel) + 30 * np.cos(y / (31 + channel)) for channel in range(3)]
    grain = np.random.default_rng(0).normal(0, 8, (480, 640, 3))
    path = tmp_path / "photo.png"
    Image.fromarray((np.stack(light, axis=2) + grain).clip(0, 255).astype(np.uint8)).save(path)
    return path


def _never() -> np.ndarray:
    raise AssertionError("this should have been in the cache")


# ---------------------------------------------------------------------------------------------------- arithmetic


def test_the_schedule_has_the_official_numbers() -> None:
    """facts/povid.md section 2; and beta_0 by hand: 1 / (1 + e^6) * .00499 + .00001 = .0024726 * .00499 + .00001."""
    beta, abar = schedule()
    assert beta.dtype == abar.dtype == np.float32 and beta.shape == abar.shape == (1000,)
    assert [f"{value:.6f}" for value in (abar[500], math.sqrt(abar[500]), math.sqrt(1 - abar[500]), abar[999])] == [
        "0.744799",
        "0.863017",
        "0.505175",
        "0.081249",
    ]
    assert [f"{value:.4e}" for value in (beta[0], beta[500], beta[999])] == ["2.2338e-05", "2.5125e-03", "4.9877e-03"]
    table = {0: 0.999978, 100: 0.996589, 200: 0.987795, 300: 0.962329, 400: 0.892760, 600: 0.539118, 700: 0.351267}
    for step, value in table.items():
        assert abar[step] == pytest.approx(value, abs=6e-7), step


def test_the_schedule_is_torchs_own_float32() -> None:
    torch = pytest.importorskip("torch")
    beta = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.5e-2 - 1e-5) + 1e-5
    np.testing.assert_allclose(schedule()[0], beta.numpy(), rtol=1e-6)
    np.testing.assert_allclose(schedule()[1], torch.cumprod(1 - beta, 0).numpy(), rtol=1e-6)


def test_diffusion_is_the_two_roots() -> None:
    x = np.linspace(-2, 2, 1000, dtype=np.float32)
    got = diffuse(x, 500, np.random.default_rng(3))
    expected = 0.863017 * x + 0.505175 * np.random.default_rng(3).standard_normal(1000, dtype=np.float32)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=4e-6)


def test_bytes_wrap_or_clamp() -> None:
    """-0.1 * 255 = -25.5 -> -25 -> 231; 1.1 * 255 = 280.5 -> 280 -> 24; 0.5 * 255 = 127.5 -> 127; -2 -> -510 -> 2."""
    x = np.array([-0.1, 1.1, 0.5, 0, 1, -2, 3], np.float32)
    assert to_bytes(x, "wrap").tolist() == [231, 24, 127, 0, 255, 2, 253]
    assert to_bytes(x, "clamp").tolist() == [0, 255, 127, 0, 255, 0, 255]


def test_wrap_is_torchs_own_byte_cast() -> None:
    """torchvision's ToPILImage does mul(255).byte(); on x86 that wraps, on other machines it need not."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0.5, 1, 10_000).astype(np.float32)
    if torch.tensor([-25.5]).byte().item() != 231:
        pytest.skip("this machine's cast does not wrap")
    np.testing.assert_array_equal(to_bytes(x, "wrap"), torch.from_numpy(x).mul(255).byte().numpy())


def _rng() -> np.random.Generator:
    return generator(42, "a", 0, "noised")


def test_normalized_noises_the_towers_input_padding_included(photo: Path) -> None:
    clean = CLIP(load(photo))
    view = noised(load(photo), CLIP, 500, "normalized", _rng())
    expected = 0.863017 * clean + 0.505175 * _rng().standard_normal((3, 336, 336), dtype=np.float32)
    assert view.dtype == np.float16 and view.shape == (3, 336, 336)
    np.testing.assert_allclose(view, expected, atol=4e-3)  # float16 between 2 and 4 is spaced by 2e-3
    assert view[:, :40].std() > 0.4  # the bars above the picture


@pytest.mark.parametrize("domain", ["clamp", "wrap"])
def test_pixel_domains_noise_at_native_size_and_leave_the_padding_clean(photo: Path, domain: str) -> None:
    image = load(photo)
    rgb = np.array(image).astype(np.float32) / 255
    noisy = 0.863017 * rgb + 0.505175 * _rng().standard_normal(rgb.shape, dtype=np.float32)
    levels = np.clip(noisy, 0, 1) * 255 if domain == "clamp" else noisy * 255 % 256
    view = noised(image, CLIP, 500, domain, _rng())  # type: ignore[arg-type]
    expected = CLIP(Image.fromarray(np.trunc(levels).astype(np.uint8)))
    assert np.abs(view - expected).mean() < 0.02  # the modulo of a negative rounds the other way: one level of 255
    assert (view[:, :40] == CLIP(image)[:, :40].astype(np.float16)).all()


def test_a_photograph_larger_than_a_band_gets_the_same_noise(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noised(load(photo), CLIP, 500, "clamp", _rng())
    monkeypatch.setattr("minipovid.images.views.noised._BAND", 10_007)
    np.testing.assert_array_equal(noised(load(photo), CLIP, 500, "clamp", _rng()), whole)


def test_step_500_means_in_each_domain_what_the_facts_say(photo: Path) -> None:
    """Correlation with the clean picture, outside the padding (facts/povid.md: .81-.87, .59-.74, .00-.08)."""
    clean = CLIP(load(photo))[:, 42:294].ravel()
    ranges = {"normalized": (0.80, 0.88), "clamp": (0.58, 0.76), "wrap": (-0.1, 0.1)}
    for domain, (low, high) in ranges.items():
        view = noised(load(photo), CLIP, 500, domain, _rng())[:, 42:294]  # type: ignore[arg-type]
        assert low < np.corrcoef(clean, view.ravel().astype(np.float32))[0, 1] < high, domain


# ------------------------------------------------------------------------------------------------------- the noiser


def _noiser(folder: Path, **recipe: object) -> Noiser:
    return opened(Settings(**{"cache_gib": 1e-4, **recipe}), SMALL, 42, folder)  # type: ignore[arg-type]


def _view_in_another_process(noiser: Noiser, photo: Path) -> bytes:
    return noiser(photo, "pair 1", 2).tobytes()


def test_the_same_bytes_in_every_process_run_and_restart_cached_or_not(photo: Path, tmp_path: Path) -> None:
    for domain in ("normalized", "clamp", "wrap"):
        noiser = _noiser(tmp_path / domain, domain=domain, refresh="epoch")
        fresh = noiser(photo, "pair 1", 2)
        assert noiser(photo, "pair 1", 2).tobytes() == fresh.tobytes()
        assert (
            _noiser(tmp_path / domain, domain=domain, refresh="epoch")(photo, "pair 1", 2).tobytes() == fresh.tobytes()
        )
        uncached = _noiser(tmp_path / "none", domain=domain, refresh="epoch", cache_gib=0)
        assert uncached(photo, "pair 1", 2).tobytes() == fresh.tobytes()
    with SPAWN.Pool(2) as pool:
        found = pool.starmap(_view_in_another_process, [(noiser, photo), (noiser, photo), (uncached, photo)])
    assert found == [fresh.tobytes()] * 3


def test_what_is_found_in_the_cache_is_not_made_again(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noiser = _noiser(tmp_path)
    first = noiser(photo, "a", 0)
    monkeypatch.setattr("minipovid.images.views.noised.noised", lambda *_: _never())
    again = noiser(photo, "a", 0)
    again += 1  # the caller's own copy
    np.testing.assert_array_equal(noiser(photo, "a", 0), first)
    with pytest.raises(AssertionError, match="should have been"):
        noiser(photo, "b", 0)


def test_epochs_differ_exactly_where_the_recipe_refreshes(photo: Path, tmp_path: Path) -> None:
    never, epoch = _noiser(tmp_path, refresh="never"), _noiser(tmp_path, refresh="epoch")
    assert (never(photo, "a", 0) == never(photo, "a", 1)).all()
    assert (never(photo, "a", 0) == epoch(photo, "a", 0)).all()
    assert (epoch(photo, "a", 0) != epoch(photo, "a", 1)).mean() > 0.9


def test_everything_that_decides_the_pixels_is_in_the_key(photo: Path, tmp_path: Path) -> None:
    def key(
        transform: ImageTransform = SMALL, seed: int = 1, path: Path = photo, pair: str = "a", **recipe: object
    ) -> bytes:
        settings = Settings(**recipe)  # type: ignore[arg-type]
        return opened(settings, transform, seed, tmp_path).key(path, pair, 0)

    other = tmp_path / "other.png"
    Image.new("RGB", (640, 480)).save(other)
    moved = tmp_path / "moved.png"
    moved.write_bytes(photo.read_bytes())
    half = ImageTransform(16, (0.5, 0.5, 0.5), CLIP.std)
    keys = [key(), key(half), key(seed=2), key(path=other), key(pair="b"), key(step=499), key(domain="wrap")]
    assert len(set(keys)) == len(keys)
    assert key(path=moved) == key()
    assert opened(Settings(), SMALL, 1, tmp_path).key(photo, "a", 1) != key()


def test_the_key_is_what_it_has_always_been(photo: Path, tmp_path: Path) -> None:
    """Written out, so that no renaming makes caches of older versions worthless."""
    facts = (
        "[ImageTransform(size=16, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)), "
        f"500, 'normalized', 42, 'a', 3, '{np.__version__}', '{PIL.__version__}']"
    )
    due = hashlib.sha256(hashlib.sha256(photo.read_bytes()).digest() + facts.encode()).digest()
    assert _noiser(tmp_path).key(photo, "a", 3) == due


def test_a_picture_that_changes_on_disk_changes_its_view(photo: Path, tmp_path: Path) -> None:
    """Same name, same size in bytes, same time stamp: only the content tells."""
    noiser = _noiser(tmp_path)
    picture = tmp_path / "a.bmp"
    Image.new("RGB", (20, 20), (1, 2, 3)).save(picture)
    stamp = picture.stat().st_mtime_ns
    first = noiser(picture, "a", 0)
    Image.new("RGB", (20, 20), (200, 2, 3)).save(picture)
    os.utime(picture, ns=(stamp, stamp))
    assert (noiser(picture, "a", 0) != first).any()
    picture.unlink()
    with pytest.raises(MinipovidError, match="There is no picture"):
        noiser(picture, "a", 0)


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/minipovid")
    for ignored in ("", "relative/is/not/allowed"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == Path.home() / ".cache" / "minipovid"
