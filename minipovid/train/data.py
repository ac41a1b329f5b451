"""Pairs -> batches: what is read, what is refused, how text becomes tokens and pictures become views.

row of the data file -> Pair (a reader on the `pairs` shelf) -> Example (tokens) -> Batch (padded, with pictures)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import Dataset

from minipovid.common.caches.ring import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.images.views.noised import Noiser
from minipovid.models import chat_template as chats
from minipovid.models.chat_template import Chat
from minipovid.pairs import formats as formats
from minipovid.pairs.formats import Unpaired, where
from minipovid.pairs.make import builtin
from minipovid.pairs.pair import BadRow, Pair
from minipovid.recipe.schema import BUILTIN, DataSection, Recipe
from minipovid.train.losses import ViewKey

if TYPE_CHECKING:
    from minipovid.models.model import Model

ANSWERS: tuple[str, ...] = ("chosen", "rejected")


class Tokens(NamedTuple):
    """Right-padded token ids; A stands for P where it is the prompt."""

    ids: Tensor  # [B, A]
    mask: Tensor  # [B, A] True where a token is real
    real: Tensor  # [N] where those are in the flattened ids
    lengths: tuple[int, ...]  # B of them, known without asking a GPU

    @classmethod
    def padded(cls, rows: Sequence[Sequence[int]]) -> Tokens:
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        return cls.of(ids, tuple(len(row) for row in rows))

    @classmethod
    def of(cls, ids: Tensor, lengths: tuple[int, ...]) -> Tokens:
        mask = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
        real = mask.flatten().nonzero()[:, 0]
        return cls(ids, mask.to(ids.device), real.to(ids.device), lengths)

    def subset(self, rows: Sequence[int]) -> Tokens:
        ids = self.ids.index_select(0, torch.tensor(rows, device=self.ids.device))
        return Tokens.of(ids, tuple(self.lengths[row] for row in rows))

    def to(self, device: torch.device) -> Tokens:
        ids, mask, real = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Tokens(ids, mask, real, self.lengths)

    def pin_memory(self) -> Tokens:
        return Tokens(self.ids.pin_memory(), self.mask.pin_memory(), self.real.pin_memory(), self.lengths)


class Pictures(NamedTuple):
    """The distinct pictures among those of B pairs, as normalised pixels."""

    pixels: Tensor  # [U, 3, S, S]
    which: Tensor  # [B] of them is each pair's

    def to(self, device: torch.device) -> Pictures:
        return Pictures(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass
class Batch:
    """B pairs, ready to be scored. `features` fills as pictures pass the tower (see scoring)."""

    prompt: Tokens  # the placeholder stands once per image token
    answers: dict[str, Tokens]
    images: dict[str, Pictures]
    keys: dict[ViewKey, list[bytes]]  # 32 bytes per pair that name all which a view's scores depend on but the model
    features: dict[str, Tensor] = field(default_factory=dict)  # [U, N, H]

    def __len__(self) -> int:
        return len(self.prompt.lengths)

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.prompt.to(device),
            {answer: tokens.to(device) for answer, tokens in self.answers.items()},
            {image: pictures.to(device) for image, pictures in self.images.items()},
            self.keys,
        )

    def subset(self, pairs: Sequence[int]) -> Batch:
        """These pairs alone. The pictures stay, so that what the tower says of them is shared."""
        rows = torch.tensor(pairs, device=self.prompt.ids.device)
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
        )


class Example(NamedTuple):
    """One pair as token ids; the prompt holds every image token."""

    prompt: list[int]
    answers: dict[str, list[int]]


class Encoder:
    """Text to tokens for one model: a pair's Example, or a sentence that says why the pair cannot be trained on."""

    def __init__(self, chat: Chat, tokenizer: Any, image_token_id: int, image_tokens: int, max_length: int) -> None:
        self.chat, self.tokenizer = chat, tokenizer
        self.image_token_id, self.image_tokens, self.max_length = image_token_id, image_tokens, max_length

    @classmethod
    def of(cls, model: Model, max_length: int) -> Encoder:
        chat = chats.of(model.folder, model.tokenizer)
        return cls(chat, model.tokenizer, model.image_token_id, model.image_tokens, max_length)

    def __call__(self, pair: Pair) -> Example:
        """Raises MinipovidError where the row does not fit `max_length` or holds the placeholder as text."""
        prompt = self.chat.prompt(pair.prompt)
        prompt_ids = self.tokenizer(prompt).input_ids
        answers: dict[str, list[int]] = {}
        for kind in ANSWERS:
            answers[kind] = self._continuation(prompt, prompt_ids, getattr(pair, kind), kind)
        where = prompt_ids.index(self.image_token_id)
        expanded = [*prompt_ids[:where], *[self.image_token_id] * self.image_tokens, *prompt_ids[where + 1 :]]
        for kind, ids in answers.items():
            self._fits(kind, len(expanded) - self.image_tokens, len(ids))
        return Example(expanded, answers)

    def _continuation(self, prompt: str, prompt_ids: list[int], text: str, kind: str) -> list[int]:
        """The answer's tokens as they follow the prompt; tokenising both together must not change the prompt's own."""
        ids: list[int] = self.tokenizer(prompt + self.chat.answer(text)).input_ids
        if ids.count(self.image_token_id) != 1:
            raise MinipovidError(f"the image placeholder stands in the prompt or {kind} answer as text; take it out")
        if ids[: len(prompt_ids)] != prompt_ids:
            raise MinipovidError(f"the {kind} answer's first characters melt into the prompt's last token; rephrase it")
        return ids[len(prompt_ids) :]

    def _fits(self, kind: str, prompt: int, answer: int) -> None:
        total = prompt + self.image_tokens + answer
        if total > self.max_length:
            raise MinipovidError(
                f"prompt ({prompt}), picture ({self.image_tokens}) and {kind} answer ({answer}) take {total} tokens, "
                f"more than data.max_length {self.max_length}; shorten the row or raise data.max_length"
            )


