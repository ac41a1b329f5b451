"""What a recipe will need, as values and as the tables that `minipovid plan` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minipovid.train.plan.cards import Card

RESERVE = 0.08  # of a card's memory: a prediction that leaves less is tight
_HEAD = f"  {'':<10}{'GiB':>5}{'needs':>7}  {'fits':<6}{'checkpointing':<15}{'micro_batch':<13}{'s/step':<8}time"


@dataclass(frozen=True)
class OnCard:
    """What a recipe is on one card, its `auto` settled for it."""

    card: Card
    peak_gib: float
    micro_batch: int
    gradient_checkpointing: bool | int
    seconds_per_step: float
    seconds_per_pair: float

    @property
    def fits(self) -> bool:
        return self.peak_gib <= self.card.gib

    @property
    def word(self) -> str:
        if not self.fits:
            return "no"
        return "tight" if is_tight(self.peak_gib, self.card.gib) else "yes"

    def as_dict(self, visits: int | None) -> dict[str, Any]:
        """`visits` of a pair, where they are known, take hours."""
        return {
            "gib": self.card.gib,
            "fits": self.fits,
            "peak_gib": round(self.peak_gib, 2),
            "micro_batch": self.micro_batch,
            "gradient_checkpointing": self.gradient_checkpointing,
            "seconds_per_step": float(f"{self.seconds_per_step:.3g}"),
            "hours": None if visits is None else float(f"{self.seconds_per_pair * visits / 3600:.3g}"),
        }


@dataclass(frozen=True)
class Forecast:
    """What a recipe will need."""

    device: str  # "GPU" or "CPU"
    moment: str  # when most memory is taken
    memory: dict[str, float]  # GiB by part, at that moment
    disk: dict[str, float]  # GiB by part
    visits: int | None  # pairs times epochs, all stages together; none where the data is not here yet
    cards: list[OnCard] = field(default_factory=list)
    paged_gib: float = 0.0  # moments of a paged optimiser, which may leave the card for the computer's memory

    @property
    def peak_gib(self) -> float:
        return sum(self.memory.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "peak_gib": round(self.peak_gib, 2),
            "peak_when": self.moment,
            "memory_gib": {part: round(size, 2) for part, size in self.memory.items()},
            "paged_gib": round(self.paged_gib, 2),
            "disk_gib": {part: round(size, 2) for part, size in self.disk.items()},
            "visits": self.visits,
            "cards": {each.card.name: each.as_dict(self.visits) for each in self.cards},
        }

    def table(self) -> str:
        lines = [f"{self.device} memory at its peak, when {self.moment}, GiB (predicted)", *_column(self.memory)]
        if self.paged_gib:
            lines.append(f"  and up to {self.paged_gib:.2f} in the computer's own memory (paged optimiser)")
        lines += ["Disk, GiB", *_column(self.disk)]
        lines += [f"Cards, and the time for {self.visits or 1000:,} visits of a pair (predicted)", _HEAD]
        for each in self.cards:
            lines.append(
                f"  {each.card.name:<10}{each.card.gib:>5g}{each.peak_gib:>7.1f}  {each.word:<6}"
                f"{layers_in_words(each.gradient_checkpointing):<15}{each.micro_batch:<13}{each.seconds_per_step:<8.2f}"
                f"{_duration(each.seconds_per_pair * (self.visits or 1000))}"
            )
        return "\n".join(lines)


class FitVerdict(NamedTuple):
    """Does it fit a card, and what to change where it does not."""

    fits: bool
    card_gib: float
    changes: dict[str, Any]  # recipe keys and values for --set, the least harmful first
    sentence: str


def is_tight(peak_gib: float, card_gib: float) -> bool:
    """Whether a prediction leaves less than the reserve."""
    return peak_gib > (1 - RESERVE) * card_gib


def layers_in_words(checkpointing: bool | int) -> str:
    """How many layers are checkpointed, in words."""
    if isinstance(checkpointing, bool):
        return "all layers" if checkpointing else "none"
    return f"{checkpointing} layer{'s' * (checkpointing > 1)}"


def _column(sizes: dict[str, float]) -> list[str]:
    rows = [f"  {part:<30}{size:>7.2f}" for part, size in sizes.items()]
    return [*rows, f"  {'together':<30}{sum(sizes.values()):>7.2f}"]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
