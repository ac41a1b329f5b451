"""What can heal, and how long to wait for it: bounded attempts, exponential backoff with full jitter, Retry-After kept.

Full jitter: before attempt k + 1 one waits a random time between 0 and min(CAP, FIRST 2^(k-1)) seconds, so that sixteen
requests that failed together do not come back together. Where the server says when to come back, that is the least, and
it holds for every request: the others were going to be refused too.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

HEALING = frozenset({408, 425, 429})  # and 5xx, but for 501: the server cannot do it and will not be able to
QUOTA = "insufficient_quota"  # a 429 that no wait heals
PATIENCE = 300.0  # seconds; a server that asks for more is out for the day


class Trouble(Exception):
    """A request that got no answer: why, and what the server said of it."""

    def __init__(self, why: str, *, status: int = 0, code: str = "", wait: float | None = None) -> None:
        super().__init__(why)
        self.status, self.code, self.wait = status, code, wait  # status 0: nothing came that was HTTP

    @property
    def heals(self) -> bool:
        return not self.status or heals(self.status)


def heals(status: int) -> bool:
    return status in HEALING or (status >= 500 and status != 501)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, `Retry-After` in seconds or as a date. None: it did not.

    `now` is seconds since 1970. What makes no sense counts as not said.
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after")
    seconds = _number(milliseconds)
    if seconds is not None:
        return seconds / 1000
    if value is None or (seconds := _number(value)) is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    here = datetime.fromtimestamp(time.time() if now is None else now, timezone.utc)
    return max(0.0, (aware - here).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


@dataclass
class Pause:
    """The waits of all requests to one server. `stopped` wakes whoever waits."""

    first: float = 1.0  # seconds
    cap: float = 60.0  # seconds
    clock: Callable[[], float] = time.monotonic
    stopped: threading.Event = field(default_factory=threading.Event)
    draw: Callable[[float, float], float] = random.uniform
    _not_before: float = 0.0

    def backoff(self, failures: int, asked_for: float | None) -> float:
        """Seconds to wait after so many failures of a request, one at least."""
        jitter = self.draw(0.0, min(self.cap, self.first * 2.0 ** (failures - 1)))
        return jitter if asked_for is None else asked_for + min(jitter, self.first)

    def hold(self, seconds: float) -> None:
        """Nobody sends for so long."""
        self._not_before = max(self._not_before, self.clock() + seconds)

    def wait(self, seconds: float) -> None:
        """Sleep, or less where somebody stops the work."""
        self.stopped.wait(seconds)

    def gate(self) -> None:
        """Wait until sending is allowed again."""
        while (left := self._not_before - self.clock()) > 0 and not self.stopped.is_set():
            # A little apart, so that those who waited together do not send together.
            self.wait(left + self.draw(0.0, min(self.first, left) / 10))
