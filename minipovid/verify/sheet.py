"""What the trained model says of the held-out pairs, kept on disk: the side of a comparison that transformers computes.

    RUN/verify/trained.safetensors    {"0.chosen.ids": int32 [A], "0.chosen.top_logps": float32 [A, K], ...}

Whoever has the file needs neither the GPU nor the memory that made it. It is known by the adapter and by everything
that training saw of a pair, so that another training's file is computed anew and never trusted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from minipovid.common.arrays import Array
from minipovid.common.files import finished
from minipovid.images import load as images
from minipovid.models.chat_template import Chat
from minipovid.pairs.pair import ANSWERS, Pair

FORMAT = 2  # raise it when the same inputs shall give another file
TOP = 256  # tokens that are kept of each position


@dataclass(frozen=True)
class TrainedAnswer:
    """What the trained model, and its base, say of one answer of A tokens."""

    ids: Array  # int32 [A], end of turn included
    logps: Array  # float32 [A] of those tokens
    base_logps: Array  # float32 [A]
    base_kl: Array  # float32 [A] KL(trained || base)
    base_same: Array  # bool [A] does the base choose the same token?
    top_ids: Array  # int32 [A, K] the most probable tokens, best first
    top_logps: Array  # float32 [A, K]


@dataclass(frozen=True)
class TrainedPair:
    digest: str  # of what training saw of it
    prompt_ids: Array  # int32 [P], -1 where the picture stands
    answers: Mapping[str, TrainedAnswer]


@dataclass(frozen=True)
class TrainedSheet:
    """All of it.

    `features` are what the language model gets to see of the probe pictures, as they should be ("trained") and as
    known faults would make them: float32 [pictures, N, k], see vision.py. `scales` are what the library that trained
    the adapter multiplies B A with, by the canonical name of the weight: a second opinion on what the exporter reads.
    """

    rows: Sequence[TrainedPair]
    features: Mapping[str, Array]
    chat: Chat
    scales: Mapping[str, float]

    def only(self, digests: Sequence[str]) -> TrainedSheet | None:
        """The rows of these pairs, in this order; None where one of them is missing."""
        known = {row.digest: row for row in self.rows}
        if not all(digest in known for digest in digests):
            return None
        return replace(self, rows=[known[digest] for digest in digests])

    def margins(self) -> list[float]:
        """The trained preference margins against the base, pair by pair."""
        return [margin(row, {kind: float(row.answers[kind].logps.sum()) for kind in ANSWERS}) for row in self.rows]


def margin(row: TrainedPair, logps: Mapping[str, float]) -> float:
    """Log-probs of both answers -> chosen minus rejected, against the base's, in nats."""
    gain = {kind: logps[kind] - float(row.answers[kind].base_logps.sum()) for kind in ANSWERS}
    return gain["chosen"] - gain["rejected"]


def digest(pair: Pair, root: Path) -> str:
    """Of the pair's texts and of its picture's bytes."""
    picture = images.digest(images.inside(root, pair.image))
    content = json.dumps([pair.prompt, pair.chosen, pair.rejected]).encode() + picture
    return hashlib.sha256(content).hexdigest()


def save(path: Path, key: str, sheet: TrainedSheet) -> None:
    """Write the whole sheet, or nothing."""
    from safetensors.numpy import save as serialised

    tensors = {f"features.{name}": np.ascontiguousarray(value) for name, value in sheet.features.items()}
    for number, row in enumerate(sheet.rows):
        tensors[f"{number}.prompt_ids"] = row.prompt_ids
        for kind in ANSWERS:
            for each in fields(TrainedAnswer):
                value = getattr(row.answers[kind], each.name)
                tensors[f"{number}.{kind}.{each.name}"] = np.ascontiguousarray(value)
    facts = {"digests": [row.digest for row in sheet.rows], "chat": sheet.chat.dumps(), "scales": sheet.scales}
    with finished(path) as draft:
        draft.write_bytes(serialised(tensors, metadata={"key": key, "facts": json.dumps(facts)}))


def load(path: Path, key: str) -> TrainedSheet | None:
    """The sheet that was saved under this key; None where there is none, or one of something else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):  # damaged: computed anew
        return None
    facts = json.loads(metadata["facts"])
    features = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("features.")}
    return TrainedSheet(list(_rows(facts["digests"], tensors)), features, Chat.loads(facts["chat"]), facts["scales"])


def _rows(digests: Sequence[str], tensors: Mapping[str, Array]) -> Iterator[TrainedPair]:
    for number, digest in enumerate(digests):
        names = [each.name for each in fields(TrainedAnswer)]
        answers = {
            kind: TrainedAnswer(**{name: tensors[f"{number}.{kind}.{name}"] for name in names}) for kind in ANSWERS
        }
        yield TrainedPair(digest, tensors[f"{number}.prompt_ids"], answers)
