"""llama.cpp answers: a GGUF pair, a conversation with pictures. Needs neither torch nor transformers.

    with Runtime.open(Path("runs/my-run")) as runtime:
        print(runtime.answer(Path("photo.jpg"), "What is in the picture?"))
        for piece in runtime.say([Turn("user", "And what is behind it?", (Path("photo.jpg"),))]):
            print(piece, end="")

Prompts and pictures are prepared here as in training and handed to llama.cpp as tokens and pixels; its own chat
handlers render other prompts. What a prompt shares with the one before, a picture above all, is not computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL.Image import Image

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.images.transform import ImageTransform
from minipovid.inference.llama_cpp import offload
from minipovid.inference.llama_cpp.activations import watch_products
from minipovid.inference.llama_cpp.gguf_files import find_pair
from minipovid.inference.llama_cpp.kv_cache import KvCache, PromptParts
from minipovid.inference.llama_cpp.language import CONTEXT, Language
from minipovid.inference.llama_cpp.libraries import cores
from minipovid.inference.llama_cpp.locks import Locks
from minipovid.inference.llama_cpp.reply import StreamedReply
from minipovid.inference.llama_cpp.sampling import Sampler, Sampling
from minipovid.inference.llama_cpp.stream import Stream, whole
from minipovid.inference.llama_cpp.vision import PreparedPicture, VisionModel
from minipovid.models.chat_template import Chat, Turn

__all__ = ["StreamedReply", "Runtime", "Sampling", "find_pair"]
SMALL = 64 * 2**20  # bytes of a model that one thread computes faster than several can agree on
PICTURE = -1  # stands for a picture among token ids


class Runtime:
    """A language model and its vision side in llama.cpp. Any thread may call; one answer is computed at a time."""

    def __init__(
        self,
        model_gguf: Path,
        mmproj_gguf: Path | None,
        *,
        n_ctx: int | None = None,
        n_gpu_layers: int | None = None,
        kv_f32: bool = False,
        n_threads: int | None = None,
        lora: Path | None = None,
        lora_scale: float = 1.0,
        observe: Callable[[str, Floats], None] | None = None,
    ) -> None:
        """Load the files; without `mmproj_gguf` the model reads text alone.

        `n_ctx` is how many tokens a conversation may have, its pictures' rows among them: 2048, or what the model was
        trained for where that is less. `n_gpu_layers` go to a GPU, and with them the vision side: -1 is all, None as
        many as fit, of which one line on stderr tells. `kv_f32` keeps what was read in float32; `lora` is a LoRA GGUF
        that is added to the model. `observe` is called with (name of a weight, its inputs [rows, columns]) for every
        matrix product of the language model.
        Raises MinipovidError where a file is missing, is not minipovid's, or cannot be loaded, where the model already
        holds the adapter, and for an `n_ctx` that it was not trained for.
        """
        self.path, self._locks = model_gguf, Locks()
        if n_gpu_layers is None:
            n_gpu_layers = offload.automatic(model_gguf, mmproj_gguf, n_ctx or CONTEXT)
        self.n_gpu_layers = n_gpu_layers
        on_gpu, watch = n_gpu_layers != 0, watch_products(observe) if observe else None
        with ExitStack() as loaded:
            self._language = language = Language(model_gguf, n_gpu_layers, lora)
            loaded.callback(language.close)
            self.n_ctx = language.context(n_ctx)
            threads = n_threads or (1 if language.n_bytes < SMALL else cores())
            self._vision: VisionModel | None = None
            if mmproj_gguf is not None:
                self._vision = VisionModel(mmproj_gguf, language.model, use_gpu=on_gpu, n_threads=threads)
                loaded.callback(self._vision.close)
            self._cache = KvCache(
                language, self._vision, n_ctx=self.n_ctx, n_threads=threads, on_gpu=on_gpu, kv_f32=kv_f32, watch=watch
            )
            loaded.callback(self._cache.close)
            self._cache.adapt(language.adapter, lora_scale)
            self._loaded = loaded.pop_all()

    @classmethod
    def open(cls, folder: Path, quant: str | None = None, **options: Any) -> Runtime:
        """The pair in a run folder or in a folder of GGUFs; without `quant` the largest, that is the most exact file.

        Raises MinipovidError where there is none, or where the folder holds pairs of several models.
        """
        return cls(*find_pair(folder, quant), **options)

    # --- asking ---

    def say(self, turns: Sequence[Turn], sampling: Sampling | None = None) -> StreamedReply:
        """The answer to a conversation, piece by piece; greedy unless `sampling` says otherwise.

        Raises MinipovidError, before anything is computed, for what cannot be asked: a picture that cannot be read,
        more than the context holds, a value of `sampling` out of range.
        """
        sampling = sampling or Sampling()
        prompt = self._prompt(self.chat.render(turns), [image for turn in turns for image in turn.pictures])
        length = self._length(prompt)
        with self._locks.computing:
            sampler = Sampler(sampling, self._language)
        return StreamedReply(
            lambda ids: self._step([*prompt, ids], sampler),
            length,
            self._most(length, sampling.max_tokens),
            Stream(sampling.stop),
            self._locks,
        )

    def answer(self, image: Image | Path, prompt: str, max_tokens: int = 256) -> str:
        """The greedy answer, without surrounding spaces; it ends at the end of the turn or after `max_tokens`."""
        ids = self.answer_ids(image, prompt, max_tokens)
        with self._locks.computing:
            return whole([self._language.piece(token) for token in ids])

    def answer_ids(self, image: Image | Path, prompt: str, max_tokens: int = 256) -> list[int]:
        """The tokens of the greedy answer; the one that ends it is left out."""
        parts = self._prompt(self.chat.prompt(prompt), [image])
        most, sampler = self._most(self._length(parts), max_tokens), Sampler(Sampling(), self._language)
        ids: list[int] = []
        with self._locks.turn():
            while len(ids) < most and (token_and_bytes := self._step([*parts, ids], sampler)):
                ids.append(token_and_bytes[0])
        return ids

    def logps(self, image: Image | Path, prompt: str, answer: str) -> list[float]:
        """Log-probability of each of the answer's tokens, the end of the turn included, given picture and prompt.

        Raises MinipovidError where all of it does not fit the context.
        """
        logits = self.logits(image, prompt, answer).astype(np.float64)
        top = logits.max(1, keepdims=True)
        log_sum = top[:, 0] + np.log(np.exp(logits - top).sum(1))
        return list((logits[np.arange(len(logits)), self.answer_tokens(prompt, answer)] - log_sum).tolist())

    def logits(self, image: Image | Path, prompt: str, answer: str) -> Floats:
        """What the model says of every token at each of the answer's positions [A, V]; row i is about its token i."""
        ids = self.answer_tokens(prompt, answer)
        *before, last = self._prompt(self.chat.prompt(prompt), [image])
        parts = [*before, [*last, *ids[:-1]]]
        self._length(parts)
        with self._locks.turn(), self._locks.computing:
            return self._cache.read(parts, len(ids))

    # --- how it is asked ---

    def prompt_ids(self, prompt: str) -> list[int]:
        """The prompt as llama.cpp gets it: tokens, a -1 for the picture, tokens."""
        before, after = self._parts(self.chat.prompt(prompt))
        return [*before, PICTURE, *after]

    def answer_tokens(self, prompt: str, answer: str) -> list[int]:
        """The tokens that an answer adds to its prompt, the end of the turn included.

        Raises MinipovidError where they change those of the prompt.
        """
        text = self.chat.prompt(prompt)
        before, ids = (self._parts(each)[-1] for each in (text, text + self.chat.answer(answer)))
        if ids[: len(before)] != before or len(ids) == len(before):
            raise MinipovidError(f"The answer {answer!r} changes the tokens of the prompt before it; rephrase it.")
        return ids[len(before) :]

    def embed(self, image: Image | Path) -> Floats:
        """What the language model gets to see of the picture: projected features [N, H]."""
        vision = self._vision_model()
        picture = vision.look(image)
        with self._locks.turn(), self._locks.computing:
            return vision.features(picture).copy()

    @property
    def chat(self) -> Chat:
        """How conversations are written."""
        return self._language.chat

    @property
    def n_vocab(self) -> int:
        return self._language.n_vocab

    @property
    def n_embd(self) -> int:
        """Width of the language model, H."""
        return self._language.n_embd

    @property
    def transform(self) -> ImageTransform:
        """The pictures' way into the tower. Raises MinipovidError where the model reads text alone."""
        return self._vision_model().transform

    @property
    def class_token(self) -> str:
        """What this llama.cpp needs for right features: "moved", "not needed" or "no class token"."""
        return self._vision.class_token if self._vision else "no class token"

    # --- inside ---

    def _step(self, prompt: PromptParts, sampler: Sampler) -> tuple[int, bytes] | None:
        """The next token and its bytes; None where the answer ends."""
        with self._locks.computing:
            token = sampler.pick(self._cache.read(prompt)[0])
            return None if self._language.ends(token) else (token, self._language.piece(token))

    def _prompt(self, text: str, pictures: Sequence[Image | Path]) -> list[list[int] | PreparedPicture]:
        """Tokens and pictures in turn."""
        parts = self._parts(text)
        if len(parts) != len(pictures) + 1:
            raise MinipovidError(
                f"The conversation has {len(pictures)} pictures and {len(parts) - 1} places for them; "
                "pictures belong to what the user says."
            )
        prepared = [self._vision_model().look(picture) for picture in pictures]
        both = [part for pair in zip_longest(parts, prepared) for part in pair]
        return [part for part in both if part is not None]

    def _parts(self, text: str) -> list[list[int]]:
        """The tokens before, between and behind the pictures."""
        with self._locks.computing:
            return self._language.parts(text)

    def _vision_model(self) -> VisionModel:
        if self._vision is None:
            raise MinipovidError(f"{self.path.name} was opened without its mmproj, so it sees no pictures.")
        return self._vision

    def _length(self, prompt: PromptParts) -> int:
        """Positions that the prompt takes. Raises MinipovidError where it does not fit the context."""
        length = self._cache.length(prompt)
        if length > self.n_ctx:
            raise MinipovidError(
                f"The prompt takes {length} tokens with its pictures, more than the context of {self.n_ctx}; "
                "shorten it or raise n_ctx."
            )
        return length

    def _most(self, length: int, max_tokens: int) -> int:
        """Tokens that an answer can have; the last one needs no room, for nothing follows it."""
        return min(max_tokens, self.n_ctx - length + 1)

    def close(self) -> None:
        """Free everything as soon as no thread is computing; what is asked later gets a MinipovidError.

        May be called twice.
        """
        self._locks.computing.close(self._loaded.close)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
