"""Pairs -> batches: what is read, what is refused, how text becomes tokens and pictures become views.

row of the data file -> Pair (a reader on the `pairs` shelf) -> Example (tokens) -> Batch (padded, with pictures)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import Dataset

from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.transform import ImageTransform
from minipovid.images.views import generator
from minipovid.images.views.cropped import crop
from minipovid.images.views.noised import Noiser
from minipovid.models.encoder import Encoder, Example
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.pairs.pair import ANSWERS, Pair
from minipovid.recipe.schema import Recipe
from minipovid.train.batch import Batch, Pictures
from minipovid.train.losses import ViewKey

Item = tuple[Example, dict[str, np.ndarray]]


class PairDataset(Dataset["Item | MinipovidError"]):
    """Examples with their pictures, indexed by (epoch, row) because noise and crops may depend on the epoch."""

    def __init__(
        self, pairs: Sequence[Pair], root: Path, encoder: Encoder, transform: ImageTransform, recipe: Recipe
    ) -> None:
        self.pairs, self.root, self.encoder, self.transform, self.seed = pairs, root, encoder, transform, recipe.seed
        self.noiser = Noiser.of(transform, recipe.noise, recipe.seed)
        self.kinds: tuple[str, ...] = ("clean",)  # the stage sets what its loss looks at

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
        """Normalised pixels [3, S, S] of one view of the pair's picture."""
        path = images.inside(self.root, pair.image)
        makers: dict[str, Callable[[], np.ndarray]] = {
            "clean": lambda: self.transform(images.load(path)),
            "noised": lambda: self.noiser(path, pair.id, epoch),
            "cropped": lambda: self.transform(self._crop(path, pair, epoch)),
        }
        return makers[kind]().astype(np.float32, copy=False)

    def _crop(self, path: Path, pair: Pair, epoch: int) -> Image:
        return crop(images.load(path), generator(self.seed, pair.id, epoch, "cropped"))


def collate(found: Sequence[Item | MinipovidError]) -> Batch | MinipovidError:
    """Pad and stack. Nothing is ever cut; a picture that several pairs show is kept once. One error stands for all."""
    items = [item for item in found if not isinstance(item, MinipovidError)]
    if len(items) < len(found):
        return next(item for item in found if isinstance(item, MinipovidError))
    examples = [example for example, _ in items]
    images: dict[str, Pictures] = {}
    keys: dict[ViewKey, list[bytes]] = {}
    for kind in items[0][1]:
        arrays = [views[kind] for _, views in items]
        digests = [hashlib.sha256(array.data).digest() for array in arrays]
        distinct = list(dict.fromkeys(digests))
        pixels = np.stack([arrays[digests.index(digest)] for digest in distinct])
        images[kind] = Pictures(torch.from_numpy(pixels), torch.tensor([distinct.index(each) for each in digests]))
        for answer in ANSWERS:
            keys[answer, kind] = [_key(*both, answer) for both in zip(digests, examples, strict=True)]
    prompt = Tokens.padded([example.prompt for example in examples])
    answers = {answer: Tokens.padded([example.answers[answer] for example in examples]) for answer in ANSWERS}
    return Batch(prompt, answers, images, keys)


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
