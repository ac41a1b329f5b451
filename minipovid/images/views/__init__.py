"""WHICH PICTURE A LOSS LOOKS AT: one file per kind of spoiled picture; a loss's views and the recipe name the file.

    views:                    # in the recipe; `noise:` is another name of `views.noised`
      rotated: {degrees: 30}  # the keys are the fields of rotated.py's `Settings`

A file on this shelf holds these; nothing else anywhere lists it:

    Settings                                         a frozen dataclass (or section), every field with a default
    opened(settings, transform, seed) -> OpenView    what gives the pixels of any pair's picture in this run
    is_fresh_each_epoch(settings) -> bool            does a pair get another picture in every epoch, so that the scores
                                                     of one epoch are of no use in the next? `plan` asks

The pixels depend on the picture, the settings, the transform and on what `generator` draws by seed, pair, epoch and the
file's own name: on no clock and no state. So every process and worker sees the same, and a run that was killed ends
with the same bytes. `Spoiled` is all that most files have to open. A view that is costly may keep what it made, as
noised.py does in a ring; the field is then called `cache_gib`: `plan` counts it, and a resumed run may change it.
The docstring names the paper.

The clean picture is no file: it has no settings and draws nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.images.load import load
from minipovid.images.transform import ImageTransform
from minipovid.recipe.schema import Recipe
from minipovid.recipe.strict import validated

CLEAN = "clean"


class OpenView(Protocol):
    """One view of a run. It pickles, so that every data loader's worker may have one."""

    def __call__(self, path: Path, pair_id: str, epoch: int) -> npt.NDArray[np.floating[Any]]:
        """Normalised pixels [3, S, S], float16 or float32, of the view of the picture at `path`.

        Raises MinipovidError as `images.load`.
        """


@dataclass(frozen=True)
class Spoiled:
    """The view that `spoil` makes of the loaded picture before it is transformed. The randomness is the pair's own and,
    where `is_fresh`, each epoch's."""

    name: str  # of the file
    spoil: Callable[[Image, np.random.Generator], Image]  # a function of the file or a `partial` of one: it pickles
    transform: ImageTransform
    seed: int
    is_fresh: bool

    def __call__(self, path: Path, pair_id: str, epoch: int) -> npt.NDArray[np.float32]:
        rng = generator(self.seed, pair_id, epoch if self.is_fresh else 0, self.name)
        return self.transform(self.spoil(load(path), rng))


@dataclass(frozen=True)
class Clean:
    """The picture as it is."""

    transform: ImageTransform

    def __call__(self, path: Path, pair_id: str, epoch: int) -> npt.NDArray[np.float32]:
        return self.transform(load(path))


def generator(run_seed: int, pair_id: str, epoch: int, view: str) -> np.random.Generator:
    """The randomness of one view of one pair in one epoch: the same in every process, worker and restart."""
    name = json.dumps([run_seed, pair_id, epoch, view])  # unlike plain joining, no two lists give one name
    key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], "<u8")
    return np.random.Generator(np.random.Philox(key=key))


def view_settings(name: str, recipe: Recipe, origin: str = "") -> Any:
    """The `Settings` of a view on the shelf as the recipe has them, defaults filled in.

    Raises MinipovidError for an unknown key or a wrong value and, with `origin` (by default `views.<name>`) before it,
    for a view that does not stand there.
    """
    settings = _file(name, origin).Settings
    checked = validated(settings, recipe.view(name), f"views.{name}")
    return settings(**vars(checked))  # of the file's own class: the one that checks is made here, and does not pickle


def check_views(recipe: Recipe) -> None:
    """Raise MinipovidError as `view_settings` for a mistake in `views:`, whether a loss looks at that view or not."""
    for name in recipe.views.others:
        view_settings(name, recipe)


def is_fresh_each_epoch(name: str, recipe: Recipe) -> bool:
    """Does a pair get another picture in every epoch? Raises MinipovidError as `view_settings`."""
    return name != CLEAN and bool(_file(name).is_fresh_each_epoch(view_settings(name, recipe)))


def open_view(name: str, recipe: Recipe, transform: ImageTransform) -> OpenView:
    """The view of a run. Raises MinipovidError as `view_settings`."""
    if name == CLEAN:
        return Clean(transform)
    view: OpenView = _file(name).opened(view_settings(name, recipe), transform, recipe.seed)
    return view


def _file(name: str, origin: str = "") -> ModuleType:
    try:
        return shelf.load("images.views", name)
    except MinipovidError as error:
        raise MinipovidError(f"{origin or f'views.{name}'}: {error}") from None
