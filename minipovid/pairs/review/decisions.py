"""What a person decided, one line each, in <pairs>.decisions.jsonl; the last line about a row counts.

{"id": "17", "of": "93c2a0d94b0b1d5e", "decision": "edited", "rejected": "A dog.", "at": "2026-11-23T05:41:07Z"}

`of` is a hash of the row: what was decided about another text is nobody's decision about this one. `chosen` and
`rejected` stand there where they are not the row's own. `"undo": true` takes the decision before it back.

A line is on the disk (fsync) before anyone hears that it is kept, so what a crash leaves half-written was never said to
be kept; it is passed over, and counted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import Pair

try:
    import fcntl
except ImportError:  # Windows: two servers on one file are then not told
    fcntl = None  # type: ignore[assignment]

LABELS = ("undecided", "accepted", "edited", "swapped", "rejected")


class State(NamedTuple):
    """Where a row stands; None: the text is the row's own."""

    label: str = "undecided"
    chosen: str | None = None
    rejected: str | None = None


UNDECIDED = State()


class ReviewRow(NamedTuple):
    """What a decision is about."""

    id: str
    of: str
    chosen: str
    rejected: str

    @classmethod
    def of_pair(cls, pair: Pair) -> ReviewRow:
        content = json.dumps([str(pair.image), pair.prompt, pair.chosen, pair.rejected])
        of = hashlib.sha256(content.encode()).hexdigest()[:16]
        return cls(str(pair.id), of, pair.chosen, pair.rejected)

    def state(self, label: str, chosen: str, rejected: str) -> State:
        """The state with these texts; those that are the row's own are left out."""
        return State(label, None if chosen == self.chosen else chosen, None if rejected == self.rejected else rejected)

    def as_wanted(self, chosen: str, rejected: str) -> State:
        """The row as a person wants it to be: accepted, swapped or edited, as the texts say."""
        own, now = (self.chosen, self.rejected), (chosen, rejected)
        label = "accepted" if now == own else "swapped" if now == own[::-1] else "edited"
        return self.state(label, chosen, rejected)

    def texts(self, state: State) -> tuple[str, str]:
        """(chosen, rejected) as they stand now."""
        chosen = self.chosen if state.chosen is None else state.chosen
        return chosen, self.rejected if state.rejected is None else state.rejected


class RowStore(Protocol):
    """Who knows the rows."""

    def find(self, id: str) -> ReviewRow | None: ...

    def settle(self, id: str, state: State) -> None: ...


def decisions_file(pairs: Path) -> Path:
    return pairs.with_name(f"{pairs.name}.decisions.jsonl")


class History:
    """The lines replayed: where each row stands, and what undoing would bring back, through every restart."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[str, State]] = {}  # id -> (of, state)
        self.before: list[tuple[str, str, State]] = []  # (id, of, what it was)
        self.torn = 0

    @classmethod
    def read(cls, file: Path) -> History:
        """Of a file that need not be there yet. Raises MinipovidError where it cannot be read."""
        history = cls()
        try:
            data = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise MinipovidError(f"The decisions {file} cannot be read: {error.strerror}.") from None
        for line in data.split(b"\n"):
            entry = _entry(line)
            if entry is not None:
                history.add(*entry)
            elif line.strip():
                history.torn += 1
        return history

    def state(self, id: str, of: str) -> State:
        known = self.states.get(id)
        return known[1] if known is not None and known[0] == of else UNDECIDED

    def add(self, id: str, of: str, state: State, undo: bool) -> None:
        if not undo:
            self.before.append((id, of, self.state(id, of)))
        elif self.before:
            self.before.pop()
        self.states[id] = of, state


def _entry(line: bytes) -> tuple[str, str, State, bool] | None:
    """(id, of, state, undo); None for what is no decision: a line cut short by a crash."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("decision") not in LABELS:
        return None
    texts = [row.get("id"), row.get("of"), row.get("chosen", ""), row.get("rejected", "")]
    if not all(isinstance(each, str) for each in texts):
        return None
    return row["id"], row["of"], State(row["decision"], row.get("chosen"), row.get("rejected")), "undo" in row


class Decisions:
    """The file, held open by one server; another one is refused. Any thread may call."""

    def __init__(self, file: Path) -> None:
        self.file, self.turn = file, threading.Lock()
        self.history = History.read(file)
        self.stale = 0  # decisions about rows that are gone or changed
        self.stream = self._open()

    def __enter__(self) -> Decisions:
        return self

    def __exit__(self, *why: object) -> None:
        self.stream.close()
        if not self.file.stat().st_size:
            self.file.unlink()

    def _open(self) -> FileIO:
        try:
            stream = self.file.open("ab", buffering=0)
        except OSError as error:
            raise MinipovidError(f"Decisions cannot be written to {self.file} ({error.strerror}).") from None
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.close()
                raise MinipovidError(f"Another `minipovid pairs show` has {self.file} open; close it first.") from None
        _end_the_torn_line(self.file, stream)
        _sync_folder(self.file.parent)
        return stream

    def meet(self, rows: RowStore) -> None:
        """Tell the rows what was decided about them."""
        for id, (of, state) in self.history.states.items():
            row = rows.find(id)
            if row is None or row.of != of:
                self.stale += 1
            elif state != UNDECIDED:
                rows.settle(id, state)

    def decide(self, row: ReviewRow, state: State, undo: bool = False) -> None:
        """Keep a decision. Raises OSError where the disk refuses it; then nothing is decided."""
        line: dict[str, Any] = {"id": row.id, "of": row.of, "decision": state.label}
        texts = {"chosen": state.chosen, "rejected": state.rejected}
        line |= {side: text for side, text in texts.items() if text is not None}
        line["at"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        if undo:
            line["undo"] = True
        with self.turn:
            self._append(line)
            self.history.add(row.id, row.of, state, undo)

    def _append(self, line: Mapping[str, Any]) -> None:
        """All of the line or, where the disk is full, none of it."""
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        end = os.fstat(self.stream.fileno()).st_size
        try:
            if self.stream.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.file))
            os.fsync(self.stream.fileno())
        except OSError:
            self.stream.truncate(end)
            raise

    def undoable(self, rows: RowStore) -> tuple[ReviewRow, State] | None:
        """The row decided last and what it was before; None where nothing is left to undo."""
        while self.history.before:
            id, of, state = self.history.before[-1]
            row = rows.find(id)
            if row is not None and row.of == of:
                return row, state
            self.history.before.pop()
        return None


def _end_the_torn_line(file: Path, stream: FileIO) -> None:
    """What a crash cut short becomes a line of its own, so that the next decision is not glued to it."""
    with file.open("rb") as whole:
        if whole.seek(0, os.SEEK_END) and whole.seek(-1, os.SEEK_END) >= 0 and whole.read(1) != b"\n":
            stream.write(b"\n")


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
