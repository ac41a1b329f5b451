"""The noised view: the paper's schedule, three domains, seeds, and a cache that is bounded, shared and distrustful."""

from __future__ import annotations

import copy
import logging
import math
import multiprocessing
import os
import random
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minipovid.common.caches import cache_folder
from minipovid.common.caches import ring as noise_cache
from minipovid.common.caches.ring import NoiseCache, slots_within
from minipovid.common.errors import MinipovidError
from minipovid.images.load import load
from minipovid.images.transform import ImageTransform
from minipovid.images.views import generator
from minipovid.images.views.noised import Noiser, diffuse, noised, schedule, to_bytes
from minipovid.recipe.schema import NoiseSection

CLIP = ImageTransform(336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SMALL = ImageTransform(16, CLIP.mean, CLIP.std)
SHAPE = (3, 16, 16)
RECORD = 2 * 3 * 16 * 16
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


def _limit(slots: int) -> float:
    """GiB that hold just so many records."""
    limit = (slots * (RECORD + 64) + 8192) / 0.999 / 2**30
    while slots_within(limit, RECORD) < slots:
        limit *= 1.0001
    assert slots_within(limit, RECORD) == slots
    return limit


def _array(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


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
    return Noiser.of(SMALL, NoiseSection(**{"cache_gib": _limit(20), **recipe}), 42, folder)  # type: ignore[arg-type]


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
        section = NoiseSection(**recipe)  # type: ignore[arg-type]
        return Noiser.of(transform, section, seed, tmp_path).key(path, pair, 0)

    other = tmp_path / "other.png"
    Image.new("RGB", (640, 480)).save(other)
    moved = tmp_path / "moved.png"
    moved.write_bytes(photo.read_bytes())
    half = ImageTransform(16, (0.5, 0.5, 0.5), CLIP.std)
    keys = [key(), key(half), key(seed=2), key(path=other), key(pair="b"), key(step=499), key(domain="wrap")]
    assert len(set(keys)) == len(keys)
    assert key(path=moved) == key()
    assert Noiser.of(SMALL, NoiseSection(), 1, tmp_path).key(photo, "a", 1) != key()


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


# -------------------------------------------------------------------------------------------------------- the cache


def test_the_oldest_record_goes_first(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(3))
    for number in range(5):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
        cache.get(_key(2), lambda: _array(2))  # a hit: age counts from the making, not from the last use
    for reader in (cache, NoiseCache(tmp_path, SHAPE, _limit(3))):
        for number in (2, 3, 4):
            np.testing.assert_array_equal(reader.get(_key(number), _never), _array(number))
    for number in (0, 1):
        with pytest.raises(AssertionError, match="should have been"):
            cache.get(_key(number), _never)


def test_no_room_and_no_limit_keep_nothing_and_still_work(tmp_path: Path) -> None:
    for limit in (0, 1e-9, _limit(1) * 0.9):
        cache = NoiseCache(tmp_path / "folder", SHAPE, limit)
        for _ in range(2):
            np.testing.assert_array_equal(cache.get(_key(1), lambda: _array(1)), _array(1))
        assert not (tmp_path / "folder").exists()


def test_a_record_of_another_shape_is_a_bug_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made float64 \(3,\)"):
        NoiseCache(tmp_path, SHAPE, _limit(3)).get(_key(1), lambda: np.zeros(3))  # type: ignore[arg-type,return-value]


def test_geometries_live_side_by_side(tmp_path: Path) -> None:
    wide, small = NoiseCache(tmp_path, (3, 32, 32), 1e-4), NoiseCache(tmp_path, SHAPE, 1e-4)
    ones = np.ones((3, 32, 32), np.float16)
    wide.get(_key(1), lambda: ones)
    small.get(_key(1), lambda: _array(1))
    np.testing.assert_array_equal(wide.get(_key(1), _never), ones)
    np.testing.assert_array_equal(small.get(_key(1), _never), _array(1))


def _spoilt(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    other_version = content[:16] + b"\2" + content[17:]
    return {
        "emptied": b"",
        "garbage": random.Random(0).randbytes(len(content)),
        "half": content[:half],
        "longer": content + b"extra",
        "other version": other_version,
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("emptied", "is not a noise cache"),
        ("garbage", "is not a noise cache"),
        ("half", "has 5248 bytes instead of 10496"),  # 4096 + 4 * (64 + 1536)
        ("longer", "has 10501 bytes instead of 10496"),
        ("other version", "was made by another version or under another limit"),
    ],
)
def test_a_spoilt_file_is_noticed_said_once_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str, said: str
) -> None:
    first = NoiseCache(tmp_path, SHAPE, _limit(4))
    first.get(_key(1), lambda: _array(1))
    first.path.write_bytes(_spoilt(first.path.read_bytes(), how))

    caplog.set_level(logging.WARNING)
    cache = NoiseCache(tmp_path, SHAPE, _limit(4))
    made = []
    for _ in range(3):
        got = cache.get(_key(1), lambda: made.append(1) or _array(1))  # type: ignore[func-returns-value]
        np.testing.assert_array_equal(got, _array(1))
    assert len(made) == 1
    assert [record.message for record in caplog.records] == [f"The noise cache {cache.path} {said}; it is begun anew."]


def test_damage_anywhere_in_a_record_is_a_miss(tmp_path: Path) -> None:
    """One flipped bit in the payload, the entry or the key, or another record's bytes: made again, kept again."""
    slots = 4
    table, payload = 4096, 4096 + slots * 64
    for number, offset in enumerate((payload, payload + RECORD - 1, table, table + 31, table + 32, table + 36)):
        cache = NoiseCache(tmp_path / str(number), SHAPE, _limit(slots))
        cache.get(_key(1), lambda: _array(1))
        with cache.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        reader = NoiseCache(tmp_path / str(number), SHAPE, _limit(slots))
        np.testing.assert_array_equal(reader.get(_key(1), lambda: _array(9)), _array(9))  # it did not trust
        np.testing.assert_array_equal(reader.get(_key(1), _never), _array(9))


def test_a_senseless_count_costs_records_never_answers(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    for count in (0, 2**64 - 1, 2**40 + 1):
        with cache.path.open("r+b") as file:
            file.seek(64)
            file.write(count.to_bytes(8, "little"))
        for reader in (cache, NoiseCache(tmp_path, SHAPE, _limit(3))):
            for number in range(8):
                got = reader.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
                np.testing.assert_array_equal(got, _array(number))


def test_a_file_cut_while_it_is_mapped_does_not_kill_the_process(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(50))
    for number in range(50):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
    np.testing.assert_array_equal(cache.get(_key(49), _never), _array(49))  # it knows where to look
    os.truncate(cache.path, 5000)  # reading the map beyond this would be a SIGBUS
    np.testing.assert_array_equal(cache.get(_key(49), lambda: _array(49)), _array(49))
    np.testing.assert_array_equal(cache.get(_key(49), _never), _array(49))


def test_a_file_that_another_run_replaced_or_removed_is_left_behind(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(4))
    cache.get(_key(1), lambda: _array(1))
    cache.path.unlink()
    cache.get(_key(2), lambda: _array(2))
    other = NoiseCache(tmp_path, SHAPE, _limit(4))
    np.testing.assert_array_equal(other.get(_key(2), _never), _array(2))


def test_a_lower_limit_shrinks_the_file(tmp_path: Path) -> None:
    NoiseCache(tmp_path, SHAPE, _limit(50)).get(_key(1), lambda: _array(1))
    cache = NoiseCache(tmp_path, SHAPE, _limit(5))
    cache.get(_key(1), lambda: _array(1))
    assert cache.path.stat().st_size <= _limit(5) * 2**30
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"noise-{RECORD}.lock", f"noise-{RECORD}.ring"]


@pytest.mark.parametrize("trouble", ["no folder", "folder at the file's place", "disk full", "no locks"])
def test_where_nothing_can_be_kept_it_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "folder"
    if trouble == "no folder":
        folder.write_text("a file")
    elif trouble == "folder at the file's place":
        (folder / f"noise-{RECORD}.ring").mkdir(parents=True)
    elif trouble == "disk full":
        monkeypatch.setattr(os, "pwrite", fails)
    else:
        monkeypatch.setattr(noise_cache.fcntl, "flock", fails)
    cache = NoiseCache(folder, SHAPE, _limit(4))
    for number in (1, 1, 2):
        np.testing.assert_array_equal(cache.get(_key(number), lambda n=number: _array(n)), _array(number))  # type: ignore[misc]
    (record,) = caplog.records
    assert record.message.startswith(f"The noise cache {cache.path} cannot be used (")
    assert record.message.endswith("); noised pictures are computed anew.")


def test_without_file_locks_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_cache, "fcntl", None)
    cache = NoiseCache(tmp_path, SHAPE, _limit(4))
    np.testing.assert_array_equal(cache.get(_key(1), lambda: _array(1)), _array(1))
    assert not list(tmp_path.iterdir())


