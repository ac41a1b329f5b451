"""An answer that comes piece by piece."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

from minipovid.inference.llama_cpp.locks import Locks
from minipovid.inference.llama_cpp.stream import Stream

# The next token behind the prompt and those said, with its bytes; None where the answer ends.
NextToken = Callable[[list[int]], "tuple[int, bytes] | None"]


@dataclass
class _State:
    """What the reading has come to. Beside the reply: were it inside, reading and reply would keep each other alive."""

    ids: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None
    left: bool = False  # nobody wants more; the reading ends after its step


class StreamedReply:
    """Pieces of text, none empty; joined they are the answer, without surrounding spaces.

    Nothing is computed before the first piece is asked for. It waits for its turn, which the reply keeps until it is
    read to its end, closed or forgotten: use `with`, or `close`, where reading may stop early.
    """

    def __init__(self, step: NextToken, prompt_tokens: int, max_tokens: int, stream: Stream, locks: Locks) -> None:
        self.prompt_tokens = prompt_tokens  # rows of pictures among them
        self._state, self._reading = _State(), threading.Lock()
        self._pieces = _read(self._state, step, max_tokens, stream, locks)

    @property
    def answer_tokens(self) -> int:
        """So far; the token that ends the answer is not counted."""
        return len(self._state.ids)

    @property
    def finish_reason(self) -> Literal["stop", "length"] | None:
        """Why the answer ended; None while it has not."""
        return self._state.finish_reason

    def close(self) -> None:
        """End the reading here and let others have their turn. May be called twice, and never waits.

        A thread that is computing the next piece ends its step, and then the reading.
        """
        self._state.left = True
        if self._reading.acquire(blocking=False):
            try:
                self._pieces.close()
            finally:
                self._reading.release()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._reading:
            piece = next(self._pieces)
        if self._state.left:  # `close` came while it was computed, and may not have got in
            self.close()
            raise StopIteration
        return piece

    def __enter__(self) -> StreamedReply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(state: _State, step: NextToken, max_tokens: int, stream: Stream, locks: Locks) -> Generator[str, None, None]:
    ended = False
    with locks.turn():
        while not ended and len(state.ids) < max_tokens:
            if state.left:
                return
            next_token = step(state.ids)
            if next_token is not None:
                state.ids.append(next_token[0])
                if text := stream.add(next_token[1]):
                    yield text
            ended = next_token is None or stream.stopped
    state.finish_reason = "stop" if ended else "length"
    if text := stream.end():
        yield text
