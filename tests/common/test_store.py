"""The reference cache: kept bytes come back or nothing does, whatever happens to file, disk, folder and processes."""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import random
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from minipovid.common.caches import store as reference_cache
from minipovid.common.caches.store import StoreCache

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")
PAGE = 16384
SIZES = (0, 1, 400, 5_000, 16_300, 40_000)  # in a leaf, alone in a leaf, in a chain of pages


def _key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def _value(number: int) -> bytes:
    return random.Random(number).randbytes(SIZES[number % len(SIZES)])


def _items(*numbers: int) -> dict[bytes, bytes]:
    return {_key(number): _value(number) for number in numbers}


def _cache(folder: Path, name: str, limit_gib: float) -> StoreCache:
    return StoreCache(folder, "reference", "scores", name, limit_gib)


def _kept(cache: StoreCache, *numbers: int) -> list[int]:
    """Which of `numbers` the cache gives back; a wrong value fails."""
    found = dict(zip(numbers, cache.read([_key(number) for number in numbers]), strict=True))
    assert all(value in (None, _value(number)) for number, value in found.items())
    return [number for number, value in found.items() if value is not None]


def _bytes_in(folder: Path) -> int:
    return sum(max(path.stat().st_size, path.stat().st_blocks * 512) for path in folder.iterdir())


def _store(path: Path, numbers: range) -> Path:
    """A closed store with these records in it."""
    cache = _cache(path.parent, path.stem, 1)
    cache.write(_items(*numbers))
    cache.close()
    return path


def test_what_was_written_is_read_and_the_rest_is_none_in_the_order_of_the_keys(tmp_path: Path) -> None:
    cache = _cache(tmp_path / "new" / "folder", "ab12", 1)
    cache.write(_items(*range(12)))
    assert cache.path == tmp_path / "new" / "folder" / "ab12.sqlite"
    for reader in (cache, _cache(cache.path.parent, "ab12", 1)):
        keys = [_key(number) for number in (5, 99, 0, 11, 5)]
        assert reader.read(keys) == [_value(5), None, _value(0), _value(11), _value(5)]
    assert cache.read([]) == []
    assert _cache(cache.path.parent, "cd34", 1).read([_key(1)]) == [None]  # another reference's


def test_a_second_write_replaces_and_a_closed_cache_opens_again(tmp_path: Path) -> None:
    cache = _cache(tmp_path, "ab", 1)
    cache.write({_key(1): b"old", _key(2): b"two"})
    cache.write({_key(1): b"new"})
    cache.close()
    cache.close()
    assert cache.read([_key(1), _key(2)]) == [b"new", b"two"]


def test_reading_and_writing_nothing_makes_no_file(tmp_path: Path) -> None:
    cache = _cache(tmp_path / "folder", "ab", 1)
    assert cache.read([_key(1)]) == [None]
    cache.write({})
    assert not (tmp_path / "folder").exists()


def test_limit_0_keeps_nothing_and_does_not_look(tmp_path: Path) -> None:
    _store(tmp_path / "ab.sqlite", range(3))
    before = sorted(path.name for path in tmp_path.iterdir())
    cache = _cache(tmp_path, "ab", 0)
    cache.write(_items(7))
    assert cache.read([_key(1), _key(7)]) == [None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    _cache(tmp_path / "folder", "ab", 0).write(_items(1))
    assert not (tmp_path / "folder").exists()


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    """The third value is no bytes: SQLite refuses it when two rows are already in the transaction."""
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(1))
    with pytest.raises(TypeError), cache._locked():
        cache._open().keep({**_items(2, 3), _key(4): None})  # type: ignore[dict-item]
    store = cache._own_store()
    assert store is not None
    with pytest.raises(sqlite3.Error), store.db:
        store.db.execute("BEGIN IMMEDIATE")
        store.db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", [(_key(2), 0, b"x"), (_key(3), 0, None)])
    assert _kept(cache, 1, 2, 3, 4) == [1]


