"""What a step minimises, as one torch module: it takes a batch and gives the sum of its losses.

In one module because DDP wraps a module's forward pass: policy, reference and loss stand inside it, so that
accelerate's engine needs to know nothing of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minipovid.models.model import Model
from minipovid.pairs.pair import ANSWERS
from minipovid.train.batch import Batch
from minipovid.train.losses import Judged, Loss, ScoreTable
from minipovid.train.reference import Reference
from minipovid.train.scoring import score


class Objective(nn.Module):
    """The loss of one stage."""

    def __init__(self, model: Model, loss: Loss, reference: Reference) -> None:
        super().__init__()
        self.weights = model.peft  # named here only for whoever wraps this module
        self.model, self.loss, self.reference = model, loss, reference

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses' sum, and the figures to log, each summed over the pairs."""
        reference = self.reference(batch)
        policy = score(self.model, batch, self.loss.views)
        judged = self.loss(policy, reference)
        return judged.loss.sum(), {key: value.sum() for key, value in figures(judged, policy, reference).items()}


def figures(judged: Judged, policy: ScoreTable, reference: ScoreTable) -> dict[str, Tensor]:
    """TRL's metrics, per pair [B]; and what the chosen answer lost or gained against the reference, per token.

    Log-probabilities are told of the answers that the loss has looked at under the clean picture.
    """
    told = {
        "loss": judged.loss.detach(),
        "rewards/chosen": judged.chosen_rewards,
        "rewards/rejected": judged.rejected_rewards,
        "rewards/accuracies": (judged.chosen_rewards > judged.rejected_rewards).float(),
        "rewards/margins": judged.chosen_rewards - judged.rejected_rewards,
    }
    with torch.no_grad():
        for answer in ANSWERS:
            if (answer, "clean") in policy:
                told[f"logps/{answer}"] = policy[answer, "clean"].logps().sum(-1)
        if "logps/chosen" in told and ("chosen", "clean") in reference:
            change = told["logps/chosen"] - reference["chosen", "clean"].logps().sum(-1)
            told["logps/chosen_change_per_token"] = change / policy["chosen", "clean"].mask.sum(-1)
    return told
