"""HOW A PAIR IS JUDGED: one file per loss, named as in the recipe's `loss.name`; this page holds their common algebra.

Notation (as in facts and papers): lp(y|m) is the summed log-probability of answer y under picture m, and
S(y|m) = lp_policy(y|m) - lp_reference(y|m) its log-ratio. Every loss is built from two terms of log-ratios:

    prefer(a, b) = -log sigmoid(beta * (S_a - S_b))        DPO, arXiv 2305.18290, equation 7
    anchor(a)    = -log sigmoid(beta * S_a)                mDPO's anchor, arXiv 2406.11839, equation 6 with delta = 0
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from minipovid.common import shelf
from minipovid.recipe.read import Number, Recipe, validated
from minipovid.types import Loss, Scores

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
    """The loss of each of the recipe's stages. Raises MinipovidError as `build`, naming the stage."""
    return [build(stage.loss, f"stages.{index}.loss") for index, stage in enumerate(recipe.stages)]


def log_ratio(policy: Scores, reference: Scores, ids: Tensor | None = None) -> Tensor:
    """S [B]: the log-ratio of `ids` [B, A] (default: the answer itself), summed over the answer's positions."""
    return (policy.logps(ids) - reference.logps(ids)).sum(-1)


def prefer(a: Tensor, b: Tensor, beta: float) -> Tensor:
    """DPO's term [B] for log-ratios a and b [B]."""
    return -F.logsigmoid(beta * (a - b))


def anchor(a: Tensor, beta: float) -> Tensor:
    """mDPO's anchor [B]: the answer should not become less likely than the reference finds it."""
    return -F.logsigmoid(beta * a)