def test_an_open_cache_pickles_and_forks(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(4))
    cache.get(_key(1), lambda: _array(1))
    twin = copy.deepcopy(cache)  # by way of __getstate__, as a pickle for a spawned worker goes
    assert twin._ring is None
    np.testing.assert_array_equal(twin.get(_key(1), _never), _array(1))
    child = multiprocessing.get_context("fork").Process(target=cache.get, args=(_key(2), lambda: _array(2)))
    child.start()
    child.join()
    np.testing.assert_array_equal(cache.get(_key(2), _never), _array(2))


def _hammer(cache: NoiseCache, seed: int, rounds: int) -> tuple[int, int, int]:
    """Ask for random records; (wrong answers, misses, the most bytes that the file took)."""
    draw, wrong, most = random.Random(seed), 0, 0
    made: list[int] = []

    def make(number: int) -> np.ndarray:
        made.append(number)
        return _array(number)

    for _ in range(rounds):
        number = draw.randrange(12)
        wrong += cache.get(_key(number), lambda n=number: make(n)).tobytes() != _array(number).tobytes()  # type: ignore[misc]
        status = cache.path.stat()
        most = max(most, status.st_size, status.st_blocks * 512)
    return wrong, len(made), most


def test_concurrent_writers_never_lie_and_never_pass_the_limit(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(8))
    with SPAWN.Pool(3) as pool:
        results = pool.starmap(_hammer, [(cache, seed, 400) for seed in range(3)])
    assert sum(wrong for wrong, _, _ in results) == 0
    assert 12 <= sum(misses for _, misses, _ in results) < 1200  # it evicts, and it hits
    assert max(most for _, _, most in results) <= _limit(8) * 2**30


