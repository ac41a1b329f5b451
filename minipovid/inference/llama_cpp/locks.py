"""Who may use llama.cpp: one thread at a time, and one answer at a time, so that they do not push each other out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minipovid.common.errors import MinipovidError


class Computing:
    """llama.cpp for one thread at a time, and for none once it is closed. Who is inside may enter again."""

    def __init__(self) -> None:
        self._lock, self._closed = threading.RLock(), False

    def __enter__(self) -> None:
        """Wait, and enter. Raises MinipovidError where it is closed."""
        self._lock.acquire()
        if self._closed:
            self._lock.release()
            raise MinipovidError("The runtime is closed; open it again.")

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def close(self, free: Callable[[], None]) -> None:
        """Free what is computed with as soon as nobody is inside."""
        with self._lock:
            self._closed = True
            free()


class Locks:
    """A lock that any thread may give back, and that a thread which holds it need not wait for.

    An answer that was left half-read must not keep its own reader waiting for ever: it gives way, and if it is read on
    after all, it brings its text back to memory. `computing` is what keeps llama.cpp to one caller; a turn only keeps
    several callers from taking steps in alternation. Who is computing never waits for a turn.
    """

    def __init__(self) -> None:
        self.computing = Computing()
        self._lock = threading.Lock()
        self._holder: int | None = None  # the thread that took it

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, and hold it."""
        if self._holder == threading.get_ident():
            yield
            return
        self._lock.acquire()
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self._lock.release()
