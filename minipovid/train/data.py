"""Pairs -> batches: what is read, what is refused, how text becomes tokens and pictures become views.

row of the data file -> Pair (a reader on the `pairs` shelf) -> Example (tokens) -> Batch (padded, with pictures)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.transform import ImageTransform
from minipovid.images.views import CLEAN, OpenView, generator, open_view
from minipovid.models.encoder import Encoder, Example
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.pairs.pair import ANSWERS, Pair
from minipovid.recipe.schema import Recipe
from minipovid.train.batch import Batch, Pictures
from minipovid.train.losses import ViewKey

Item = tuple[Example, dict[str, np.ndarray]]


class PairDataset(Dataset["Item | MinipovidError"]):
    """Examples with their pictures, indexed by (epoch, row) because a view may be drawn anew in each epoch."""

    def __init__(
        self, pairs: Sequence[Pair], root: Path, encoder: Encoder, transform: ImageTransform, recipe: Recipe
    ) -> None:
        self.pairs, self.root, self.encoder, self.transform, self.recipe = pairs, root, encoder, transform, recipe
        self.kinds: tuple[str, ...] = (CLEAN,)  # the stage sets what its loss looks at
        self.opened: dict[str, OpenView] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Item | MinipovidError:
        """The error instead of raising it: what a data loader's worker raises becomes a traceback."""
        epoch, row = key
        pair = self.pairs[row]
        try:
            pixels = {kind: self._pixels(kind, pair, epoch) for kind in self.kinds}
            return self.encoder(pair.prompt, pair.texts()), pixels
        except MinipovidError as error:
            return error

    def _pixels(self, kind: str, pair: Pair, epoch: int) -> np.ndarray:
        """Normalised pixels [3, S, S] of one view of the pair's picture, in float32."""
        if kind not in self.opened:
            self.opened[kind] = open_view(kind, self.recipe, self.transform)
        path = images.inside(self.root, pair.image)
        return self.opened[kind](path, pair.id, epoch).astype(np.float32, copy=False)


def collate(
    results: Sequence[Item | MinipovidError],
    together: Sequence[tuple[str, ...]] = (),
    dtype: torch.dtype = torch.float32,
) -> Batch | MinipovidError:
    """Pad and stack. Nothing is ever cut; a picture that several pairs show is kept once. One error stands for all.

    Answers that are scored `together` find their places here, before the step; and pixels are rounded here to the
    tower's `dtype`, as it would round them: in 16 bits a batch takes half of the memory that processes share.
    """
    items: list[Item] = []
    for result in results:
        if isinstance(result, MinipovidError):
            return result
        items.append(result)
    examples = [example for example, _ in items]
    images: dict[str, Pictures] = {}
    keys: dict[ViewKey, list[bytes]] = {}
    for kind in items[0][1]:
        arrays = [views[kind] for _, views in items]
        digests = [hashlib.sha256(array.data).digest() for array in arrays]
        distinct = list(dict.fromkeys(digests))
        pixels = np.stack([arrays[digests.index(digest)] for digest in distinct])
        images[kind] = Pictures(
            torch.from_numpy(pixels).to(dtype), torch.tensor([distinct.index(each) for each in digests])
        )
        for answer in ANSWERS:
            keys[answer, kind] = [_key(*both, answer) for both in zip(digests, examples, strict=True)]
    prompt = Tokens.padded([example.prompt for example in examples])
    answers = {answer: Tokens.padded([example.answers[answer] for example in examples]) for answer in ANSWERS}
    batch = Batch(prompt, answers, images, keys)
    for some in together:
        batch.forest(some)
    return batch


def _key(picture: bytes, example: Example, answer: str) -> bytes:
    """Of the pixels and tokens themselves: whatever changes them (template, transform, seed, data) changes the key."""
    return hashlib.sha256(picture + repr((example.prompt, example.answers[answer])).encode()).digest()


def visiting_order(pairs: int, epochs: range, seed: int) -> Iterator[tuple[int, int]]:
    """(epoch, row) in the order a stage visits them: a fresh shuffle each epoch, the same in every process and run.

    Epochs are counted through all stages of a run, so that no two stages, and no two seeds, share a shuffle.
    """
    for epoch in epochs:
        for row in generator(seed, "", epoch, "order").permutation(pairs).tolist():
            yield epoch, row
