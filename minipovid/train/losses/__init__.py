"""HOW A PAIR IS JUDGED: one file per loss, named as in the recipe's `loss.name`; this page holds their common algebra.

Notation (as in facts and papers): lp(y|m) is the summed log-probability of answer y under picture m, and
S(y|m) = lp_policy(y|m) - lp_reference(y|m) its log-ratio. Every loss is built from two terms of log-ratios:

    prefer(a, b) = -log sigmoid(beta * (S_a - S_b))        DPO, arXiv 2305.18290, equation 7
    anchor(a)    = -log sigmoid(beta * S_a)                mDPO's anchor, arXiv 2406.11839, equation 6 with delta = 0

Shapes are written with these letters throughout the code:
    B pairs in a batch    A answer positions, padded to the batch's longest    V vocabulary    H hidden size
    P prompt positions, image tokens included    N image tokens    S side of the square model input, in pixels
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.images.views import CLEAN, check_views, view_settings
from minipovid.pairs.pair import ANSWERS
from minipovid.recipe.schema import Number, Recipe
from minipovid.recipe.strict import validated

ViewKey = tuple[str, str]


class View(NamedTuple):
    """One scored sequence that a loss asks for: which answer under which picture.

    `grad` says whether the policy's pass needs gradients; `reference` what the loss asks of the reference model here:
    nothing, the log-probabilities of the answer's own tokens, or anything (other tokens', the most probable ones,
    logits). The less it asks, the less is computed and kept on disk.
    """

    answer: str
    image: str
    grad: bool = True
    reference: Literal["nothing", "own", "any"] = "any"

    @property
    def key(self) -> ViewKey:
        return self.answer, self.image


class Scores(Protocol):
    """What a model said of one answer under one picture, at the answer's positions only; padded positions hold 0."""

    ids: Tensor  # [B, A] the answer's own tokens, end-of-sequence included
    mask: Tensor  # [B, A] True at real answer positions

    def logps(self, ids: Tensor | None = None) -> Tensor:
        """Float32 log-probabilities [B, A] of `ids` (default: the answer itself) given the answer's own prefix."""

    def argmax(self) -> Tensor:
        """The most probable token [B, A] at each position; carries no gradient."""

    def logits(self) -> Tensor:
        """Float32 logits [B, A, V]: ask only where log-probabilities will not do."""


ScoreTable = Mapping[ViewKey, Scores]


class Judged(NamedTuple):
    """What a loss says of a batch: the value to minimise, and figures to log under TRL's names, each one per pair."""

    loss: Tensor  # [B]
    figures: Mapping[str, Tensor] = {}  # [B] each, detached


class Loss(Protocol):
    """A frozen dataclass whose fields are the recipe's keys under `loss:`."""

    @property
    def views(self) -> Sequence[View]:
        """The passes it needs of policy and reference."""

    def __call__(self, policy: ScoreTable, reference: ScoreTable) -> Judged: ...


Positive = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]


def build(settings: Mapping[str, Any], origin: str = "loss") -> Loss:
    """The loss of a recipe's `loss:` section: `name` picks the file, the other keys are the fields of its `Loss`.

    Raises MinipovidError for an unknown name, an unknown key or a wrong value.
    """
    fields = dict(settings)
    module = shelf.load("train.losses", fields.pop("name"))
    return validated(module.Loss, fields, origin)  # type: ignore[no-any-return]


def of_stages(recipe: Recipe) -> list[Loss]:
    """The loss of each of the recipe's stages.

    Raises MinipovidError as `build`, naming the stage; where one looks at a picture that is no view or at an answer
    that no pair has; and for a mistake in the recipe's `views:`.
    """
    check_views(recipe)
    losses = []
    for index, stage in enumerate(recipe.stages):
        origin = f"stages.{index}.loss"
        losses.append(build(stage.loss, origin))
        for view in losses[index].views:
            if view.answer not in ANSWERS:
                raise MinipovidError(
                    f"{origin}: pairs have no answer {view.answer!r}; they have {' and '.join(ANSWERS)}."
                )
            if view.image != CLEAN:
                view_settings(view.image, recipe, origin)
    return losses


def log_ratio(policy: Scores, reference: Scores, ids: Tensor | None = None) -> Tensor:
    """S [B]: the log-ratio of `ids` [B, A] (default: the answer itself), summed over the answer's positions."""
    return (policy.logps(ids) - reference.logps(ids)).sum(-1)


def preferred(chosen: Tensor, rejected: Tensor, beta: float) -> dict[str, Tensor]:
    """TRL's figures [B] of a preference, for the log-ratios [B] of both answers; a reward is beta * S."""
    chosen, rejected = (beta * chosen).detach(), (beta * rejected).detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "rewards/margins": chosen - rejected,
    }


def prefer(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """DPO's term [B] for log-ratios a and b [B]."""
    return -F.logsigmoid(beta * (a - b))


def anchor(a: Tensor, beta: float) -> Tensor:
    """mDPO's anchor [B]: the answer should not become less likely than the reference finds it."""
    return -F.logsigmoid(beta * a)
