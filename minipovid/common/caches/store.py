"""A bounded, shared, distrustful store of byte strings by 32-byte key: one SQLite file for each origin of values.

    folder/lock              whoever writes, opens or removes a store holds this, of all processes one at a time
           <origin>.sqlite   scores(key, crc, value); -wal and -shm stand beside it while a process has it open

A value is costly and never changes. What SQLite promises is used: several processes read and write at once, and a
killed one loses no more than its last transaction. What it does not promise is checked: a CRC32 over key and value
finds the flipped bits that SQLite would hand out.

Every way in which a store can fail (damaged or foreign file, full disk, read-only folder, a file system without locks)
costs time and one warning, never a wrong value. Runs that share a folder should share a limit.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

_SCHEMA = "CREATE TABLE scores (key BLOB PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL)"
_PATIENCE = 60.0  # seconds that a process waits for another's turn to end
_PAGE = 16384  # bytes; measured: as quick for small values as the default of 4096, a third quicker to write large ones
_LOG = 16 << 20  # bytes of -wal after which its pages are copied to the store
_GIB = 1 << 30
_ROW = 256  # bytes that a value takes besides itself: key twice, checksum, the B-trees' own
# What SQLite says of a damaged file (its subclass OperationalError: the system refuses), and what Python says where
# SQLite's own message repeats damaged text.
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
T = TypeVar("T")


class StoreCache:
    """The store of one origin. One object per thread; it pickles and forks, and all share the file."""

    def __init__(self, folder: Path, kind: str, content: str, origin: str, limit_gib: float) -> None:
        """`origin` names what the values come from, in hex digits; `limit_gib` is for all stores in `folder` together.

        Warnings name the cache by its `kind` and what is kept there by `content`.
        """
        self.kind, self.content = kind, content
        self.path = folder / f"{origin}.sqlite"
        self.limit_gib = limit_gib
        self._store: _Store | None = None
        self._reads = self._writes = limit_gib > 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None}  # the other process opens its own

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is kept under each key; None where nothing is, or nothing sound."""
        values = self._try(lambda: self._find(keys)) if self._reads else None
        return [None] * len(keys) if values is None else values

    def write(self, items: Mapping[bytes, bytes]) -> None:
        """Keep all of `items`, in place of what was kept under their keys; or none, where they do not fit."""
        if not (self._writes and items):
            return
        try:
            self._try(lambda: self._keep(items))
        except _NoMore as reason:
            self._writes = False
            log.warning("The %s cache %s keeps nothing more: %s.", self.kind, self.path, reason)

    def close(self) -> None:
        """Give the file back; the next read or write opens it again."""
        if self._store is not None and self._store.process == os.getpid():
            self._store.db.close()
            self._store = None

    def _try(self, act: Callable[[], T]) -> T | None:
        """act(), or None where the file is damaged, which is then removed, or where the system says no."""
        try:
            return act()
        except (sqlite3.OperationalError, OSError) as error:
            self._give_up(error)
        except sqlite3.ProgrammingError:
            raise  # a mistake of the caller, such as another thread's connection
        except _DAMAGE as error:
            self._begin_anew(error)
        return None

    def _give_up(self, error: Exception) -> None:
        self._reads = self._writes = False
        sentence = "The %s cache %s cannot be used (%s); its %s are computed anew."
        log.warning(sentence, self.kind, self.path, error, self.content)

    def _begin_anew(self, error: Exception) -> None:
        """Remove the open store, which is damaged, unless another process has done so before."""
        try:
            with self._locked():
                if self._store is None:
                    raise error  # it could not even be made
                if self._store.is_at(self.path):
                    self._discard(error)
            self.close()
        except (*_DAMAGE, OSError) as worse:
            self._give_up(worse)

    def _discard(self, error: Exception) -> None:
        """Call it locked."""
        log.warning("The %s cache %s is not sound (%s); it is begun anew.", self.kind, self.path, error)
        _remove(self.path)

    def _find(self, keys: Sequence[bytes]) -> list[bytes | None]:
        store = self._own_store()
        if store is None:
            if not self.path.exists():  # nothing was ever kept: a reader makes no file
                return [None] * len(keys)
            with self._locked():
                store = self._open()
        return [store.find(key) for key in keys]

    def _keep(self, items: Mapping[bytes, bytes]) -> None:
        """Raises _NoMore."""
        with self._locked():
            store = self._own_store()
            if store is None or not store.is_at(self.path):  # somebody may have cleared the folder
                store = self._open()
            if not self._has_room(2 * _PAGE + sum(_growth(len(value)) for value in items.values())):
                raise _NoMore(f"the limit of {self.limit_gib:g} GiB is reached")
            try:
                store.keep(items)
            except sqlite3.OperationalError as error:  # a full disk; what is kept can still be read
                raise _NoMore(error) from None

    def _own_store(self) -> _Store | None:
        """The open store, if there is one."""
        if self._store is not None and self._store.process != os.getpid():  # see _close_before_fork
            raise sqlite3.OperationalError("another thread had it open when this process was forked")
        return self._store

    def _open(self) -> _Store:
        """The store at the path, which counts as use; made where there is none, or no sound one. Call it locked."""
        self.close()
        try:
            self._store = _Store(self.path)
        except sqlite3.OperationalError:
            raise  # what cannot be opened now may yet be sound
        except _DAMAGE as error:
            self._discard(error)
            self._store = _Store(self.path)
        _OPEN.add(self)
        os.utime(self.path)
        return self._store

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes. SQLite's own lock on an empty file: it works wherever the store can."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = sqlite3.connect(self.path.with_name("lock"), timeout=_PATIENCE, isolation_level=None)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            yield

    def _has_room(self, growth: int) -> bool:
        """Does the folder hold `growth` bytes more, once the least recently used other stores are gone?

        They are written twice: to the -wal and, later, to the store. Call it locked.
        """
        sizes = {path: _size(path) for path in self.path.parent.glob("*.sqlite")}
        room = int(self.limit_gib * _GIB) - sum(sizes.values()) - 2 * growth
        for other in sorted(sizes.keys() - {self.path}, key=lambda path: path.stat().st_mtime_ns):
            if room < 0 and _nobody_has_open(other):
                log.info("The %s cache %s makes room for %s.", self.kind, other, self.path.name)
                _remove(other)
                room += sizes[other]
        return room >= 0


