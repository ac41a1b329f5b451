"""How far one model's answers are from the trained one's, in nats, and how far is too far.

Letters: A positions of an answer, V tokens of the vocabulary, K tokens that the sheet keeps of each position.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minipovid.common.arrays import Array, Doubles
from minipovid.verify.sheet import TrainedAnswer

TINY = 0.1  # nats: of trained margins smaller than this (root mean square) no share can be told
JITTER = 0.02  # nats by which llama.cpp's 16-bit memory moves a margin


class Tolerance(NamedTuple):
    """What a file may lose."""

    kl: float  # nats per position, at most
    agreement: float  # share of positions, at least
    kept: float  # how far the share of the margin may be from 1


# By bits per weight. Measured on the tiny world (40 steps of each stage, 3 seeds, 32 held-out pairs, 1,564 positions)
# and the base that training saw; the worst seed:
#     bits        16        8         5        4        3        2
#     KL          0.00002   0.00005   0.0014   0.0007   0.0022   0.0033
#     agreement   99.9 %    99.4 %    99.2 %   99.2 %   98.3 %   97.1 %
#     1 - kept    0.2 %     0.1 %     0.7 %    1.1 %    2.0 %    1.6 %
# A trained model 128 wide is easy; random ones of that size, which are all edge, lose 0.005 at 8 bits and more below.
# The bounds stand between. What a file must hold exactly (weights, tokens, picture) is judged by itself, not by these.
TOLERANCES = {
    16: Tolerance(kl=0.001, agreement=0.98, kept=0.03),
    8: Tolerance(kl=0.01, agreement=0.95, kept=0.05),
    6: Tolerance(kl=0.02, agreement=0.94, kept=0.10),
    5: Tolerance(kl=0.04, agreement=0.92, kept=0.15),
    4: Tolerance(kl=0.10, agreement=0.90, kept=0.20),
    3: Tolerance(kl=0.20, agreement=0.85, kept=0.30),
    2: Tolerance(kl=0.40, agreement=0.75, kept=0.40),
}
# What may be lost besides, where the adapter was added to another base than training saw (16 bits instead of 4).
# Measured as above on Q6_K, whose own loss is nil there: KL 0.006, agreement 97.5 %, kept 95 %.
OTHER_BASE = Tolerance(kl=0.03, agreement=0.05, kept=0.15)


def bits(quant: str) -> int:
    """Bits per weight by the quantisation's name: 16 of "bf16", 4 of "q4_k_m"."""
    number = re.search(r"\d+", quant)
    return int(number[0]) if number else 16


def tolerance(bits: int, same_base: bool) -> Tolerance:
    """That of so many bits; `same_base`: on the base that training saw."""
    due = TOLERANCES[max((each for each in TOLERANCES if each <= bits), default=min(TOLERANCES))]
    if same_base:
        return due
    more = OTHER_BASE
    return Tolerance(due.kl + more.kl, due.agreement - more.agreement, due.kept + more.kept)


def log_softmax(logits: Array) -> Doubles:
    """Log-probabilities [..., V] in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def divergence(trained: TrainedAnswer, logps: Array) -> Doubles:
    """KL(trained || other) [A] in nats, over the K kept tokens and all others as one.

    Taking tokens together loses what differs among them: it is a lower bound (the log-sum inequality), and exact where
    the sheet keeps the whole vocabulary.
    """
    ours = trained.top_logps.astype(np.float64)
    theirs = np.take_along_axis(logps, trained.top_ids.astype(np.int64), -1)
    kl: Doubles = (np.exp(ours) * (ours - theirs)).sum(-1)
    if ours.shape[-1] < logps.shape[-1]:
        rest, other = (np.maximum(1 - np.exp(each).sum(-1), 1e-12) for each in (ours, theirs))
        kl = kl + rest * np.log(rest / other)
    return np.maximum(kl, 0)  # rounding


class Margins(NamedTuple):
    """Preference margins of some pairs, in nats: log-prob of chosen minus rejected, minus the same of the base."""

    mean: float
    kept: float | None  # share of the trained margins; None: these are too small to tell
    doubt: float  # two standard errors of `kept`, and what jitter may make of it


def margins(file: Sequence[float], trained: Sequence[float]) -> Margins:
    """`kept` is the slope of the least-squares line through 0 of a file's margins over the trained ones.

    A ratio of means breaks where the trained mean is small or its pairs have both signs; the slope asks of each pair
    how much of its own margin is left, and weighs it by how much there was. What rounding adds at random cancels.
    """
    y, x = np.asarray(file, np.float64), np.asarray(trained, np.float64)
    mean = float(y.mean()) if len(y) else math.nan
    size = math.sqrt(float((x**2).mean())) if len(x) else 0.0
    if size < TINY:
        return Margins(mean, None, 0.0)
    slope = float(x @ y / (x @ x))
    rest = float(((y - slope * x) ** 2).sum()) / max(len(x) - 1, 1)
    return Margins(mean, slope, 2 * math.sqrt(rest / float(x @ x)) + JITTER / size)
