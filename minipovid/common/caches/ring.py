"""A bounded, shared, distrustful store of equal-sized float16 arrays: one ring file, the oldest record out first.

    <kind>-677376.ring = header | table: one entry per slot | slots of 677,376 bytes each

Insertion n goes to slot n modulo the slot count, so the oldest record is overwritten and the file never grows past its
first size, which lies below the limit. The file is sparse: it takes disk only as it fills. Readers map the table; they
check key and checksum of what they copied, so a record that is being overwritten, torn by a kill or damaged
on disk is a miss, never an answer. Writers, of any process, take turns by flock on a file beside it.

Every way in which a cache can fail (foreign or cut file, full disk, read-only folder) costs time and one warning,
never a wrong array. Runs that share a folder should share a limit: each makes the file anew where it finds another's.
Without fcntl (Windows) nothing is kept and every array is computed.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

VERSION = 1
_GEOMETRY = struct.Struct("<16sIIQQ")  # magic, version, bytes of a table entry, bytes of a record, slots
_COUNT = struct.Struct("<Q")  # insertions so far, at _COUNT_AT
_COUNT_AT = 64
_HEADER = 4096  # bytes
_ENTRY = np.dtype([("key", "V32"), ("crc", "<u4"), ("full", "<u4"), ("unused", "V24")])
_GIB = 1 << 30


def slots_within(limit_gib: float, record: int) -> int:
    """How many records of `record` bytes fit; a thousandth is left to the file system's own blocks."""
    room = int(limit_gib * _GIB * 0.999) - _HEADER - 4096  # the last block may be counted whole
    return max(room // (record + _ENTRY.itemsize), 0)


class RingCache:
    """Arrays of one shape by 32-byte key. One per process and thread; pickles and forks, and all share the file."""

    def __init__(self, folder: Path, kind: str, content: str, shape: tuple[int, ...], limit_gib: float) -> None:
        """`kind` names the cache in the file's name, its header and warnings; `content` is what those say is kept."""
        self.kind, self.content, self.shape = kind, content, shape
        self.record = 2 * math.prod(shape)
        self.slots = slots_within(limit_gib, self.record)
        self.path = folder / f"{kind}-{self.record}.ring"
        self._ring: _Ring | None = None
        self._off = self.slots == 0 or fcntl is None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ring": None}  # the other process opens its own

    def get(self, key: bytes, make: Callable[[], npt.NDArray[np.float16]]) -> npt.NDArray[np.float16]:
        """The array kept under `key`, or `make()`, which is kept. The caller may write to it."""
        record = self._try(lambda: self._find(key))
        if record is not None:
            return np.frombuffer(record, np.dtype("<f2")).reshape(self.shape).astype(np.float16, copy=False)
        array = make()
        if array.shape != self.shape or array.dtype != np.float16:
            raise ValueError(f"made {array.dtype} {array.shape} for a cache of float16 {self.shape}")
        self._try(lambda: self._insert(key, array.astype("<f2", copy=False).tobytes()))
        return array

    def _try(self, act: Callable[[], bytearray | None]) -> bytearray | None:
        """act(), or None for ever after the first time that the operating system says no."""
        if self._off:
            return None
        try:
            return act()
        except OSError as error:
            self._off = True
            sentence = "The %s cache %s cannot be used (%s); %s are computed anew."
            log.warning(sentence, self.kind, self.path, error, self.content)
            return None

    def _find(self, key: bytes) -> bytearray | None:
        if self._ring is None or not self._ring.is_whole():
            with self._locked():
                self._ring = self._open()
        return self._ring.read(key)

    def _insert(self, key: bytes, record: bytes) -> None:
        with self._locked():
            if self._ring is None or not self._ring.is_whole() or not self._ring.is_at(self.path):
                self._ring = self._open()
            if self._ring.read(key) is None:  # else another worker was first
                self._ring.write(key, record)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes. The lock file is opened each time: a lock is shared with forked copies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing alone would leave it to a copy that another thread forked
        finally:
            os.close(lock)

    def _open(self) -> _Ring:
        """The ring at the path, made anew where there is none or not ours. Call it locked."""
        try:
            return _Ring(self.path, self.kind, self.record, self.slots)
        except FileNotFoundError:
            pass
        except _Foreign as error:
            log.warning("The %s cache %s %s; it is begun anew.", self.kind, self.path, error)
        fresh = self.path.with_suffix(".tmp")
        with fresh.open("wb") as file:
            file.write(_geometry(self.kind, self.record, self.slots))
            file.truncate(_HEADER + self.slots * (_ENTRY.itemsize + self.record))
        os.replace(fresh, self.path)  # never in place: another process may have the old file mapped
        return _Ring(self.path, self.kind, self.record, self.slots)


class _Foreign(Exception):
    """Not a ring of this geometry; says why."""


def _geometry(kind: str, record: int, slots: int) -> bytes:
    """The first bytes of a file; the first 16 of them say the kind, cut or padded."""
    return _GEOMETRY.pack(f"minipovid {kind}\n".encode(), VERSION, _ENTRY.itemsize, record, slots)


class _Ring:
    """An open ring file. Reads through the map, writes through the descriptor: a full disk is then an error, no SIGBUS.

    Raises _Foreign where the file is not a whole ring of this kind, of `slots` records of `record` bytes.
    """

    def __init__(self, path: Path, kind: str, record: int, slots: int) -> None:
        self.kind, self.record, self.slots = kind, record, slots
        self.size = _HEADER + slots * (_ENTRY.itemsize + record)
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._check()
        self.map = mmap.mmap(self.fd, self._record_at(0), access=mmap.ACCESS_READ)
        self.where: dict[bytes, int] = {}  # key -> slot, as far as `seen` insertions
        self.keys: dict[int, bytes] = {}  # slot -> key
        self.seen = 0

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def _check(self) -> None:
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            raise _Foreign("is not a file")
        header, ours = os.pread(self.fd, _GEOMETRY.size, 0), _geometry(self.kind, self.record, self.slots)
        if header[:16] != ours[:16]:
            raise _Foreign(f"is not a {self.kind} cache")
        if header != ours:
            raise _Foreign("was made by another version or under another limit")
        size = os.fstat(self.fd).st_size
        if size != self.size:
            raise _Foreign(f"has {size} bytes instead of {self.size}")

    def is_whole(self) -> bool:
        """Still the size that was mapped? Reading past the end of a file that was cut would kill the process."""
        return os.fstat(self.fd).st_size == self.size

    def is_at(self, path: Path) -> bool:
        """Has nobody put another file in its place?"""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(path))
        except FileNotFoundError:
            return False

    def read(self, key: bytes) -> bytearray | None:
        """A copy of the record, if it is there and sound."""
        self._refresh()
        slot = self.where.get(key)
        if slot is None:
            return None
        start = self._entry_at(slot)
        entry = np.frombuffer(self.map[start : start + _ENTRY.itemsize], _ENTRY)[0]
        record = bytearray(os.pread(self.fd, self.record, self._record_at(slot)))
        sound = entry["full"] == 1 and entry["key"].tobytes() == key and entry["crc"] == _checksum(key, record)
        return record if sound else None

    def write(self, key: bytes, record: bytes) -> None:
        """Over the oldest record. The entry is emptied first and filled last; call it locked."""
        count = self._count()
        slot = count % self.slots
        entry = np.zeros((), _ENTRY)
        self._pwrite(entry.tobytes(), self._entry_at(slot))
        self._pwrite(record, self._record_at(slot))
        entry["key"], entry["crc"], entry["full"] = np.void(key), _checksum(key, record), 1
        self._pwrite(entry.tobytes(), self._entry_at(slot))
        self._pwrite(_COUNT.pack((count + 1) % (1 << 64)), _COUNT_AT)

    def _pwrite(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:  # a write may stop half way, as on a disk that just got full
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written

    def _refresh(self) -> None:
        """Learn the insertions since the last look; a count that makes no sense costs records, never an answer."""
        count = self._count()
        for number in range(max(self.seen, count - self.slots), count):
            slot = number % self.slots
            start = self._entry_at(slot)
            key, replaced = self.map[start : start + 32], self.keys.get(slot)
            if replaced is not None and self.where.get(replaced) == slot:
                del self.where[replaced]
            self.where[key] = slot
            self.keys[slot] = key
        self.seen = count

    def _count(self) -> int:
        return int(_COUNT.unpack_from(self.map, _COUNT_AT)[0])

    def _entry_at(self, slot: int) -> int:
        return _HEADER + slot * _ENTRY.itemsize

    def _record_at(self, slot: int) -> int:
        return _HEADER + self.slots * _ENTRY.itemsize + slot * self.record


def _checksum(key: bytes, record: bytes | bytearray) -> int:
    return zlib.crc32(record, zlib.crc32(key))
