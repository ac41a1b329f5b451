"""Pairs ready to be scored: padded tokens, distinct pictures, and the keys of what was scored before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from minipovid.models.tree_attention.forest import Forest
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.train.losses import ViewKey


class Pictures(NamedTuple):
    """The distinct pictures among those of B pairs, as normalised pixels."""

    pixels: Tensor  # [U, 3, S, S] in float32, or in the tower's type
    which: Tensor  # [B] of them is each pair's

    def to(self, device: torch.device) -> Pictures:
        return Pictures(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass
class Batch:
    """B pairs, ready to be scored. `features` fills as pictures pass the tower (see scoring); `forests` holds where the
    tokens of prompt and answers stand, for answers that are scored together, where that is known beforehand."""

    prompt: Tokens  # the placeholder stands once per image token
    answers: dict[str, Tokens]
    images: dict[str, Pictures]
    keys: dict[ViewKey, list[bytes]]  # 32 bytes per pair that name all which a view's scores depend on but the model
    features: dict[str, Tensor] = field(default_factory=dict)  # [U, N, H]
    forests: dict[tuple[str, ...], Forest] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompt.lengths)

    def forest(self, answers: tuple[str, ...]) -> Forest:
        """Prompt and these answers in rows."""
        if answers not in self.forests:
            parts = [self.prompt, *(self.answers[answer] for answer in answers)]
            self.forests[answers] = Forest(parts, self.prompt.ids.device)
        return self.forests[answers]

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.prompt.to(device),
            {answer: tokens.to(device) for answer, tokens in self.answers.items()},
            {image: pictures.to(device) for image, pictures in self.images.items()},
            self.keys,
            forests={answers: forest.to(device) for answers, forest in self.forests.items()},
        )

    def subset(self, pairs: Sequence[int]) -> Batch:
        """These pairs alone. The pictures stay, so that what the tower says of them is shared."""
        rows = torch.tensor(pairs).to(self.prompt.ids.device, non_blocking=True)
        return Batch(
            self.prompt.subset(pairs),
            {answer: tokens.subset(pairs) for answer, tokens in self.answers.items()},
            {image: Pictures(both.pixels, both.which.index_select(0, rows)) for image, both in self.images.items()},
            {view: [keys[pair] for pair in pairs] for view, keys in self.keys.items()},
            self.features,
        )

    def pin_memory(self) -> Batch:
        """Called by torch's DataLoader: page-locked memory is copied to the GPU while that computes."""
        return Batch(
            self.prompt.pin_memory(),
            {answer: tokens.pin_memory() for answer, tokens in self.answers.items()},
            {image: Pictures(*(tensor.pin_memory() for tensor in both)) for image, both in self.images.items()},
            self.keys,
            forests={answers: forest.pin_memory() for answers, forest in self.forests.items()},
        )
