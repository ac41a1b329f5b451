"""WHO MAKES A PAIR OF A GOOD ANSWER: one file per maker, named as in `pairs make --maker NAME`; it has `maker(shop)`.

maker = povid.maker(shop)
outcome = maker.make(seed, picture)       # outcome.pair, or outcome.reasons why there is none
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import ChatModel, Usage
from minipovid.pairs.pair import BadRow, Pair

if TYPE_CHECKING:
    from minipovid.pairs.formats import Seed

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
        """Raises teacher.Stopped where it may not go on; the seed is then left for a later run."""

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
class MakerOptions:
    """What makers may take: `teacher` is called by who needs one."""

    seeds: Seeds
    teacher: Callable[[], ChatModel] = no_teacher
    kind: str = "auto"  # povid's
    picture: bool = True  # povid's
    seed: int = 0  # rule's
    count_on: Path | None = None  # rule's: other answers than the seeds' to count what goes together on
