"""Direct Preference Optimization (Rafailov et al., arXiv 2305.18290, equation 7), optionally anchored on chosen.

    L = -log sigmoid(beta * [S(y_w|m) - S(y_l|m)])  +  anchor * -log sigmoid(beta * S(y_w|m))

y_w chosen answer, y_l rejected answer, m picture and prompt, S log-ratio of policy and reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minipovid.train import losses
from minipovid.train.losses import Judged, ScoreTable, View


@dataclass(frozen=True)
class Loss:
    beta: losses.Positive = 0.1  # the smaller, the farther the policy may go from the reference
    anchor: losses.Weight = 0.0  # weight of the term that keeps the chosen answer likely

    @property
    def views(self) -> Sequence[View]:
        return View("chosen", "clean", reference="own"), View("rejected", "clean", reference="own")

    def __call__(self, policy: ScoreTable, reference: ScoreTable) -> Judged:
        chosen, rejected = (losses.log_ratio(policy[view.key], reference[view.key]) for view in self.views)
        loss = losses.prefer(chosen, rejected, self.beta)
        if self.anchor:
            loss = loss + self.anchor * losses.anchor(chosen, self.beta)
        return Judged(loss, losses.preferred(chosen, rejected, self.beta))
