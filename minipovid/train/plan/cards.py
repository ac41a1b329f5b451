"""Graphics cards by name: what they hold, how fast they multiply in bfloat16 and how fast they read memory.

`tflops` is what large matrix products are known to reach, about two thirds of the data sheet's dense bfloat16 rate with
float32 sums (165 for an RTX 4090, half of that where the sheet counts 16-bit sums); half on the H200, whose matrices
here are too small for it. `gb_per_s` is the data sheet's. None of it was measured here: times may be 50 % off.
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    name: str
    gib: float
    tflops: float  # sustained, 1e12 per second
    gb_per_s: float  # 1e9 bytes per second

    def seconds(self, flop: float, moved: float) -> float:
        """Time for `flop` operations and `moved` bytes beside them (dequantised weights, the optimiser's step)."""
        return flop / (self.tflops * 1e12) + moved / (self.gb_per_s * 1e9)


CARDS = (
    Card("RTX 3060", 12, 17, 360),
    Card("RTX 3090", 24, 50, 936),
    Card("RTX 4060", 8, 20, 272),
    Card("RTX 4090", 24, 110, 1008),
    Card("RTX 5090", 32, 140, 1792),
    Card("H200", 139, 500, 4800),
)


def known(name: str, gib: float) -> Card | None:
    """The card that torch calls `name` and that holds about `gib`; others of nearly that name (Ti, Laptop) are not."""
    return next((card for card in CARDS if name.endswith(f" {card.name}") and abs(gib / card.gib - 1) < 0.1), None)