def load_pairs(section: DataSection, encoder: Encoder) -> tuple[list[Pair], list[BadRow]]:
    """Every usable pair of the data set, and every row that is none.

    Pictures are decoded once here, so that a broken one is found now and not in the ninth hour. On `on_bad_row: stop`
    bad rows raise one MinipovidError that names each of the first ten.
    """
    path, root = locate(section)
    found = enumerate(islice(formats.reader(section.format).read(path), section.limit), 1)
    rows = [_placed(row, number, root) for number, row in found]
    bad_pictures = _bad_pictures(root, {row.image for row in rows if isinstance(row, Pair)})
    pairs: list[Pair] = []
    bad: list[BadRow] = []
    for number, row in enumerate(rows, 1):
        verdict = _judge(row, number, bad_pictures, encoder)
        if isinstance(verdict, BadRow):
            bad.append(verdict)
        else:
            pairs.append(verdict)
    wrong = [row for row in bad if not isinstance(row, Unpaired)]
    if wrong and section.on_bad_row == "stop":
        shown = "\n".join(f"{path.name}: {row.where}: {row.why}." for row in wrong[:10])
        more = f"\n... and {len(wrong) - 10} more." if len(wrong) > 10 else ""
        raise MinipovidError(f"{shown}{more}\nMend or remove these rows, or set data.on_bad_row: skip.")
    if not pairs:
        raise MinipovidError(f"{path} holds no usable pair among {len(rows)} rows.")
    return pairs, bad


def held_out(pairs: int, section: DataSection) -> int:
    """How many of a run's pairs, the last ones, no training sees."""
    return min(section.held_out, pairs // 10)


def locate(section: DataSection) -> tuple[Path, Path]:
    """(the data file or folder of shards, the folder its image paths are relative to).

    The built-in world is drawn, and its pairs are made, on first use. Pictures that lie inside the data file are kept
    in the cache folder, under names that say their content; `load_pairs` puts them there.
    """
    if section.path == BUILTIN:
        return builtin.pairs()
    path = Path(section.path)
    if not path.exists():
        raise MinipovidError(f"There is no data file {path} (data.path).")
    if _holds_pictures(path, section.format):
        return path, _store()
    root = Path(section.images) if section.images is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise MinipovidError(f"There is no image folder {root} (data.images).")
    return path, root


def _store() -> Path:
    return cache_folder() / "pictures"


def _holds_pictures(path: Path, format: str) -> bool:
    """Whether the first pair's picture lies inside the data file."""
    rows = islice(formats.reader(format).read(path), formats.HEAD)
    image = next((row.image for row in rows if isinstance(row, Pair)), "")
    return isinstance(image, Embedded)


def _placed(row: Pair | BadRow, number: int, root: Path) -> Pair | BadRow:
    """The pair with its picture as a file below `root`. One root serves all: a data set's first pair decides which."""
    if isinstance(row, BadRow):
        return row
    image, stored = row.image, root == _store()
    if isinstance(image, Embedded) and stored:
        return replace(row, image=Store(root).keep(image))
    if not isinstance(image, Embedded) and not stored:
        return replace(row, image=placed(root, image))
    lies = "a file, and the first pair's is inside the data file" if stored else "inside the data file, the first's not"
    return BadRow(where(row, number), f"its picture is {lies}; `minipovid pairs import` takes both kinds")


def _bad_pictures(root: Path, names: set[str]) -> dict[str, str]:
    """Why each unusable picture is unusable, by its name."""

    def problem(name: str) -> tuple[str, str | None]:
        try:
            images.load(images.inside(root, name))
        except MinipovidError as error:
            return name, str(error).rstrip(".")
        return name, None

    with ThreadPoolExecutor() as pool:
        return {name: why for name, why in pool.map(problem, sorted(names)) if why is not None}


def _judge(row: Pair | BadRow, number: int, bad_pictures: dict[str, str], encoder: Encoder) -> Pair | BadRow:
    if isinstance(row, BadRow):
        return row
    if row.image in bad_pictures:
        return BadRow(where(row, number), bad_pictures[row.image])
    try:
        encoder(row)
    except MinipovidError as error:
        return BadRow(where(row, number), str(error))
    return row


Item = tuple[Example, dict[str, np.ndarray]]


class PairDataset(Dataset["Item | MinipovidError"]):
    """Examples with their pictures, indexed by (epoch, row) because noise and crops may depend on the epoch."""

    def __init__(
        self, pairs: Sequence[Pair], root: Path, encoder: Encoder, transform: images.ImageTransform, recipe: Recipe
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
            return self.encoder(pair), {kind: self._pixels(kind, pair, epoch) for kind in self.kinds}
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
        return images.crop(images.load(path), images.generator(self.seed, pair.id, epoch, "cropped"))


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
        for row in images.generator(seed, "", epoch, "order").permutation(pairs).tolist():
            yield epoch, row
