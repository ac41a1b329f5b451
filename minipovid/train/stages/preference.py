"""Preference tuning: a loss on the shelf compares what policy and reference say of a pair's answers.

The reference is the model as the stage began: in the first stage the adapter switched off, in later ones a frozen copy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minipovid.models.model import Model
from minipovid.pairs.pair import ANSWERS
from minipovid.train import losses
from minipovid.train.batch import Batch
from minipovid.train.losses import Judged, Loss, ScoreTable
from minipovid.train.reference import Reference
from minipovid.train.scoring import count_tokens, passes, score
from minipovid.train.stages import StageContext


def open(context: StageContext) -> Objective:  # noqa: A001 - the shelf's word
    """Raises MinipovidError where the stage's loss is none."""
    model, recipe, section = context.model, context.recipe, context.section
    loss = losses.build(section.loss, f"stages.{context.stage}.loss")
    if context.begins and context.stage:
        model.freeze_reference()
    again = recipe.asks_again(section)
    reference = Reference(model, loss.views, recipe.reference.cache_gib, keep_hidden=again)
    return Objective(model, loss, reference, recipe.reference.precompute)


class Objective(nn.Module):
    """The loss of one stage."""

    def __init__(self, model: Model, loss: Loss, reference: Reference, precomputes: bool = False) -> None:
        super().__init__()
        self.weights = model.peft  # named here only for whoever wraps this module
        self.model, self.loss, self.reference, self.precomputes = model, loss, reference, precomputes
        self.images = [view.image for view in loss.views]
        self.together = list(passes(loss.views).values())

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        before = self.reference.passes
        reference = self.reference(batch)
        policy = score(self.model, batch, self.loss.views)
        judged = self.loss(policy, reference)
        sums = {key: value.sum() for key, value in figures(judged, policy, reference).items()}
        computed = float(self.reference.passes - before)
        return judged.loss.sum(), {**sums, "reference/computed": torch.full((), computed, device=self.model.device)}

    def tokens(self, batch: Batch) -> int:
        return count_tokens(batch, self.loss.views)

    def precompute(self, batch: Batch) -> None:
        """The reference's scores; they are those of every epoch but for pictures that are drawn anew."""
        self.reference(batch)
        self.reference.keep()

    def after_step(self) -> None:
        self.reference.keep()

    def close(self) -> None:
        self.reference.cache.close()


def figures(judged: Judged, policy: ScoreTable, reference: ScoreTable) -> dict[str, Tensor]:
    """What the loss tells, per pair [B]; and what the chosen answer lost or gained against the reference, per token.

    Log-probabilities are those of the answers that the loss has looked at under the clean picture.
    """
    metrics = {"loss": judged.loss.detach(), **judged.figures}
    with torch.no_grad():
        for answer in ANSWERS:
            if (answer, "clean") in policy:
                metrics[f"logps/{answer}"] = policy[answer, "clean"].logps().sum(-1)
        if "logps/chosen" in metrics and ("chosen", "clean") in reference:
            change = metrics["logps/chosen"] - reference["chosen", "clean"].logps().sum(-1)
            metrics["logps/chosen_change_per_token"] = change / policy["chosen", "clean"].mask.sum(-1)
    return metrics
