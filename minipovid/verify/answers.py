"""One pair's answers by another model than the trained one, beside what that one said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from minipovid.common.arrays import Array
from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import Pair
from minipovid.verify.measures import divergence, log_softmax
from minipovid.verify.sheet import ANSWERS, TrainedPair, margin


class LanguageModel(Protocol):
    """Whoever answers from a file: minipovid.inference.llama_cpp.Runtime is one."""

    def prompt_ids(self, prompt: str) -> list[int]: ...

    def answer_tokens(self, prompt: str, answer: str) -> list[int]: ...

    def logits(self, image: Path, prompt: str, answer: str) -> Array: ...


class PairComparison(NamedTuple):
    """One pair by a file, beside the trained model.

    `kl` and `same` are only of answers that have the tokens of training: others do not line up.
    """

    kl: Array  # [positions] KL(trained || this) in nats
    same: Array  # [positions] bool: the same greedy choice
    parity: float  # share of prompt and answers that have the tokens of training
    margin: float | None  # nats, against the trained model's base; None where an answer could not be told
    # [3] of the tokens' log-probs: <this - trained, base - trained>, |base - trained|^2, |this - trained|^2
    moved: Array


def compare(
    row: TrainedPair, logits: Mapping[str, Array], ids: Mapping[str, Sequence[int]], prompt: bool
) -> PairComparison:
    """From the logits [A, V] of both answers and their tokens [A]; `prompt`: has it the tokens of training?"""
    kl, same, sums, moved = [np.empty(0)], [np.empty(0, bool)], {}, np.zeros(3)
    equal = [prompt]
    for kind in ANSWERS:
        trained, tokens = row.answers[kind], np.asarray(ids.get(kind, ()), np.int64)
        equal.append(tokens.tolist() == trained.ids.tolist())
        if kind not in logits:
            continue
        logps = log_softmax(logits[kind])
        own = logps[np.arange(len(tokens)), tokens]
        sums[kind] = float(own.sum())
        if equal[-1]:
            kl.append(divergence(trained, logps))
            same.append(logps.argmax(-1) == trained.top_ids[:, 0])
            way, here = (each - trained.logps.astype(np.float64) for each in (trained.base_logps, own))
            moved += here @ way, way @ way, here @ here
    whole = len(sums) == len(ANSWERS)
    return PairComparison(
        np.concatenate(kl),
        np.concatenate(same),
        sum(equal) / len(equal),
        margin(row, sums) if whole else None,
        moved,
    )


def ask(model: LanguageModel, row: TrainedPair, pair: Pair, picture: Path) -> PairComparison:
    """Both answers of a pair, by a file."""
    ids: dict[str, list[int]] = {}
    for kind in ANSWERS:
        try:
            ids[kind] = model.answer_tokens(pair.prompt, getattr(pair, kind))
        except MinipovidError:  # this vocabulary lets prompt and answer melt into one token, the trained one did not
            continue
    logits = {kind: model.logits(picture, pair.prompt, getattr(pair, kind)) for kind in ids}
    return compare(row, logits, ids, list(model.prompt_ids(pair.prompt)) == row.prompt_ids.tolist())
