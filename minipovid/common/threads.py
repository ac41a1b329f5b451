"""The next item is made while the last one is used: disk and processor work at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, each made in a thread of its own one step before it is asked for.

    What making one raises is raised here, in its turn. Two items are in memory at a time.
    """
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


@contextmanager
def one_core_each() -> Iterator[None]:
    """Threads started within compute on one core each: blocks are small, and on a busy machine torch's threads would
    spend their time waiting for each other (measured: 90 s of two cores for what takes one of them 3 s)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
