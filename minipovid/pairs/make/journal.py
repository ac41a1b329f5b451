"""What became of each seed, appended the moment it is known: whoever is killed goes on from there.

    TO/journal.jsonl    {"key": "9f3c...", "pair": {...}, "reasons": [], "usage": {...}, "heals": false} per line

The key is the digest of the seed and of what decides its outcome (model, prompts, options): with another teacher
nothing in the journal counts. A seed has one line, or several where the last one holds; a line that was cut short is
dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minipovid.common.append_only import Lines
from minipovid.inference.remote import Usage
from minipovid.pairs.make.makers import Outcome
from minipovid.pairs.pair import Pair, Seed, Span

NAME = "journal.jsonl"


class Journal:
    """Read by key; written by one thread."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._identity = json.dumps(identity, sort_keys=True)
        self._at: dict[bytes, int] = {}  # where in the file the last line of a key begins
        self._healing: set[bytes] = set()
        self._lines = Lines(folder / NAME)
        for at, row in self._lines.read():
            with suppress(ValueError, LookupError, TypeError):  # somebody's edit: that seed is made again
                self._note(bytes.fromhex(row["key"]), at, row["heals"])

    def close(self) -> None:
        self._lines.close()

    def settled(self, seed: Seed) -> bool:
        """Whether there is nothing left to ask: a pair, or a failure that another try would repeat."""
        key = self._key(seed)
        return key in self._at and key not in self._healing

    def add(self, seed: Seed, outcome: Outcome) -> None:
        """It outlives the process as soon as this returns."""
        key, pair = self._key(seed), None
        if made := outcome.pair:
            pair = {**asdict(made), "source": dict(made.source), "spans": [list(span) for span in made.spans]}
        reasons, usage = outcome.reasons, asdict(outcome.usage)
        row = {"key": key.hex(), "pair": pair, "reasons": reasons, "usage": usage, "heals": outcome.heals}
        self._note(key, self._lines.add(row), outcome.heals)

    def get(self, seed: Seed) -> Outcome | None:
        """The outcome of a seed, if it has one."""
        at = self._at.get(self._key(seed))
        if at is None:
            return None
        row, pair = self._lines.at(at), None
        if made := row["pair"]:
            pair = Pair(**{**made, "spans": tuple(Span(*span) for span in made["spans"])})
        return Outcome(pair, tuple(row["reasons"]), Usage(**row["usage"]), row["heals"])

    def _key(self, seed: Seed) -> bytes:
        return hashlib.sha256(json.dumps([*seed, self._identity]).encode()).digest()[:16]

    def _note(self, key: bytes, at: int, heals: bool) -> None:
        self._at[key] = at
        (self._healing.add if heals else self._healing.discard)(key)
