"""Work on many items at once, items taken one by one as hands get free: memory does not grow with their number."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from minipovid.common import interrupts

Item = TypeVar("Item")
Result = TypeVar("Result")

GRACE = 10.0  # seconds that what is in hand gets to come home after Ctrl-C: it was paid for


class Pool(Generic[Item, Result]):
    """`workers` threads that turn items into results; an error of one is raised where the results are read.

        with Pool(work, items, workers=16, stop=teacher.stop) as pool:
            for result in pool.results():
                journal.add(result)

    Ctrl-C is heard between two results, so that none gets lost on its way into the journal: no more items are taken,
    `stop` is called, what comes home within GRACE seconds is still given out, and the `with` ends with
    KeyboardInterrupt. A second Ctrl-C interrupts at once. The threads are daemons: a request that hangs does not keep
    the program from ending.
    """

    def __init__(
        self,
        work: Callable[[Item], Result],
        items: Iterator[Item],
        workers: int,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self._work, self._items, self._stop = work, items, stop
        self._taking = threading.Lock()
        self._closed = threading.Event()
        self._done: SimpleQueue[tuple[Result] | BaseException | None] = SimpleQueue()  # None: a worker went home
        self._there = workers
        self._hearing = ExitStack()
        self._interrupted = False

    def __enter__(self) -> Pool[Item, Result]:
        mine = threading.current_thread() is threading.main_thread()
        if mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._hearing.enter_context(interrupts.deferred(self._interrupt))
        for _ in range(self._there):
            threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()
        self._hearing.close()
        if self._interrupted and kind is None:
            raise KeyboardInterrupt

    def close(self) -> None:
        """No more items are taken; those in hand are finished."""
        self._closed.set()

    def results(self) -> Iterator[Result]:
        """Each result as it comes, until every worker has gone home or, after Ctrl-C, GRACE is over.

        After an error no more items are taken; it is raised when what was in hand is finished.
        """
        first: BaseException | None = None
        end: float | None = None
        while self._there:
            try:
                message = self._done.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except Empty:
                break
            if message is None:
                self._there -= 1
            elif isinstance(message, KeyboardInterrupt):
                self.close()
                self._stop()
                end = time.monotonic() + GRACE
            elif isinstance(message, BaseException):
                self.close()
                first = first or message
            else:
                yield message[0]
        if first is not None:
            raise first

    def _interrupt(self) -> None:
        self._interrupted = True
        self._done.put(KeyboardInterrupt())  # the one way to wake the reader that a signal handler may use

    def _serve(self) -> None:
        try:
            for item in iter(self._take, None):
                self._done.put((self._work(item[0]),))
        except BaseException as error:  # handed to the reader of the results, whatever it is
            self._done.put(error)
        finally:
            self._done.put(None)

    def _take(self) -> tuple[Item] | None:
        with self._taking:
            if self._closed.is_set():
                return None
            for item in self._items:
                return (item,)
            self.close()
            return None
