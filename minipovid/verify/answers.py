"""One pair's answers by another model than the trained one, beside what that one said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import Pair
from minipovid.verify.measures import divergence, log_softmax
from minipovid.verify.sheet import ANSWERS, Array, Row, margin


class Speaker(Protocol):
    """Whoever answers from a file: minipovid.inference.llama_cpp.Runtime is one."""

    def prompt_ids(self, prompt: str) -> list[int]: ...

    def answer_tokens(self, prompt: str, answer: str) -> list[int]: ...

    def logits(self, image: Path, prompt: str, answer: str) -> Array: ...


class Said(NamedTuple):
    """Of one pair. `kl` and `same` are only of answers that have the tokens of training: others do not line up."""

    kl: Array  # [positions] KL(trained || this) in nats
    same: Array  # [positions] bool: the same greedy choice
    parity: float  # share of prompt and answers that have the tokens of training
    margin: float | None  # nats, against the trained model's base; None where an answer could not be told
    moved: (
        Array  # [3] of the tokens' log-probs: <this - trained, base - trained>, |base - trained|^2, |this - trained|^2
    )


def judge(row: Row, logits: Mapping[str, Array], ids: Mapping[str, Sequence[int]], prompt: bool) -> Said:
    """From the logits [A, V] of both answers and their tokens [A]; `prompt`: has it the tokens of training?"""
    kl, same, sums, moved = [np.empty(0)], [np.empty(0, bool)], {}, np.zeros(3)
    equal = [prompt]
    for kind in ANSWERS:
        told, tokens = row.answers[kind], np.asarray(ids.get(kind, ()), np.int64)
        equal.append(tokens.tolist() == told.ids.tolist())
        if kind not in logits:
            continue
        logps = log_softmax(logits[kind])
        own = logps[np.arange(len(tokens)), tokens]
        sums[kind] = float(own.sum())
        if equal[-1]:
            kl.append(divergence(told, logps))
            same.append(logps.argmax(-1) == told.top_ids[:, 0])
            way, here = (each - told.logps.astype(np.float64) for each in (told.base_logps, own))
            moved += here @ way, way @ way, here @ here
    whole = len(sums) == len(ANSWERS)
    return Said(
        np.concatenate(kl),
        np.concatenate(same),
        sum(equal) / len(equal),
        margin(row, sums) if whole else None,
        moved,
    )


def ask(speaker: Speaker, row: Row, pair: Pair, picture: Path) -> Said:
    """Both answers of a pair, by a file."""
    ids: dict[str, list[int]] = {}
    for kind in ANSWERS:
        try:
            ids[kind] = speaker.answer_tokens(pair.prompt, getattr(pair, kind))
        except MinipovidError:  # this vocabulary lets prompt and answer melt into one token, the trained one did not
            continue
    logits = {kind: speaker.logits(picture, pair.prompt, getattr(pair, kind)) for kind in ids}
    return judge(row, logits, ids, list(speaker.prompt_ids(pair.prompt)) == row.prompt_ids.tolist())
