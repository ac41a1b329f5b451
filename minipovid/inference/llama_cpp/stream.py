"""From the bytes of tokens to pieces of text: no half character, no stop text, no space at either end."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Stream:
    """Text as it grows. The whole of it is stripped: spaces wait until something follows them."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""  # may be the beginning of a stop text, or spaces before the end
        self._started = False
        self.stopped = False  # did a stop text come?

    def add(self, raw: bytes) -> str:
        """More bytes; the text that can be let out, which may be none."""
        if self.stopped:
            return ""
        self._pending += self._decoder.decode(raw)
        starts = [at for at in (self._pending.find(text) for text in self._stop) if at >= 0]
        if starts:
            self.stopped = True
            self._pending = self._pending[: min(starts)]
            return self.end()
        return self._let_out(len(self._pending) - self._waiting())

    def end(self) -> str:
        """The rest, when no more bytes come. A character of which some bytes are missing is left out."""
        self._pending = self._pending.rstrip()
        return self._let_out(len(self._pending))

    def _waiting(self) -> int:
        """Letters at the end that a stop text may begin with, and the spaces before them."""
        ends = (
            length
            for text in self._stop
            for length in range(min(len(text) - 1, len(self._pending)), 0, -1)
            if self._pending.endswith(text[:length])
        )
        return len(self._pending) - len(self._pending[: len(self._pending) - max(ends, default=0)].rstrip())

    def _let_out(self, length: int) -> str:
        out, self._pending = self._pending[:length], self._pending[length:]
        if not self._started:
            out = out.lstrip()
            self._started = bool(out)
        return out


def whole(pieces: Sequence[bytes]) -> str:
    """The text of a finished answer."""
    stream = Stream()
    return stream.add(b"".join(pieces)) + stream.end()