def _another_schema() -> bytes:
    db = sqlite3.connect(":memory:")
    db.executescript("CREATE TABLE scores (key BLOB PRIMARY KEY, value BLOB); INSERT INTO scores VALUES (x'00', x'01')")
    return _image(db)


def _image(db: sqlite3.Connection) -> bytes:
    if hasattr(db, "serialize"):  # Python 3.11
        return db.serialize()
    return b"SQLite format 3\0" + bytes(84)


# name -> (what becomes of a sound file's bytes, what the warning says)
SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "garbage": (lambda whole: random.Random(0).randbytes(len(whole)), "file is not a database"),
    "text": (lambda whole: b"a text\n" * 1000, "file is not a database"),
    "a foreign schema": (lambda whole: _another_schema(), "it holds other tables"),
    "the schema's page scrawled over": (
        lambda whole: whole[:100] + b"\xff" * 400 + whole[500:],
        "database disk image is malformed",
    ),
    **{
        f"cut to {part:.0%}": (lambda whole, p=part: whole[: int(len(whole) * p)], "database disk image is malformed")  # type: ignore[misc]
        for part in (0.2, 0.5, 0.9, 0.999)
    },
    "cut in the middle of a page": (lambda whole: whole[: 2 * PAGE + 77], "database disk image is malformed"),
}


@pytest.mark.skipif(not hasattr(sqlite3.Connection, "serialize"), reason="the table needs Python 3.11's serialize")
@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_file_is_removed_with_one_warning_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path = _store(tmp_path / "ab.sqlite", range(20))
    spoil, said = SPOILT[how]
    path.write_bytes(spoil(path.read_bytes()))
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).write_bytes(b"left by nobody")

    cache = _cache(tmp_path, "ab", 1)
    assert _kept(cache, *range(20)) == []
    cache.write(_items(*range(20)))
    for reader in (cache, _cache(tmp_path, "ab", 1)):
        assert _kept(reader, *range(20)) == list(range(20))
    assert [record.getMessage() for record in caplog.records] == [
        f"The reference cache {path} is not sound ({said}); it is begun anew."
    ]


def test_an_emptied_file_is_an_empty_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _store(tmp_path / "ab.sqlite", range(3))
    path.write_bytes(b"")
    cache = _cache(tmp_path, "ab", 1)
    assert _kept(cache, 0, 1, 2) == []
    cache.write(_items(1))
    assert _kept(cache, 0, 1, 2) == [1] and not caplog.records


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_flipped_bit_in_a_value_costs_that_entry_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    path = _store(tmp_path / "ab.sqlite", range(12))
    content = bytearray(path.read_bytes())
    at = content.index(_value(number)[:64]) + 40
    content[at] ^= 4
    path.write_bytes(content)
    cache = _cache(tmp_path, "ab", 1)
    assert _kept(cache, *range(12)) == [other for other in range(12) if other != number]
    cache.write(_items(number))
    assert _kept(cache, *range(12)) == list(range(12)) and not caplog.records


def test_a_value_under_another_key_or_of_another_type_is_not_trusted(tmp_path: Path) -> None:
    path = _store(tmp_path / "ab.sqlite", range(8))
    with sqlite3.connect(path) as db:
        db.execute("UPDATE scores SET key = ? WHERE key = ?", (_key(99), _key(2)))
        db.execute("UPDATE scores SET value = CAST(value AS TEXT) WHERE key = ?", (_key(3),))
        db.execute("UPDATE scores SET value = 7 WHERE key = ?", (_key(4),))
        db.execute("UPDATE scores SET crc = 'seven' WHERE key = ?", (_key(5),))
    db.close()
    cache = _cache(tmp_path, "ab", 1)
    assert cache.read([_key(99)]) == [None]
    assert [number for number in _kept(cache, *range(8)) if number != 3] == [0, 1, 6, 7]


def test_the_checksum_is_the_crc32_of_key_and_value(tmp_path: Path) -> None:
    path = _store(tmp_path / "ab.sqlite", range(6))
    db = sqlite3.connect(path)
    rows = db.execute("SELECT key, crc, value FROM scores").fetchall()
    db.close()
    assert len(rows) == 6 and all(crc == zlib.crc32(key + value) for key, crc, value in rows)


