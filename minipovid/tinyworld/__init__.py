"""The tiny world: a model, preference pairs and benchmarks that ship with the package or are drawn in seconds.

It is a data source, a model source and a test bed, not a special path: everything that runs on it runs on a 7B.
`checkpoint/` is a real LLaVA in the Hub's layout; `python -m minipovid.tinyworld.pretrain` makes it again.
"""

from __future__ import annotations

from pathlib import Path

from minipovid.tinyworld.text import OBJECTS
from minipovid.tinyworld.world import NAME, materialise

CHECKPOINT = Path(__file__).parent / "checkpoint"

__all__ = ["CHECKPOINT", "NAME", "OBJECTS", "materialise"]
