"""The style leak: how often a bag of words tells the good answer from the bad one without ever seeing the picture.

A preference that words alone give away is learnt from the words: POVID's own pairs are told apart in 99 of 100 cases,
and the reward model that learnt them so was right in 24 to 34 of 100 of another data set's (arXiv 2407.02477, table 7).

The model is Bradley and Terry's, as DPO's is: P(chosen over rejected) = sigmoid(w . x), where x_j is 1, 0 or -1 as the
chosen answer has word or pair of words j more often, as often or less often than the rejected one. w is fitted with a
ridge penalty on some pictures' pairs and asked about the others', no picture being on both sides. The score is the
share of held-out pairs that it orders rightly, a tie counting half: 0.5 is chance.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from minipovid.pairs.check.lengths import ENOUGH, TELL
from minipovid.pairs.pair import Pair

FOLDS = 5
STEPS = 60  # of AdaGrad over all pairs; more change no third digit
RATE = 0.5
RIDGE = 1.0  # on the sum of the losses
RARE = 2  # pairs; a feature of fewer cannot help with another picture
TELLING = 10  # words shown

# A letter of a script without spaces is a word; so is every mark and line break, for a habit of style.
_TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+|[^\w\s]|\n")


class Telling(NamedTuple):
    """A word, or two in a row, by which the sides are told apart."""

    words: str
    chosen: int  # pairs whose chosen answer has it more often
    rejected: int


class Leak(NamedTuple):
    """The score, over `pairs` of them, and its standard error."""

    accuracy: float
    error: float
    pairs: int
    telling: tuple[Telling, ...]

    def warning(self) -> str | None:
        if self.accuracy < TELL or self.pairs < ENOUGH:
            return None
        words = ", ".join(f"{each.words!r} ({each.rejected}:{each.chosen})" for each in self.telling)
        return (
            f"style leak: words alone, without the picture, order {self.accuracy:.0%} of the pairs rightly (0.5 is "
            f"chance, POVID's own pairs 0.99, warned from {TELL}); the model may learn the style. The most telling, "
            f"with pairs that have them in the rejected and in the chosen answer: {words}."
        )


class SparseRows(NamedTuple):
    """A sparse matrix [R, V], entry by entry."""

    row: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    shape: tuple[int, int]

    def times(self, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[V] -> [R]"""
        return _sums(self.row, self.value * weights[self.feature], self.shape[0])

    def back(self, errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """[R] -> [V]"""
        return _sums(self.feature, self.value * errors[self.row], self.shape[1])

    def of(self, mask: npt.NDArray[np.bool_]) -> SparseRows:
        """The rows of the mask, under their old numbers; the others are empty."""
        here = mask[self.row]
        return SparseRows(self.row[here], self.feature[here], self.value[here], self.shape)


def _sums(place: npt.NDArray[np.int64], values: npt.NDArray[np.float64], places: int) -> npt.NDArray[np.float64]:
    return np.bincount(place, values, places).astype(np.float64, copy=False)  # integers where there is nothing to add


def leak(pairs: Sequence[Pair], seed: int = 0) -> Leak | None:
    """None where the pairs show a single picture, or there are none: nothing could be held out."""
    folds = _folds([pair.image for pair in pairs], seed)
    if folds is None:
        return None
    features, rows = _features(pairs)
    right = np.full(len(pairs), 0.5)
    for fold in range(folds.max() + 1):
        margins = rows.of(folds == fold).times(fit(rows.of(folds != fold)))
        right[folds == fold] = (np.sign(margins[folds == fold]) + 1) / 2
    accuracy, telling = float(right.mean()), tuple(_telling(features, rows))
    return Leak(accuracy, float(np.sqrt(accuracy * (1 - accuracy) / len(pairs))), len(pairs), telling)


def _folds(images: Sequence[str], seed: int) -> npt.NDArray[np.int64] | None:
    """Which fold each pair is in; all of a picture's in one."""
    names = {name: number for number, name in enumerate(dict.fromkeys(images))}
    if len(names) < 2:
        return None
    folds = np.random.default_rng(seed).permutation(len(names)) % min(FOLDS, len(names))
    return folds[[names[name] for name in images]]


def _features(pairs: Sequence[Pair]) -> tuple[list[str], SparseRows]:
    """The words and pairs of words in which two answers or more differ, and who has them: 1 chosen, -1 rejected."""
    numbers: dict[str, int] = {}
    rows, features, values = array("q"), array("q"), array("q")
    for row, pair in enumerate(pairs):
        difference = _counts(pair.chosen)
        difference.subtract(_counts(pair.rejected))
        for words, count in difference.items():
            if count:
                rows.append(row)
                features.append(numbers.setdefault(words, len(numbers)))
                values.append(1 if count > 0 else -1)
    row_of, feature_of, value_of = (np.array(each, np.int64) for each in (rows, features, values))
    common = np.bincount(feature_of, minlength=len(numbers)) >= RARE
    frequent = common[feature_of]
    names = [words for words, number in numbers.items() if common[number]]
    renumbered = (np.cumsum(common) - 1)[feature_of[frequent]]
    return names, SparseRows(row_of[frequent], renumbered, value_of[frequent].astype(float), (len(pairs), len(names)))


def _counts(text: str) -> Counter[str]:
    words = _TOKEN.findall(text.casefold())
    return Counter([*words, *map(" ".join, pairwise(["^", *words, "$"]))])


def fit(rows: SparseRows) -> npt.NDArray[np.float64]:
    """Weights [V] that minimise sum log(1 + exp(-x . w)) + RIDGE / 2 |w|^2 over the rows, by AdaGrad."""
    weights, squares = np.zeros(rows.shape[1]), np.full(rows.shape[1], 1e-9)
    for _ in range(STEPS):
        errors = 1 / (1 + np.exp(np.clip(rows.times(weights), -30, 30)))
        slope = RIDGE * weights - rows.back(errors)
        squares += slope**2
        weights -= RATE * slope / np.sqrt(squares)
    return weights


def _telling(names: list[str], rows: SparseRows) -> Iterator[Telling]:
    """The features that give most to the margins of the pairs as they are."""
    gains = fit(rows) * rows.back(np.ones(rows.shape[0]))
    for number in np.argsort(-gains, kind="stable")[:TELLING]:
        values = rows.value[rows.feature == number]
        yield Telling(names[number].replace("\n", "\\n"), int((values > 0).sum()), int((values < 0).sum()))
