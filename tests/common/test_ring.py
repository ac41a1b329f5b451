"""The ring: bounded, shared, distrustful. Whatever happens to its file costs records, never an answer."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import random
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from minipovid.common.caches import ring
from minipovid.common.caches.ring import RingCache, slots_within

SHAPE = (3, 16, 16)
RECORD = 2 * 3 * 16 * 16
SPAWN = multiprocessing.get_context("spawn")


def _cache(folder: Path, shape: tuple[int, ...], limit_gib: float) -> RingCache:
    return RingCache(folder, "noise", "noised pictures", shape, limit_gib)


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


def test_the_oldest_record_goes_first(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(3))
    for number in range(5):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
        cache.get(_key(2), lambda: _array(2))  # a hit: age counts from the making, not from the last use
    for reader in (cache, _cache(tmp_path, SHAPE, _limit(3))):
        for number in (2, 3, 4):
            np.testing.assert_array_equal(reader.get(_key(number), _never), _array(number))
    for number in (0, 1):
        with pytest.raises(AssertionError, match="should have been"):
            cache.get(_key(number), _never)


def test_no_room_and_no_limit_keep_nothing_and_still_work(tmp_path: Path) -> None:
    for limit in (0, 1e-9, _limit(1) * 0.9):
        cache = _cache(tmp_path / "folder", SHAPE, limit)
        for _ in range(2):
            np.testing.assert_array_equal(cache.get(_key(1), lambda: _array(1)), _array(1))
        assert not (tmp_path / "folder").exists()


def test_a_record_of_another_shape_is_a_bug_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made float64 \(3,\)"):
        _cache(tmp_path, SHAPE, _limit(3)).get(_key(1), lambda: np.zeros(3))  # type: ignore[arg-type,return-value]


def test_a_file_is_found_again_by_what_it_has_always_been_called(tmp_path: Path) -> None:
    """Caches of older versions stay current: the name and, by hand, the header (4 slots of 1,536 bytes)."""
    cache = _cache(tmp_path, SHAPE, _limit(4))
    cache.get(_key(1), lambda: _array(1))
    assert cache.path.name == "noise-1536.ring"
    head = b"minipovid noise\n" + bytes([1, 0, 0, 0, 64, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0])
    assert cache.path.read_bytes()[:40] == head


def test_kinds_live_side_by_side(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise, other = _cache(tmp_path, SHAPE, _limit(4)), RingCache(tmp_path, "grain", "grains", SHAPE, _limit(4))
    noise.get(_key(1), lambda: _array(1))
    np.testing.assert_array_equal(other.get(_key(1), lambda: _array(2)), _array(2))
    np.testing.assert_array_equal(noise.get(_key(1), _never), _array(1))
    other.path.write_bytes(noise.path.read_bytes())
    assert len(RingCache(tmp_path, "grain", "grains", SHAPE, _limit(4)).get(_key(1), lambda: _array(3))) == 3
    assert caplog.messages == [f"The grain cache {other.path} is not a grain cache; it is begun anew."]


def test_geometries_live_side_by_side(tmp_path: Path) -> None:
    wide, small = _cache(tmp_path, (3, 32, 32), 1e-4), _cache(tmp_path, SHAPE, 1e-4)
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
    first = _cache(tmp_path, SHAPE, _limit(4))
    first.get(_key(1), lambda: _array(1))
    first.path.write_bytes(_spoilt(first.path.read_bytes(), how))

    caplog.set_level(logging.WARNING)
    cache = _cache(tmp_path, SHAPE, _limit(4))
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
        cache = _cache(tmp_path / str(number), SHAPE, _limit(slots))
        cache.get(_key(1), lambda: _array(1))
        with cache.path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        reader = _cache(tmp_path / str(number), SHAPE, _limit(slots))
        np.testing.assert_array_equal(reader.get(_key(1), lambda: _array(9)), _array(9))  # it did not trust
        np.testing.assert_array_equal(reader.get(_key(1), _never), _array(9))


def test_a_senseless_count_costs_records_never_answers(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    for count in (0, 2**64 - 1, 2**40 + 1):
        with cache.path.open("r+b") as file:
            file.seek(64)
            file.write(count.to_bytes(8, "little"))
        for reader in (cache, _cache(tmp_path, SHAPE, _limit(3))):
            for number in range(8):
                got = reader.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
                np.testing.assert_array_equal(got, _array(number))


def test_a_file_cut_while_it_is_mapped_does_not_kill_the_process(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(50))
    for number in range(50):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
    np.testing.assert_array_equal(cache.get(_key(49), _never), _array(49))  # it knows where to look
    os.truncate(cache.path, 5000)  # reading the map beyond this would be a SIGBUS
    np.testing.assert_array_equal(cache.get(_key(49), lambda: _array(49)), _array(49))
    np.testing.assert_array_equal(cache.get(_key(49), _never), _array(49))


def test_a_file_that_another_run_replaced_or_removed_is_left_behind(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(4))
    cache.get(_key(1), lambda: _array(1))
    cache.path.unlink()
    cache.get(_key(2), lambda: _array(2))
    other = _cache(tmp_path, SHAPE, _limit(4))
    np.testing.assert_array_equal(other.get(_key(2), _never), _array(2))


def test_a_lower_limit_shrinks_the_file(tmp_path: Path) -> None:
    _cache(tmp_path, SHAPE, _limit(50)).get(_key(1), lambda: _array(1))
    cache = _cache(tmp_path, SHAPE, _limit(5))
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
        monkeypatch.setattr(ring.fcntl, "flock", fails)
    cache = _cache(folder, SHAPE, _limit(4))
    for number in (1, 1, 2):
        np.testing.assert_array_equal(cache.get(_key(number), lambda n=number: _array(n)), _array(number))  # type: ignore[misc]
    (record,) = caplog.records
    assert record.message.startswith(f"The noise cache {cache.path} cannot be used (")
    assert record.message.endswith("); noised pictures are computed anew.")


def test_without_file_locks_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "fcntl", None)
    cache = _cache(tmp_path, SHAPE, _limit(4))
    np.testing.assert_array_equal(cache.get(_key(1), lambda: _array(1)), _array(1))
    assert not list(tmp_path.iterdir())


def test_an_open_cache_pickles_and_forks(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(4))
    cache.get(_key(1), lambda: _array(1))
    twin = copy.deepcopy(cache)  # by way of __getstate__, as a pickle for a spawned worker goes
    assert twin._ring is None
    np.testing.assert_array_equal(twin.get(_key(1), _never), _array(1))
    child = multiprocessing.get_context("fork").Process(target=cache.get, args=(_key(2), lambda: _array(2)))
    child.start()
    child.join()
    np.testing.assert_array_equal(cache.get(_key(2), _never), _array(2))


def _hammer(cache: RingCache, seed: int, rounds: int) -> tuple[int, int, int]:
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
    cache = _cache(tmp_path, SHAPE, _limit(8))
    with SPAWN.Pool(3) as pool:
        results = pool.starmap(_hammer, [(cache, seed, 400) for seed in range(3)])
    assert sum(wrong for wrong, _, _ in results) == 0
    assert 12 <= sum(misses for _, misses, _ in results) < 1200  # it evicts, and it hits
    assert max(most for _, _, most in results) <= _limit(8) * 2**30


def test_of_several_workers_that_need_one_record_at_once_only_one_keeps_it(tmp_path: Path) -> None:
    """Both miss; the second finds the first's under the lock and leaves it, instead of wasting a slot on a twin."""
    first, second = (_cache(tmp_path, SHAPE, _limit(3)) for _ in range(2))

    def make_late() -> np.ndarray:
        first.get(_key(1), lambda: _array(1))
        return _array(1)

    second.get(_key(0), lambda: _array(0))
    second.get(_key(1), make_late)
    second.get(_key(2), lambda: _array(2))
    np.testing.assert_array_equal(first.get(_key(0), _never), _array(0))  # three records fit, because no twin is there