def test_random_damage_never_gives_a_wrong_value_and_never_an_exception(tmp_path: Path) -> None:
    """Cuts, single flips and showers of them, over header, B-trees and values; what was lost is kept again."""
    whole = _store(tmp_path / "whole.sqlite", range(24)).read_bytes()
    draw, losses = random.Random(0), []
    for trial in range(90):
        content = bytearray(whole)
        for _ in range((0, 1, 60)[trial % 3]):
            content[draw.randrange(len(whole) if trial % 2 else 4 * PAGE)] ^= 1 << draw.randrange(8)
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "ab.sqlite").write_bytes(content if trial % 3 else content[: draw.randrange(len(whole))])
        cache = _cache(folder, "ab", 1)
        losses.append(24 - len(_kept(cache, *range(24))))
        cache.write(_items(*range(24)))
        _kept(cache, *range(24))
        cache.close()
    assert losses.count(0) < 60 and losses.count(24) > 20 and any(0 < loss < 24 for loss in losses)


def test_a_store_that_is_damaged_while_it_is_open_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut behind the back of two connections: whichever notices first removes it, and the other one follows."""
    first, second = (_cache(tmp_path, "ab", 1) for _ in range(2))
    first.write(_items(*range(24)))
    assert _kept(second, *range(24)) == list(range(24))
    for cache in (first, second):
        store = cache._own_store()
        assert store is not None
        store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # else the log would mend the cut
        store.db.execute("PRAGMA cache_size = 0")
    os.truncate(first.path, PAGE)
    for cache in (first, second, first, second):
        _kept(cache, *range(24))
        cache.write(_items(*range(24)))
    assert _kept(first, *range(24)) == _kept(second, *range(24)) == list(range(24))
    assert len(caplog.records) == 1 and "is not sound" in caplog.text


def _meet(cache: StoreCache, number: int, wait: Callable[[], None]) -> None:
    wait()
    cache.read([_key(number)])
    cache.write(_items(number))
    cache.close()


def test_of_processes_that_meet_a_spoilt_file_at_once_one_removes_it_and_none_anothers_work(tmp_path: Path) -> None:
    """What each writes after the meeting must be there, so nobody may remove the file that another has begun anew."""
    for round_ in range(5):
        folder = tmp_path / str(round_)
        folder.mkdir()
        (folder / "ab.sqlite").write_bytes(b"spoilt" * 1000)
        cache, barrier = _cache(folder, "ab", 1), FORK.Barrier(4)
        children = [FORK.Process(target=_meet, args=(cache, number, barrier.wait)) for number in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join(30)
        assert [child.exitcode for child in children] == [0] * 4
        assert _kept(cache, 0, 1, 2, 3) == [0, 1, 2, 3]


def test_a_folder_that_was_cleared_under_an_open_store_is_filled_again(tmp_path: Path) -> None:
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(1))
    for path in tmp_path.iterdir():
        path.unlink()
    cache.write(_items(2))
    assert _kept(_cache(tmp_path, "ab", 1), 1, 2) == [2]


@pytest.mark.parametrize("trouble", ["no folder", "folder at the file's place", "no locks", "read-only folder"])
def test_where_nothing_can_be_kept_it_says_so_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    folder = tmp_path / "folder"
    if trouble == "no folder":
        folder.write_text("a file")
    elif trouble == "folder at the file's place":
        (folder / "ab.sqlite").mkdir(parents=True)
    elif trouble == "no locks":
        (folder / "lock").mkdir(parents=True)
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write anywhere")
        folder.mkdir(mode=0o500)
    cache = _cache(folder, "ab", 1)
    for _ in range(3):
        cache.write(_items(1, 2))
        assert cache.read([_key(1), _key(2)]) == [None, None]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The reference cache {cache.path} cannot be used (")
    assert record.getMessage().endswith("); its scores are computed anew.")


def test_a_full_disk_ends_the_writing_but_not_the_reading(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """max_page_count makes SQLite say what it says of a full disk."""
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(*range(4)))
    store = cache._own_store()
    assert store is not None
    store.db.execute("PRAGMA max_page_count = 12")
    cache.write(_items(*range(12, 60)))
    cache.write(_items(4))
    assert _kept(cache, *range(60)) == [0, 1, 2, 3]
    (record,) = caplog.records
    assert record.getMessage() == f"The reference cache {cache.path} keeps nothing more: database or disk is full."


def test_the_wait_for_a_lock_that_is_never_given_back_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_cache, "_PATIENCE", 0.1)
    holder, cache = (_cache(tmp_path, "ab", 1) for _ in range(2))
    holder.write(_items(1))
    with holder._locked():
        cache.write(_items(2))
    assert "database is locked" in caplog.text
    assert _kept(holder, 1, 2) == [1]


def test_random_writes_never_pass_the_limit_on_disk_and_use_most_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Values of all sizes, of two references that take turns, in folders of 1 to 20 MB: sizes and blocks."""
    for seed in range(4):
        draw, folder, limit = random.Random(seed), tmp_path / str(seed), (1, 4, 10, 20)[seed] << 20
        caches = [_cache(folder, name, limit / 2**30) for name in ("aa", "bb")]
        for step in range(300):
            cache = caches[draw.randrange(2)]
            count, size = draw.choice([(20, 400), (8, 9_000), (2, 120_000)])
            cache.write({_key(1000 * step + index): draw.randbytes(size) for index in range(count)})
            assert _bytes_in(folder) <= limit
        assert _bytes_in(folder) > 0.35 * limit  # a store's share of the -wal is counted twice
        for cache in caches:
            cache.close()
        assert _bytes_in(folder) <= limit
    assert len(caplog.records) == 8 and "keeps nothing more: the limit of" in caplog.text


