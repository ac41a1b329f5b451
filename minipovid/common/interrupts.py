"""Ctrl-C heard where it does no harm: between two steps, two results, two pieces of an answer. SIGTERM heard at all.

    with interrupts.deferred(lambda: pressed.append(True)):
        ...                                     # looks at `pressed` when it can stop
    with interrupts.unwound():
        ...                                     # SIGTERM ends it by way of every `finally`

For the main thread, the only one that may set a handler.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def deferred(note: Callable[[], object]) -> Iterator[None]:
    """The first Ctrl-C calls `note` and interrupts nothing; a second one interrupts at once, whatever runs."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        note()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def unwound() -> Iterator[None]:
    """SIGTERM raises SystemExit (143, as a shell tells it), so that temporary folders are removed on the way out."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
