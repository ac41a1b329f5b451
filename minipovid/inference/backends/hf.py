"""transformers answers: the model as training has it (adapter on its base), merged, or the base alone.

Prompts, pictures and precision are training's. What the questions about one picture have in common, the picture above
all, is read once; the questions continue it side by side, in one row of the cache:

    columns      [ picture + common prompt | rest 1 | rest 2 | token 1 | token 2 | token 1 | ... ]
    positions      0 .. p-1                  p ..     p ..     as if each question stood alone
    attention      causal: the prefix and what belongs to the same question, never another question

The answers equal those to each question by itself, to float error.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from os.path import commonprefix
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DynamicCache

from minipovid.common.errors import MinipovidError
from minipovid.common.threads import one_core_each
from minipovid.images import load as images
from minipovid.inference.backends import Decoding, Question, refuse_obeyed
from minipovid.inference.llama_cpp import SMALL
from minipovid.models import adapter as lora
from minipovid.models import load
from minipovid.models.chat_template import Chat, Turn
from minipovid.models.device import is_out_of_memory
from minipovid.models.encoder import Encoder
from minipovid.models.hub import SETTINGS, resolve_model
from minipovid.models.model import Model
from minipovid.models.stored_tensors import Tensors
from minipovid.models.tree_attention.forest import MULTIPLE
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe

COLUMNS = 4096  # behind a prefix, answers included, in the cache at a time: 2 GiB of a 7B model's keys and values
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
PREFIX = -1  # owns a column that every question sees


@dataclass(frozen=True)
class Options:
    """`weights`: the trained model as it was trained, merged, or the model that it began with."""

    weights: Literal["adapter", "merged", "base"] = "adapter"


def open(run: Path, options: Options, decoding: Decoding) -> HfBackend:
    """Raises MinipovidError where the run, its adapter, its merged model or its base is missing, or too large here."""
    return HfBackend(run, options, decoding)


class HfBackend:
    """A model of the run in transformers."""

    concurrency = 1  # one picture is computed at a time

    def __init__(self, run: Path, options: Options, decoding: Decoding) -> None:
        self._weights, self._decoding = options.weights, decoding
        if (run / run_folder.GGUF).is_dir() and not (run / run_folder.RECIPE).is_file():
            raise MinipovidError(f"{run} holds GGUF files alone, and transformers reads none; use --backend gguf.")
        recipe = run_folder.recipe(run)
        with _memory():
            self._model = _load(run, options.weights, recipe)
        self._encoder = Encoder.of(self._model, sys.maxsize)
        self._chat = self._encoder.chat
        self._transform = self._model.family.image_transform(self._model.folder)
        # A tree forgets nothing, as a sliding window would.
        self._context = self._model.family.context(self._model.base.config)
        self._ends = _ends(self._model, self._chat.end)
        self._identity = _identity(run, options.weights, self._model, self._chat)

    @property
    def name(self) -> str:
        return "hf" if self._weights == "adapter" else f"hf-{self._weights}"

    @property
    def decoding(self) -> dict[str, Any]:
        return self._decoding.as_dict()

    def identity(self) -> dict[str, Any]:
        return {**self._identity, **self.decoding}

    def check(self, questions: Sequence[Question]) -> None:
        """Raises MinipovidError for a placeholder or special token in a prompt, and one that is too long."""
        refuse_obeyed(questions, self._chat)
        for question in questions:
            self._prompt(question, bool(question.image))

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        prompts = [self._prompt(question, picture is not None) for question in questions]
        # Every question keeps at least one token of its own: behind it stands what is said first.
        shared = min(len(commonprefix(prompts)), *(len(ids) - 1 for ids in prompts))
        prefix = self._read(prompts[0][:shared], picture)
        rests = [ids[shared:] for ids in prompts]
        widths = [len(rest) + question.max_tokens for rest, question in zip(rests, questions, strict=True)]
        for some in _parts(widths):
            yield from self._continued(prefix, rests[some], questions[some])

    def close(self) -> None:
        """Give the memory back; nothing can be asked any more."""
        del self._model
        self.__dict__.pop("_head", None)
        gc.collect()  # peft's modules know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _prompt(self, question: Question, has_picture: bool) -> list[int]:
        """The prompt's tokens as training has them, the placeholder once for each image token."""
        turn = Turn("user", question.prompt, (Path(),) if has_picture else ())  # pictures are only counted here
        ids = self._encoder.token_ids(self._chat.render([turn]))
        if has_picture:
            image = self._model.image_token_id
            at = ids.index(image)
            ids[at : at + 1] = [image] * self._model.image_tokens
        if len(ids) > self._context:
            raise MinipovidError(
                f"Question {question.id} takes {len(ids):,} tokens with its picture, more than the {self._context:,} "
                "that the model was trained for; shorten it."
            )
        return ids

    @torch.inference_mode()
    def _read(self, ids: Sequence[int], picture: Path | None) -> DynamicCache:
        """Keys and values of what the questions share."""
        cache, model = DynamicCache(), self._model
        if not ids:
            return cache
        row = torch.tensor([ids], device=model.device)
        with self._computing():
            if picture is None:
                embeddings = _embedded(model, row)
            else:
                pixels = torch.from_numpy(self._transform(images.load(picture)))
                embeddings = model.embed(row, model.image_features(pixels[None]))
            _hidden(model, embeddings, cache)
        return cache

    @torch.inference_mode()
    def _continued(
        self, prefix: DynamicCache, rests: Sequence[Sequence[int]], questions: Sequence[Question]
    ) -> list[str]:
        """The answers to questions whose prompts go on with `rests` behind the prefix."""
        branches, answers = Branches(self._model, self._head, prefix), [list[int]() for _ in questions]
        # The last token needs no room: nothing follows it.
        room = [self._context + 1 - prefix.get_seq_length() - len(rest) for rest in rests]
        most = [min(question.max_tokens, left) for question, left in zip(questions, room, strict=True)]
        draws = [_generator(self._decoding.seed, question) for question in questions]
        new = {number: rest for number, rest in enumerate(rests) if most[number] > 0}
        with self._computing():
            while new:
                chosen = self._chosen(branches.grow(new), [draws[number] for number in new])
                going = {number: token for number, token in zip(new, chosen, strict=True) if token not in self._ends}
                for number, token in going.items():
                    answers[number].append(token)
                new = {number: [token] for number, token in going.items() if len(answers[number]) < most[number]}
        return [self._text(ids) for ids in answers]

    def _chosen(self, logits: Tensor, draws: Sequence[torch.Generator]) -> list[int]:
        """A token for each row of logits [questions, V]."""
        if not self._decoding.temperature:
            return logits.argmax(-1).tolist()
        wide = logits.double().cpu()  # the largest is 0 before the division: no temperature is too low for that
        likely = ((wide - wide.amax(-1, keepdim=True)) / self._decoding.temperature).softmax(-1)
        return [int(torch.multinomial(row, 1, generator=draw)) for row, draw in zip(likely, draws, strict=True)]

    def _text(self, ids: Sequence[int]) -> str:
        """Without surrounding spaces, and without a character at the end of which some bytes are missing."""
        decode = partial(self._model.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text: str = decode(ids)
        for _ in range(3):  # bytes that may stand before a missing one; half a run of bytes is decoded as none of it
            if text.endswith(UNKNOWN):
                ids = ids[:-1]
                text = decode(ids)
        return text.rstrip(UNKNOWN).strip()

    @cached_property
    def _head(self) -> Tensor:
        """The output head [V, H] in float32, in which logits are multiplied as in train/scoring.py."""
        return self._model.head.weight.float()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """The weights that were chosen, in the precision of training (Model.hidden)."""
        device, dtype = self._model.device.type, self._model.head.weight.dtype
        # The fresh adapter of the other two adds nothing: it need not be computed.
        off = nullcontext() if self._weights == "adapter" else self._model.as_reference()
        is_small = sum(each.nbytes for each in self._model.base.parameters()) < SMALL
        threads = one_core_each() if is_small else nullcontext()
        with _memory(), threads, off, torch.autocast(device, dtype, enabled=dtype != torch.float32):
            yield


class Branches:
    """Branches that continue one prefix; `prefix` is copied, so that others can grow from it too."""

    def __init__(self, model: Model, head: Tensor, prefix: DynamicCache) -> None:
        """`head`: the output head's weights in float32."""
        self._model, self._head, self._cache = model, head, copy.deepcopy(prefix)
        self._start = prefix.get_seq_length()
        self._lengths = Counter[int]()  # of the branches
        self._owners = np.full(self._start, PREFIX)  # [K] of every column

    def grow(self, new: Mapping[int, Sequence[int]]) -> Tensor:
        """Float32 logits [branches, V] behind the last of the tokens that each branch gets."""
        device = self._model.device
        ids = [token for tokens in new.values() for token in tokens]
        owners = [branch for branch, tokens in new.items() for _ in tokens]
        self._owners = np.append(self._owners, owners)
        places: list[int] = []
        for branch, tokens in new.items():
            begin = self._start + self._lengths[branch]
            places += range(begin, begin + len(tokens))
            self._lengths[branch] += len(tokens)
        row, positions = torch.tensor([[ids], [places]]).to(device, non_blocking=True)
        last = torch.tensor([end - 1 for end in accumulate(map(len, new.values()))]).to(device, non_blocking=True)
        embeddings = _embedded(self._model, row)
        hidden = _hidden(
            self._model, embeddings, self._cache, attention_mask=self._mask(len(ids)), position_ids=positions
        )
        bias = None if self._model.head.bias is None else self._model.head.bias.float()
        with torch.autocast(device.type, enabled=False):
            return F.linear(hidden[0].index_select(0, last).float(), self._head, bias)

    def _mask(self, n: int) -> Tensor:
        """Which columns the last `n` see, to be added to attention scores: 0 or -inf [1, 1, n, K].

        Made once for all layers, in the type that they compute in, each row beginning at a multiple of MULTIPLE: the
        kernels of a GPU would convert and pad another one in every layer.
        """
        owners, columns = self._owners, len(self._owners)
        kin = (owners == PREFIX) | (owners == owners[-n:, None])
        hidden = torch.from_numpy(~np.tril(kin, columns - n)).to(self._model.device, non_blocking=True)
        wide = -(-columns // MULTIPLE) * MULTIPLE
        mask = torch.zeros(n, wide, dtype=self._model.head.weight.dtype, device=hidden.device)[:, :columns]
        return mask.masked_fill_(hidden, -torch.inf)[None, None]


def _hidden(model: Model, embeddings: Tensor, cache: DynamicCache, **where: Tensor) -> Tensor:
    """The language model's last hidden states [1, W, H]; the cache grows by as many columns."""
    text = model.family.text_model(model.base)
    return text(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, **where).last_hidden_state  # type: ignore[no-any-return]


def _embedded(model: Model, ids: Tensor) -> Tensor:
    """[1, W, H] of text alone."""
    return model.base.get_input_embeddings()(ids)  # type: ignore[operator,no-any-return]


def _parts(widths: Sequence[int]) -> Iterator[slice]:
    """Questions that are answered together: as many in order as COLUMNS holds, one at least."""
    start = columns = 0
    for number, width in enumerate(widths):
        if number > start and columns + width > COLUMNS:
            yield slice(start, number)
            start, columns = number, 0
        columns += width
    yield slice(start, len(widths))


def _generator(seed: int, question: Question) -> torch.Generator:
    """The randomness of one answer, whatever is asked beside it."""
    name = json.dumps([seed, question.id, question.prompt])
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MinipovidError(
            "The GPU has not enough memory for this model in transformers; use --backend gguf with a smaller --quant, "
            "or end what else computes there."
        ) from None


# --- what is loaded ---


def _load(run: Path, weights: str, recipe: Recipe) -> Model:
    """The model. Only that of "adapter" has an adapter that adds anything."""
    adapter = run_folder.adapter(run) if weights == "adapter" else None
    if weights == "merged":
        merged = run / run_folder.MERGED
        if not (merged / "config.json").is_file():
            raise MinipovidError(f"{run} holds no merged model; write it with `minipovid export {run} --merged`.")
        changes = {"path": str(merged), "load_in_4bit": False}
    else:
        # Nothing is downloaded: what was trained is examined, not what the Hub has by now.
        base = resolve_model(recipe.model.path, recipe.model.revision, download=False)
        changes = {"path": str(base)}
    section = recipe.model.model_copy(update={**changes, "revision": None})
    model = load.load(section, recipe.lora, seed=recipe.seed)
    if adapter is not None:
        model.load_adapter(adapter)
        for value in model.adapter().values():  # which each use would round anew, at every token
            value.data = value.data.to(model.head.weight.dtype)
    return model


def _ends(model: Model, end: str) -> set[int]:
    """Tokens that end an answer: the format's own sign, and those that the checkpoint names."""
    named = model.base.generation_config.eos_token_id  # type: ignore[union-attr]
    sign = model.tokenizer(end, add_special_tokens=False).input_ids[-1:]
    tokens = [*sign, model.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    return {token for token in tokens if token is not None}


def _identity(run: Path, weights: str, model: Model, chat: Chat) -> dict[str, Any]:
    """What decides an answer; every weight is known by its first bytes, the adapter by all of them."""
    quantised = any(isinstance(module, bitsandbytes.nn.Linear4bit) for module in model.base.modules())
    settings = sorted(path for pattern in SETTINGS for path in model.folder.glob(pattern))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in settings}
    identity = {
        "backend": "transformers",
        "weights": weights,
        "model": Tensors(model.folder).fingerprint(),
        "adapter": lora.sha256(run / run_folder.ADAPTER) if weights == "adapter" else None,
        "settings": hashlib.sha256(json.dumps([files, chat.dumps()]).encode()).hexdigest(),
        "load_in_4bit": quantised,
        "dtype": str(model.head.weight.dtype).removeprefix("torch."),
        "device": model.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "bitsandbytes": bitsandbytes.__version__ if quantised else None,
    }
    return {name: value for name, value in identity.items() if value is not None}
