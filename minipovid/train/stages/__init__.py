"""WHAT A STEP COMPUTES: one file per kind of stage, named as in the recipe's `stages[].kind`.

A file defines

    def open(context: StageContext) -> Objective

Order of the pairs, micro-batches, optimiser, learning rate, checkpoints, log and resuming are shared by every kind
(stage.py, step.py); an Objective says what is minimised, which pictures that takes, and what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from minipovid.common import shelf

if TYPE_CHECKING:
    from torch import Tensor

    from minipovid.models.model import Model
    from minipovid.recipe.schema import Recipe, StageSection
    from minipovid.train.batch import Batch


class StageContext(NamedTuple):
    """What a stage is opened with."""

    model: Model
    recipe: Recipe
    stage: int  # its index
    begins: bool  # False: it goes on from a checkpoint, which has put back what `open` would freeze

    @property
    def section(self) -> StageSection:
        return self.recipe.stages[self.stage]


class Objective(Protocol):
    """A torch module. DDP wraps its forward pass, so whatever gradients flow through stands inside it."""

    images: Sequence[str]  # the pictures of a pair that it looks at: "clean" and files on the shelf images/views
    together: Sequence[tuple[str, ...]]  # answers of a pair that pass the model behind one prompt
    precomputes: bool  # is `precompute` to see the pairs of the first epoch before the first step?

    def __call__(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses' sum over the pairs, and the figures to log (TRL's names), each summed over the pairs."""

    def tokens(self, batch: Batch) -> int:
        """How many tokens a call computes, for the log."""

    def precompute(self, batch: Batch) -> None: ...

    def after_step(self) -> None:
        """The optimiser has taken a step."""

    def close(self) -> None:
        """The stage is over."""


def open(context: StageContext) -> Objective:  # noqa: A001 - what it does to a stage
    """Raises MinipovidError for an unknown kind, and what the kind raises."""
    objective: Objective = shelf.load("train.stages", context.section.kind).open(context)
    return objective


def check(recipe: Recipe) -> None:
    """Raises MinipovidError where a stage is of no kind on the shelf."""
    for stage in recipe.stages:
        shelf.load("train.stages", stage.kind)
