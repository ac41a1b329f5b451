"""The language model's file in llama.cpp: what it says of itself, its vocabulary, an adapter beside it."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp.libraries import bytes_of, libraries, listen, reason
from minipovid.models import chat_template
from minipovid.models.chat_template import Chat
from minipovid.models.tokenizer import SpecialTokens

CONTEXT = 2048  # tokens of a conversation, unless asked otherwise: 1 GiB of memory beside a 7B model
_ADAPTER = "minipovid.adapter_sha256"  # which adapter a file holds


class Language:
    """A text GGUF, and the LoRA GGUF `lora` added to it.

    Raises MinipovidError where a file is missing or cannot be loaded, and where neither says how a prompt is written.
    """

    def __init__(self, path: Path, n_gpu_layers: int, lora: Path | None) -> None:
        self._llama, _ = libraries()
        self._path = path
        self.model: Any = None
        self.adapter: Any = None  # llama.cpp frees it together with the model
        for file in (path, lora):
            if file is not None and not file.is_file():
                raise MinipovidError(f"There is no file {file}; `minipovid export` writes the GGUF files of a run.")
        try:
            self._load(n_gpu_layers)
            if lora is not None:
                self._load_adapter(lora)
            self.chat = replace(self._chat(), special=self._special())
        except BaseException:
            self.close()
            raise
        self.first = self.metadata("minipovid.first") or ""  # stands before everything

    def _load(self, n_gpu_layers: int) -> None:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = n_gpu_layers
        listen()
        self.model = self._llama.llama_model_load_from_file(os.fsencode(self._path), parameters)
        if self.model is None:
            raise MinipovidError(
                f"llama.cpp cannot load {self._path}{reason()}; export it again, or take a smaller quant."
            )
        self.n_vocab: int = self._llama.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = self._llama.llama_model_n_embd(self.model)

    def _load_adapter(self, lora: Path) -> None:
        listen()
        self.adapter = self._llama.llama_adapter_lora_init(self.model, os.fsencode(lora))
        if not self.adapter:  # a null pointer, not None
            self.adapter = None
            raise MinipovidError(
                f"llama.cpp cannot add {lora} to {self._path.name}{reason()}; "
                "take the base model that it was trained on."
            )
        adapter_of_model = self._of_model(_ADAPTER)
        if adapter_of_model is not None and adapter_of_model == self._of_adapter(_ADAPTER):
            raise MinipovidError(f"{self._path.name} already holds this adapter; leave --lora out.")

    def _chat(self) -> Chat:
        """How prompts are written: as the adapter says, else the model, else (files of before) as LLaVA 1.5's."""
        layout = self.metadata("minipovid.chat")
        if layout is None and self.metadata("minipovid.family") is None:
            raise MinipovidError(f"{self._path} was not written by `minipovid export`; its prompt format is unknown.")
        if layout is None:
            return chat_template.VICUNA
        try:
            return Chat.loads(layout)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise MinipovidError(f"{self._path} holds a damaged minipovid.chat; export it again.") from None

    def _special(self) -> SpecialTokens:
        """The texts that `tokens` takes for special ones, as llama.cpp tells it of this file's vocabulary."""
        llama, vocab = self._llama, self.vocab
        special = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
        ids = [token for token in range(self.n_vocab) if llama.llama_vocab_get_attr(vocab, token) & special]
        texts = {token: llama.llama_vocab_get_text(vocab, token).decode(errors="replace") for token in ids}
        ends = (texts.get(token) for token in (llama.llama_vocab_eot(vocab), llama.llama_vocab_eos(vocab)))
        return SpecialTokens(tuple(texts.values()), tuple(end for end in ends if end))

    def metadata(self, key: str) -> str | None:
        """A key of the adapter's file or, where it has none, of the model's."""
        value = self._of_adapter(key)
        return self._of_model(key) if value is None else value

    def _of_model(self, key: str) -> str | None:
        return _value(self._llama.llama_model_meta_val_str, self.model, key)

    def _of_adapter(self, key: str) -> str | None:
        return self.adapter and _value(self._llama.llama_adapter_meta_val_str, self.adapter, key)

    def context(self, wanted: int | None) -> int:
        """Tokens that a conversation may have. Raises MinipovidError for more than the model was trained for.

        Beyond that llama.cpp computes on, and answers noise.
        """
        trained = int(self._llama.llama_model_n_ctx_train(self.model))
        if wanted is not None and wanted > trained:
            raise MinipovidError(
                f"n_ctx is {wanted}, but {self._path.name} was trained for {trained} tokens; ask for {trained} at most."
            )
        return min(CONTEXT, trained) if wanted is None else wanted

    @property
    def vocab(self) -> Any:
        """llama.cpp's handle of the vocabulary."""
        return self._llama.llama_model_get_vocab(self.model)

    @property
    def n_bytes(self) -> int:
        """Of the weights."""
        return int(self._llama.llama_model_size(self.model))

    def tokens(self, text: str, begin: bool = False) -> list[int]:
        """Token ids; `begin` adds what the model's prompts begin with. Special tokens in the text are recognised."""
        raw = text.encode()
        return self._tokens(raw, begin, room=len(raw) + 4)

    def _tokens(self, raw: bytes, begin: bool, room: int) -> list[int]:
        buffer = (ctypes.c_int32 * room)()
        count = self._llama.llama_tokenize(self.vocab, raw, len(raw), buffer, room, begin, True)
        if count < 0:  # there are more: how many, as a negative number
            return self._tokens(raw, begin, room=-count)
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """What a token stands for: a few letters, one byte of a character, or, for a special token, nothing."""
        room = 64
        buffer = ctypes.create_string_buffer(room)
        length = self._llama.llama_token_to_piece(self.vocab, token, buffer, room, 0, False)
        if length < 0:  # a longer one: the length that it needs, as a negative number
            room = -length
            buffer = ctypes.create_string_buffer(room)
            length = self._llama.llama_token_to_piece(self.vocab, token, buffer, room, 0, False)
        return buffer.raw[:length]

    def ends(self, token: int) -> bool:
        """Does this token end an answer? llama.cpp's own end-of-generation tokens, and the format's end of a turn."""
        return token == self._end or bool(self._llama.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def _end(self) -> int | None:
        ids = self.tokens(self.chat.end)
        return ids[-1] if ids else None

    def parts(self, text: str) -> list[list[int]]:
        """The tokens of a rendered conversation, cut where its pictures stand.

        Each piece is tokenised by itself, as training did it; the first gets what every prompt begins with.
        """
        first, *others = text.split(chat_template.IMAGE)
        return [self.tokens(self.first + first, begin=True), *(self.tokens(text) for text in others)]

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self.model is not None:
            self._llama.llama_model_free(self.model)
        self.model = self.adapter = None


def _value(read: Callable[..., int], handle: Any, key: str) -> str | None:
    """What one file says under a key."""
    value = bytes_of(lambda buffer, room: read(handle, key.encode(), buffer, room))
    return None if value is None else value.decode()
