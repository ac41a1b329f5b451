"""What the teacher answered already, kept the moment it arrives: whoever is killed asks no finished request again.

One SQLite file, keyed by SHA-256 of everything that decides an answer: address, model, parameters, prompt version,
messages with their pictures' digests, schema. It holds answers and their usage, never questions, and never the key to
the server. Several programs may share it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import Reply, Stopped, Usage

_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, reply TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS dialects (server TEXT PRIMARY KEY, dropped TEXT NOT NULL) WITHOUT ROWID",
)


def key_of(content: Any) -> bytes:
    """32 bytes for anything that is JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True).encode("ascii")).digest()


class Cache:
    """Thread-safe. Without a path it lives in memory, and only spares asking twice at once."""

    def __init__(self, path: Path | None) -> None:
        """Raises MinipovidError where the file is no such cache, or cannot be written."""
        self.path = path
        self._lock = threading.Lock()
        self._locks: dict[bytes, threading.Lock] = {}
        self._waiting: dict[bytes, int] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
            # Write-ahead: a commit costs no fsync and survives the death of the process, if not that of the machine.
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", *_TABLES):
                self._file.execute(statement)
        except sqlite3.DatabaseError as error:
            raise MinipovidError(self._sentence(error)) from None

    @contextmanager
    def alone(self, key: bytes) -> Iterator[None]:
        """Whoever wants the same answer at the same time waits here, and then finds it."""
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
            self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._locks[key], self._waiting[key]

    def get(self, key: bytes) -> Reply | None:
        row = self._one("SELECT reply FROM answers WHERE key = ?", key)
        if row is None:
            return None
        content = json.loads(row)
        return Reply(**{**content, "usage": Usage(**content["usage"]), "cached": True})

    def put(self, key: bytes, reply: Reply) -> None:
        self._run("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, json.dumps(asdict(reply)))

    def dropped(self, server: str) -> frozenset[str]:
        """What this server was found not to know, of what a request may hold."""
        row = self._one("SELECT dropped FROM dialects WHERE server = ?", server)
        return frozenset(json.loads(row)) if row else frozenset()

    def drop(self, server: str, dropped: frozenset[str]) -> None:
        self._run("INSERT OR REPLACE INTO dialects VALUES (?, ?)", server, json.dumps(sorted(dropped)))

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _one(self, statement: str, *values: Any) -> str | None:
        with self._stopping_if_lost(), self._lock, closing(self._file.execute(statement, values)) as cursor:
            row = cursor.fetchone()
        return None if row is None else str(row[0])

    def _run(self, statement: str, *values: Any) -> None:
        with self._stopping_if_lost(), self._lock:
            self._file.execute(statement, values)

    @contextmanager
    def _stopping_if_lost(self) -> Iterator[None]:
        """An answer that cannot be kept would be paid for again: the work ends. Raises Stopped."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise Stopped(self._sentence(error), mend=True) from None

    def _sentence(self, error: Exception) -> str:
        return f"The answers in {self.path} cannot be kept ({error}); make room there, or move the file away."