def test_of_several_workers_that_need_one_record_at_once_only_one_keeps_it(tmp_path: Path) -> None:
    """Both miss; the second finds the first's under the lock and leaves it, instead of wasting a slot on a twin."""
    first, second = (NoiseCache(tmp_path, SHAPE, _limit(3)) for _ in range(2))

    def make_late() -> np.ndarray:
        first.get(_key(1), lambda: _array(1))
        return _array(1)

    second.get(_key(0), lambda: _array(0))
    second.get(_key(1), make_late)
    second.get(_key(2), lambda: _array(2))
    np.testing.assert_array_equal(first.get(_key(0), _never), _array(0))  # three records fit, because no twin is there


def _hammer_for_ever(cache: NoiseCache) -> None:
    while True:
        _hammer(cache, random.randrange(1 << 30), 50)


def test_killed_in_the_middle_of_writing_it_never_lies_afterwards(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(8))
    for wait in (0.01, 0.05, 0.11):
        children = [multiprocessing.get_context("fork").Process(target=_hammer_for_ever, args=(cache,)) for _ in "ab"]
        for child in children:
            child.start()
        time.sleep(wait)
        for child in children:
            child.kill()
            child.join()
        wrong, misses, _ = _hammer(cache, 1, 100)
        assert wrong == 0 and misses < 100  # and no lock was left behind


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_an_insertion_that_stops_after_any_of_its_four_writes_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """Record 2 on its way over record 1, in the only slot: entry emptied, payload, entry filled, count."""
    cache = NoiseCache(tmp_path, SHAPE, _limit(1))
    cache.get(_key(1), lambda: _array(1))
    left, pwrite = [done], os.pwrite

    def dies(*arguments: object) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return pwrite(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "pwrite", dies)
        cache.get(_key(2), lambda: _array(2))
    readers = NoiseCache(tmp_path, SHAPE, _limit(1)), cache
    for reader in readers:
        ring = reader._ring or reader._open()
        assert ring.read(_key(1)) == (_array(1).tobytes() if done == 0 else None)
        assert ring.read(_key(2)) in (None, _array(2).tobytes())
    for reader in readers:
        np.testing.assert_array_equal(reader.get(_key(2), lambda: _array(2)), _array(2))
        np.testing.assert_array_equal(reader.get(_key(2), _never), _array(2))


def test_a_record_that_was_kept_again_outlives_its_damaged_twin(tmp_path: Path) -> None:
    """Slots: 1 (damaged), 1 again, 2; then 3 over the first. Forgetting the first must not forget the second."""
    cache = NoiseCache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    with cache.path.open("r+b") as file:
        file.seek(4096 + 3 * 64)
        file.write(b"damage")
    for number in (1, 2, 3):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(cache.get(_key(number), _never), _array(number))


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    cache = NoiseCache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    child = multiprocessing.get_context("fork").Process(target=cache.get, args=(_key(2), lambda: _array(2)))
    with cache._locked():
        child.start()
        child.join(0.3)
        assert child.is_alive()
        np.testing.assert_array_equal(cache.get(_key(1), _never), _array(1))  # a reader does not wait
    child.join(10)
    assert child.exitcode == 0
    np.testing.assert_array_equal(cache.get(_key(2), _never), _array(2))


def test_a_stale_index_is_found_out_by_the_key_even_if_checksums_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise_cache, "_checksum", lambda *_: 7)
    cache = NoiseCache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    cache._ring.where[_key(2)] = 0  # type: ignore[union-attr]
    np.testing.assert_array_equal(cache.get(_key(2), lambda: _array(2)), _array(2))


def test_the_checksum_covers_the_key(tmp_path: Path) -> None:
    """An entry that by damage names another key must not hand out this record for it."""
    record = _array(1).tobytes()
    assert noise_cache._checksum(_key(1), record) == zlib.crc32(_key(1) + record)
