"""mDPO: conditional preference optimization (Wang et al., arXiv 2406.11839, equations 3 to 7).

    L = -log sigmoid(beta * [S(y_w|m) - S(y_l|m)])      the text pair, as in DPO
      + -log sigmoid(beta * [S(y_w|m) - S(y_w|m')])     the same answer under a crop m' that hides most of the picture
      + anchor * -log sigmoid(beta * S(y_w|m))          the chosen answer stays likely

m' keeps 1 to 20 % of the picture's area (the authors' code). All three terms have weight 1 in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipovid.train import losses
from minipovid.train.losses import Judged, ScoreTable, View, ViewKey


@dataclass(frozen=True)
class Loss:
    beta: losses.Positive = 0.1  # the smaller, the farther the policy may go from the reference
    anchor: losses.Weight = 1.0  # weight of the term that keeps the chosen answer likely

    @property
    def views(self) -> Sequence[View]:
        answers: list[ViewKey] = [("chosen", "clean"), ("rejected", "clean"), ("chosen", "cropped")]
        return [View(*key, reference="own") for key in answers]

    def __call__(self, policy: ScoreTable, reference: ScoreTable) -> Judged:
        chosen, rejected, blind = (losses.log_ratio(policy[view.key], reference[view.key]) for view in self.views)
        loss = (
            losses.prefer(chosen, rejected, self.beta)
            + losses.prefer(chosen, blind, self.beta)
            + self.anchor * losses.anchor(chosen, self.beta)
        )
        return Judged(loss, losses.preferred(chosen, rejected, self.beta))
