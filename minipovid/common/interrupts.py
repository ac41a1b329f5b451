"""Ctrl-C heard where it does no harm: between two steps, two results, two pieces of an answer.

    with interrupts.deferred(lambda: pressed.append(True)):
        ...                                     # looks at `pressed` when it can stop

For the main thread, the only one that may set a handler.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