def test_the_copy_from_log_to_store_keeps_to_the_limit_too(tmp_path: Path) -> None:
    """24 MB hold 16 MB of log, or those and what is copied from them, but not 16 MB twice."""
    cache, most, value = _cache(tmp_path, "ab", 24 / 1024), 0, random.Random(0).randbytes(100_000)
    for number in range(240):
        cache.write({_key(number): value})
        most = max(most, _bytes_in(tmp_path))
    assert 8 << 20 < most <= 24 << 20


def test_a_large_write_leaves_no_large_log_behind(tmp_path: Path) -> None:
    cache, value = _cache(tmp_path, "ab", 1), random.Random(0).randbytes(1_000_000)
    cache.write({_key(number): value for number in range(40)})
    for number in range(40, 43):
        cache.write(_items(number))
    assert (tmp_path / "ab.sqlite-wal").stat().st_size <= 16 << 20


def test_the_least_recently_used_other_references_make_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Four stores of about 2 MB in 12 MB; the oldest by use, not by birth, go; then the own one stops growing."""
    big = {_key(number): random.Random(number).randbytes(100_000) for number in range(20)}
    limit = 12 / 1024
    for name in ("aa", "bb", "cc", "dd"):
        cache = _cache(tmp_path, name, limit)
        cache.write(big)
        cache.close()
    stamp = time.time() - 1000
    for age, name in enumerate(("aa", "bb", "cc", "dd")):
        os.utime(tmp_path / f"{name}.sqlite", (stamp + age, stamp + age))
    used = _cache(tmp_path, "aa", limit)
    assert used.read([_key(0)]) == [big[_key(0)]]  # so that aa is the youngest
    used.close()

    def stores() -> list[str]:
        return sorted(path.stem for path in tmp_path.glob("*.sqlite"))

    writer, seen = _cache(tmp_path, "ee", limit), [stores()]
    for number in range(100):
        writer.write({_key(number): random.Random(number).randbytes(100_000)})
        if stores() != seen[-1]:
            seen.append(stores())
    assert seen == [
        ["aa", "bb", "cc", "dd"],
        ["aa", "bb", "cc", "dd", "ee"],
        ["aa", "cc", "dd", "ee"],
        ["aa", "dd", "ee"],
        ["aa", "ee"],
        ["ee"],
    ]
    assert _bytes_in(tmp_path) <= 12 << 20
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"The reference cache {writer.path} keeps nothing more: the limit of 0.0117188 GiB is reached."
    ]
    kept = [value is not None for value in writer.read([_key(number) for number in range(100)])]
    assert 40 < sum(kept) < 100 and kept == sorted(kept, reverse=True)


def _hold_open(cache: StoreCache, ready: Callable[[], None], wait: Callable[[], None]) -> None:
    cache.write(_items(*range(24)))
    ready()
    wait()
    if _kept(cache, *range(24)) != list(range(24)):
        raise SystemExit(3)


def test_a_store_that_another_process_has_open_makes_no_room(tmp_path: Path) -> None:
    limit = 1.2 / 1024
    ready, done = SPAWN.Event(), SPAWN.Event()
    holder = _cache(tmp_path, "aa", limit)
    child = SPAWN.Process(target=_hold_open, args=(holder, ready.set, done.wait))
    child.start()
    assert ready.wait(30)
    writer = _cache(tmp_path, "bb", limit)
    writer.write(_items(*range(24)))
    assert holder.path.exists() and _kept(writer, *range(24)) == []
    done.set()
    child.join(30)
    assert child.exitcode == 0
    other = _cache(tmp_path, "cc", limit)
    other.write(_items(*range(24)))
    assert not holder.path.exists() and _kept(other, *range(24)) == list(range(24))


def test_a_store_that_loses_its_name_under_a_live_process_is_still_read(tmp_path: Path) -> None:
    cache = _cache(tmp_path, "aa", 1)
    cache.write(_items(*range(12)))
    reference_cache._remove(cache.path)
    assert _kept(cache, *range(12)) == list(range(12))
    cache.close()
    assert list(tmp_path.glob("aa*")) == []


def test_an_open_cache_pickles_copies_and_forks(tmp_path: Path) -> None:
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(1))
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):  # noqa: S301 - our own
        assert twin._store is None and _kept(twin, 1) == [1]
    child = FORK.Process(target=cache.write, args=(_items(2),))
    child.start()
    child.join(30)
    assert child.exitcode == 0 and _kept(cache, 1, 2) == [1, 2]


def _stay(cache: StoreCache, ready: Callable[[], None], wait: Callable[[], None]) -> None:
    cache.write(_items(2))
    ready()
    wait()
    cache.write(_items(3))
    cache.close()


def test_a_forked_childs_locks_are_its_own(tmp_path: Path) -> None:
    """The parent closes first. Did the child hold no lock, the parent would take the log away from under it."""
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(1))
    ready, done = FORK.Event(), FORK.Event()
    child = FORK.Process(target=_stay, args=(cache, ready.set, done.wait))
    child.start()
    assert ready.wait(30) and _kept(cache, 1, 2, 3) == [1, 2]
    cache.close()
    assert (tmp_path / "ab.sqlite-wal").exists()
    cache.write(_items(4))
    done.set()
    child.join(30)
    assert child.exitcode == 0 and _kept(cache, 1, 2, 3, 4) == [1, 2, 3, 4]
    cache.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ab.sqlite", "lock"]


def test_a_child_that_another_thread_forked_computes(tmp_path: Path) -> None:
    """Its parent's connection cannot be closed from that thread, so the child does without a cache."""
    cache = _cache(tmp_path, "ab", 1)
    cache.write(_items(1))

    def read_nothing() -> None:
        cache.write(_items(2))
        raise SystemExit(len(_kept(cache, 1, 2)))

    child = FORK.Process(target=read_nothing)
    thread = threading.Thread(target=child.start)
    thread.start()
    thread.join()
    child.join(30)
    assert child.exitcode == 0 and _kept(cache, 1, 2) == [1]


