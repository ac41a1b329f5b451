"""How far the making is: a bar with rate, time to go and cost on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time

from tqdm import tqdm

from minipovid.pairs.make.makers import Maker

EVERY = 30.0  # seconds between plain lines

_log = logging.getLogger(__name__)


class MakeProgress:
    """Counts rows, from any thread. `total` None: nothing is shown."""

    def __init__(self, maker: Maker, total: int | None) -> None:
        self._maker, self._total = maker, total
        self._start = self._last_line = time.monotonic()
        self._rows = self._new = 0
        self._lock = threading.Lock()
        self._bar = tqdm(total=total, desc="pairs", unit="row", disable=total is None or not sys.stderr.isatty())

    def row(self, new: bool) -> None:
        """One row more; `new` where work was done for it in this run."""
        with self._lock:
            self._rows += 1
            self._new += new
            if not self._bar.disable:
                self._bar.set_postfix_str(self._spent(), refresh=False)
            self._bar.update()
            if self._bar.disable and self._total is not None and time.monotonic() > self._last_line + EVERY:
                self._last_line = time.monotonic()
                rate = self._new / (self._last_line - self._start)
                left = f"{(self._total - self._rows) / rate / 60:.0f} minutes to go" if rate else "nothing made yet"
                _log.info("%d of %d rows, %.1f a second, %s, %s", self._rows, self._total, rate, left, self._spent())

    def close(self) -> None:
        self._bar.close()

    def _spent(self) -> str:
        spent = self._maker.spent()
        cost = self._maker.cost(spent)
        return f"{spent.requests} requests" + ("" if cost is None else f", cost {cost:.2f}")
