"""The built-in world's pairs: made of its good answers on first use, as anybody's are.

    minipovid pairs make tinyworld-2/seeds.json --maker rule --count-on tinyworld-2/everyday.txt

The everyday captions are counted, and not the seeds, because the seeds' pictures show what habit does not expect.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from minipovid import tinyworld
from minipovid.common.caches import cache_folder
from minipovid.pairs import formats, make
from minipovid.pairs.make.makers import MakerInputs, rule
from minipovid.recipe import run_folder
from minipovid.tinyworld.world import SEEDS_FORMAT, once


def pairs() -> tuple[Path, Path]:
    """(the file of pairs, the folder that its image paths are relative to), in the cache folder. Takes some seconds."""
    world = tinyworld.materialise(cache_folder() / tinyworld.NAME)
    folder = world / f"pairs-{rule.VERSION.replace(' ', '-')}"
    folder = once(folder, lambda there: (there / run_folder.PAIRS).is_file(), lambda draft: _make(world, draft))
    return folder / run_folder.PAIRS, world


def _make(world: Path, to: Path) -> None:
    seeds = partial(formats.seeds, world / "seeds.json", SEEDS_FORMAT)
    maker = make.maker("rule", MakerInputs(seeds), {"count_on": str(world / "everyday.txt")})
    make.make(seeds, maker, to, root=world, progress=False)
