"""Where a checkpoint's tensor goes in the GGUF pair: what a family says of each tensor, and the exporter obeys."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Place(NamedTuple):
    """One tensor's place."""

    file: Literal["text", "mmproj"]
    name: str  # in the GGUF
    heads: int = 0  # rotate-half rows of so many attention heads become interleaved pairs; 0: rows stay
    full: bool = False  # float32 whatever the file's quantisation
    half: bool = False  # float16 at least
    in_4bit: bool = False  # QLoRA quantises this one while it trains