def test_another_thread_is_the_callers_mistake_and_no_damage(tmp_path: Path) -> None:
    cache, errors = _cache(tmp_path, "ab", 1), []
    cache.write(_items(1))

    def use() -> None:
        try:
            cache.read([_key(1)])
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 1 and _kept(cache, 1) == [1]


def _hammer(cache: StoreCache, seed: int, rounds: int) -> tuple[int, int]:
    """Read random keys and write what is missing; (wrong values, values that were missing)."""
    draw, wrong, missing = random.Random(seed), 0, 0
    for _ in range(rounds):
        wanted = _items(*draw.sample(range(60), 4))
        found = dict(zip(wanted, cache.read(list(wanted)), strict=True))
        wrong += sum(value not in (None, wanted[key]) for key, value in found.items())
        lost: Mapping[bytes, bytes] = {key: wanted[key] for key, value in found.items() if value is None}
        missing += len(lost)
        cache.write(lost)
    cache.close()
    return wrong, missing


def test_several_processes_read_and_write_one_store_at_once(tmp_path: Path) -> None:
    cache = _cache(tmp_path, "ab", 1)
    with SPAWN.Pool(3) as pool:
        results = pool.starmap(_hammer, [(cache, seed, 150) for seed in range(3)])
    assert sum(wrong for wrong, _ in results) == 0
    assert 60 <= sum(missing for _, missing in results) < 180  # each value once, but for some that two made at once
    assert _kept(cache, *range(60)) == list(range(60))