def _hammer_for_ever(cache: RingCache) -> None:
    while True:
        _hammer(cache, random.randrange(1 << 30), 50)


def test_killed_in_the_middle_of_writing_it_never_lies_afterwards(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(8))
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
    cache = _cache(tmp_path, SHAPE, _limit(1))
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
    readers = _cache(tmp_path, SHAPE, _limit(1)), cache
    for reader in readers:
        opened = reader._ring or reader._open()
        assert opened.read(_key(1)) == (_array(1).tobytes() if done == 0 else None)
        assert opened.read(_key(2)) in (None, _array(2).tobytes())
    for reader in readers:
        np.testing.assert_array_equal(reader.get(_key(2), lambda: _array(2)), _array(2))
        np.testing.assert_array_equal(reader.get(_key(2), _never), _array(2))


def test_a_record_that_was_kept_again_outlives_its_damaged_twin(tmp_path: Path) -> None:
    """Slots: 1 (damaged), 1 again, 2; then 3 over the first. Forgetting the first must not forget the second."""
    cache = _cache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    with cache.path.open("r+b") as file:
        file.seek(4096 + 3 * 64)
        file.write(b"damage")
    for number in (1, 2, 3):
        cache.get(_key(number), lambda n=number: _array(n))  # type: ignore[misc]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(cache.get(_key(number), _never), _array(number))


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    cache = _cache(tmp_path, SHAPE, _limit(3))
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
    monkeypatch.setattr(ring, "_checksum", lambda *_: 7)
    cache = _cache(tmp_path, SHAPE, _limit(3))
    cache.get(_key(1), lambda: _array(1))
    cache._ring.where[_key(2)] = 0  # type: ignore[union-attr]
    np.testing.assert_array_equal(cache.get(_key(2), lambda: _array(2)), _array(2))


def test_the_checksum_covers_the_key(tmp_path: Path) -> None:
    """An entry that by damage names another key must not hand out this record for it."""
    record = _array(1).tobytes()
    assert ring._checksum(_key(1), record) == zlib.crc32(_key(1) + record)