class _NoMore(Exception):
    """Nothing can be added; says why."""


class _Foreign(sqlite3.DatabaseError):
    """A SQLite file, but not a store of ours."""


_OPEN: weakref.WeakSet[StoreCache] = weakref.WeakSet()  # caches that have, or had, a store open


def _close_before_fork() -> None:
    """SQLite remembers in memory which locks its process holds: a fork copies the memory, but not the locks.

    A child that opened the file beside an inherited connection would believe itself safe and spoil it. So nothing is
    inherited: whoever needs a store after the fork opens it. What another thread has open cannot be closed here.
    """
    for cache in list(_OPEN):
        with suppress(sqlite3.ProgrammingError):
            cache.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(before=_close_before_fork)


class _Store:
    """An open SQLite file of values.

    Raises sqlite3.DatabaseError where it is not a sound one of ours, its subclass OperationalError where it cannot be
    opened at all. Make it locked.
    """

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self.db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
        try:
            self._set_up()
            status = path.stat()
        except BaseException:
            self.db.close()
            raise
        self.identity = status.st_dev, status.st_ino

    def _set_up(self) -> None:
        self.db.text_factory = bytes  # damage may make any column a text, in no encoding
        self.db.execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")  # a power cut may cost the last transactions, never the file
        self.db.execute(f"PRAGMA wal_autocheckpoint = {_LOG // _PAGE}")
        self.db.execute(f"PRAGMA journal_size_limit = {_LOG}")
        schema = self.db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        if not schema:
            self.db.execute(_SCHEMA)
        elif schema != [(_SCHEMA.encode(),)]:
            raise _Foreign("it holds other tables")

    def is_at(self, path: Path) -> bool:
        """Has nobody removed it or put another file in its place?"""
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        return self.identity == (status.st_dev, status.st_ino)

    def find(self, key: bytes) -> bytes | None:
        """The value, if it is there and sound."""
        for crc, value in self.db.execute("SELECT crc, value FROM scores WHERE key = ?", (key,)).fetchall():
            if isinstance(value, bytes) and crc == _checksum(key, value):
                return value
        return None

    def keep(self, items: Mapping[bytes, bytes]) -> None:
        """All or nothing."""
        rows = [(key, _checksum(key, value), value) for key, value in items.items()]
        with self.db:  # commits, or rolls back
            self.db.execute("BEGIN IMMEDIATE")
            self.db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _growth(value: int) -> int:
    """Bytes by which a value of so many makes a store grow, at most: a page may stay half empty beside it."""
    return value + min(value, _PAGE) + _ROW


def _files(store: Path) -> list[Path]:
    return [store.with_name(store.name + ending) for ending in ("", "-wal", "-shm")]


def _size(store: Path) -> int:
    """Bytes on disk of a store, counting what its -wal holds as copied to the store already."""
    total = 0
    for path in _files(store):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        size = max(status.st_size, getattr(status, "st_blocks", 0) * 512)
        total += 2 * size if path.name.endswith("-wal") else size
    return total


def _nobody_has_open(store: Path) -> bool:
    """SQLite lets a file leave WAL mode only where no other connection, of any process, has it open."""
    with closing(sqlite3.connect(store, timeout=0, isolation_level=None)) as db:
        try:
            db.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            return False
        except _DAMAGE:
            return True
    return True


def _remove(store: Path) -> None:
    """A process that has the file open keeps it, nameless, and loses nothing but what it adds. Call it locked."""
    for path in _files(store):  # the store first: SQLite ignores a -wal beside an empty store, never the reverse
        path.unlink(missing_ok=True)