def _write_for_ever(cache: StoreCache, seed: int) -> None:
    draw = random.Random(seed)
    while True:
        cache.write(_items(*draw.sample(range(6000), 5)))


def _killed(cache: StoreCache, round_: int) -> None:
    """Two processes that write to the closed cache, killed 50 to 300 ms after the first write."""
    children = [FORK.Process(target=_write_for_ever, args=(cache, 10 * round_ + index)) for index in range(2)]
    for child in children:
        child.start()
    log, deadline = cache.path.with_name("ab.sqlite-wal"), time.monotonic() + 30
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep((0.05, 0.15, 0.3)[round_])
    for child in children:
        child.kill()
        child.join()


def test_killed_in_the_middle_of_writing_it_loses_nothing_and_leaves_no_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, before = _cache(tmp_path, "ab", 1), [6000]
    for round_ in range(3):
        cache.write(_items(6000 + round_))
        cache.close()
        _killed(cache, round_)
        kept = _kept(cache, *range(7000))
        assert set(before) <= set(kept)
        before = kept
    assert len(before) > 3 and not caplog.records


@pytest.mark.parametrize("how", ["cut", "scrawled over", "another's"])
def test_killed_and_then_its_log_damaged_it_never_lies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Where a copy from log to store was under way, the store may be beyond repair: then it is begun anew."""
    cache = _cache(tmp_path, "ab", 1)
    for round_ in range(3):
        _killed(cache, round_)
        log = tmp_path / "ab.sqlite-wal"
        content = log.read_bytes()
        half = content[: len(content) // 2]
        log.write_bytes({"cut": half, "scrawled over": half + random.randbytes(len(half))}.get(how, half[::-1]))
        _kept(cache, *range(7000))
        cache.write(_items(6000 + round_))
        assert _kept(cache, 6000 + round_) == [6000 + round_]
        cache.close()
    assert all("database disk image is malformed" in record.getMessage() for record in caplog.records)


def _write_when_told(cache: StoreCache, ready: Callable[[], None], wait: Callable[[], None]) -> None:
    cache.read([_key(1)])
    ready()
    wait()
    cache.write(_items(2))


def test_writers_wait_for_each_other_and_readers_for_nobody(tmp_path: Path) -> None:
    cache, ready, go = _cache(tmp_path, "ab", 1), FORK.Event(), FORK.Event()
    cache.write(_items(1))
    child = FORK.Process(target=_write_when_told, args=(cache, ready.set, go.wait))
    child.start()
    assert ready.wait(30) and _kept(cache, 1) == [1]
    with cache._locked():
        go.set()
        child.join(0.3)
        assert child.is_alive() and _kept(cache, 1, 2) == [1]
    child.join(30)
    assert child.exitcode == 0 and _kept(cache, 1, 2) == [1, 2]
