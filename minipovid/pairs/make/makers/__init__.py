"""WHO MAKES A PAIR OF A GOOD ANSWER: one file per maker, named as in `pairs make --maker NAME`.

A file defines these two; nothing else anywhere lists it, its options or their names:

    @dataclass(frozen=True)
    class Options:                        what users may set, each with a default: a number, text, true or false
        strength: float = 0.5             `--option strength=0.3`; checked by its type before `maker` gets it

    def maker(inputs: MakerInputs, options: Options) -> Maker

`maker` raises MinipovidError for an option that cannot be and a file that it cannot use. What it returns is called from
several threads, with a seed each:

    outcome = maker.make(seed, picture)   # outcome.pair, or outcome.reasons why there is none

Outcomes are kept under the seed and `identity()` (journal.py): whatever decides an outcome must be in that, every
option, the version of rules or prompts, the teacher's own identity; else an old outcome is taken for a new one.
rule.py asks nobody, povid.py a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import ChatModel, Usage
from minipovid.pairs.pair import BadRow, Pair, Seed

Seeds = Callable[[], Iterable[Seed | BadRow]]  # from the first, as often as it is called


@dataclass(frozen=True)
class Outcome:
    """A pair, or every reason why there is none. `heals`: a later run may try again."""

    pair: Pair | None
    reasons: tuple[str, ...] = ()
    usage: Usage = Usage()
    heals: bool = False


class Maker(Protocol):
    """Makes a pair of a seed. Thread-safe."""

    @property
    def workers(self) -> int:
        """How many seeds it wants to have in hand at once."""

    def identity(self) -> Mapping[str, Any]:
        """What decides an outcome, beside the seed; ready for JSON, and written into make.json."""

    def make(self, seed: Seed, picture: Path) -> Outcome:
        """Raises remote.Stopped where it may not go on; the seed is then left for a later run."""

    def estimate(self, seed: Seed, picture: Path) -> Usage:
        """What the seed will take if the first answer is good; nothing is sent."""

    def stop(self) -> None:
        """Send nothing any more: `make` raises Stopped where it would have to."""

    def spent(self) -> Usage:
        """What this run has asked for."""

    def cost(self, usage: Usage) -> float | None:
        """In the user's money; None where no prices were given, or nothing costs anything."""


def no_teacher() -> NoReturn:
    raise MinipovidError("This maker asks a teacher, and none was named.")


@dataclass(frozen=True)
class MakerInputs:
    """What every maker is lent; `teacher` is called, once, by who needs one."""

    seeds: Seeds
    teacher: Callable[[], ChatModel] = no_teacher
