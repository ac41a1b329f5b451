"""POVID (Zhou et al., arXiv 2402.11411): DPO against a hallucinated text and against what noise makes the model say.

The noisy answer is y_n[i] = argmax_v pi(v | m_n, y_w[:i]): at each position of the chosen answer, the token that the
policy finds most likely when the picture m is replaced by its noised copy m_n. It carries no gradient. With
DPO(a, b) = -log sigmoid(beta * [S(a) - S(b)]), y_w chosen, y_t rejected text and w = noise_weight:

    proper   (1 - w) * DPO(y_w, y_t) + w * DPO(y_w, y_n)                  y_n scored under the clean picture by both
    code     the same, but the reference scores its own argmax tokens     what github.com/YiyangZhou/POVID computes
    paper    -log sigmoid(beta * [S(y_w|m) - (1-w) * S(y_t|m) - w * S(y_n|m_n)])        one sigmoid, under the noise

`proper` is the default: in `code`, once the policy has moved, policy and reference log-probabilities belong to
different sequences and their difference is no log-ratio. `anchor` adds mDPO's anchor on the chosen answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from minipovid.train import losses
from minipovid.train.losses import Judged, ScoreTable, View, ViewKey

CHOSEN: ViewKey = ("chosen", "clean")
REJECTED: ViewKey = ("rejected", "clean")
NOISED: ViewKey = ("chosen", "noised")


@dataclass(frozen=True)
class Loss:
    variant: Literal["proper", "paper", "code"] = "proper"  # how the noisy answer is scored (docs/methods.md)
    beta: losses.Positive = 0.1  # the smaller, the farther the policy may go from the reference
    noise_weight: losses.Share = 0.5  # the noisy answer's share; the rejected text has the rest
    anchor: losses.Weight = 0.0  # weight of the term that keeps the chosen answer likely

    @property
    def views(self) -> Sequence[View]:
        """`proper` and `code` score the noisy answer under the clean picture, `paper` and `code` also look at the
        reference under the noise."""
        chosen = View(*CHOSEN, reference="own" if self.variant == "paper" else "any")
        noised = View(*NOISED, grad=self.variant == "paper", reference="nothing" if self.variant == "proper" else "any")
        return chosen, View(*REJECTED, reference="own"), noised

    def __call__(self, policy: ScoreTable, reference: ScoreTable) -> Judged:
        chosen = losses.log_ratio(policy[CHOSEN], reference[CHOSEN])
        rejected = losses.log_ratio(policy[REJECTED], reference[REJECTED])
        noisy = self._noisy_log_ratio(policy, reference)
        w = self.noise_weight
        if self.variant == "paper":
            loss = -F.logsigmoid(self.beta * (chosen - (1 - w) * rejected - w * noisy))
        else:
            loss = (1 - w) * losses.prefer(chosen, rejected, self.beta) + w * losses.prefer(chosen, noisy, self.beta)
        if self.anchor:
            loss = loss + self.anchor * losses.anchor(chosen, self.beta)
        return Judged(loss, losses.preferred(chosen, rejected, self.beta))

    def _noisy_log_ratio(self, policy: ScoreTable, reference: ScoreTable) -> Tensor:
        ids = policy[NOISED].argmax()  # [B, A]
        if self.variant == "paper":
            return losses.log_ratio(policy[NOISED], reference[NOISED], ids)
        if self.variant == "code":
            theirs = reference[NOISED].argmax()
            return (policy[CHOSEN].logps(ids) - reference[CHOSEN].logps(theirs)).sum(-1)
        return losses.log_ratio(policy[CHOSEN], reference[CHOSEN], ids)
