"""What the language model has read (llama.cpp's KV cache), and how little of a new prompt must be read after it."""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from types import ModuleType
from typing import Any

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp.ggml import F32, Watch
from minipovid.inference.llama_cpp.language import Language
from minipovid.inference.llama_cpp.libraries import NO_FLASH_ATTENTION, libraries, listen, reason, rows
from minipovid.inference.llama_cpp.vision import PreparedPicture, VisionModel

PromptParts = Sequence["list[int] | PreparedPicture"]  # tokens and pictures, in order
STEP = 256  # tokens that are read in one go


class KvCache:
    """One conversation's worth of memory: `n_ctx` positions, each a token or a row of a picture.

    A new prompt keeps what it has in common with the one before and reads the rest. What was read in one go is kept or
    forgotten in one go: numbers differ in the last bit when rows are computed in other company, and the same single
    question shall get the same answer, bit by bit, whatever was asked before it. A chat goes on behind the tokens of
    its own answer, which were read one by one: its logits differ by 0.001-0.002 (measured) from those of the same
    chat read anew.
    """

    def __init__(
        self,
        language: Language,
        vision: VisionModel | None,
        *,
        n_ctx: int,
        n_threads: int,
        on_gpu: bool,
        kv_f32: bool,
        watch: Watch | None,
    ) -> None:
        """Raises MinipovidError where there is no room for so much. `watch` sees every node that is computed."""
        self._llama, _ = libraries()
        self._vision, self._watch = vision, watch
        self._rows, self.n_ctx, self._n_vocab = vision.rows if vision else 0, n_ctx, language.n_vocab
        self._positions: list[int | bytes] = []  # per position: a token, or the digest of the picture whose row it is
        self._ends = [0]  # positions behind what was read in one go
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = n_ctx
        parameters.n_threads = parameters.n_threads_batch = n_threads
        if not on_gpu:
            parameters.flash_attn_type = NO_FLASH_ATTENTION
        if kv_f32:
            parameters.type_k = parameters.type_v = F32
        if watch:
            parameters.cb_eval = watch.callback
        listen()
        self._context: Any = self._llama.llama_init_from_model(language.model, parameters)
        if self._context is None:
            raise MinipovidError(f"llama.cpp cannot hold {n_ctx} tokens of context{reason()}; ask for a smaller n_ctx.")
        self._kv = self._llama.llama_get_memory(self._context)
        self._token_batch = _Batch(self._llama, STEP, 0)
        self._picture_batch = _Batch(self._llama, self._rows, language.n_embd)

    def adapt(self, adapter: Any, scale: float) -> None:
        """Add a loaded LoRA, if there is one, to all that is computed from now on."""
        if adapter is None:
            return
        adapters, scales = (self._llama.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(scale)
        if self._llama.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise RuntimeError("llama.cpp could not set the adapter")

    def length(self, prompt: PromptParts) -> int:
        """Positions that a prompt takes."""
        return sum(self._rows if isinstance(part, PreparedPicture) else len(part) for part in prompt)

    def read(self, prompt: PromptParts, outputs: int = 1) -> Floats:
        """Have this prompt, and nothing else, in memory; the logits [outputs, V] behind its last positions.

        Where it fails, memory holds what was read before the failure.
        """
        keys = list(chain.from_iterable(self._keys(part) for part in prompt))
        first_output = len(keys) - outputs
        common = self._common_length(keys, first_output)
        self._forget(common)
        logits = [self._read_step(part, first_output - at) for at, part in self._steps(prompt, common)]
        return np.concatenate(logits)

    def _keys(self, part: list[int] | PreparedPicture) -> Sequence[int | bytes]:
        return [part.digest] * self._rows if isinstance(part, PreparedPicture) else part

    def _common_length(self, keys: list[int | bytes], limit: int) -> int:
        """How many positions of memory the new prompt can keep; at most `limit`."""
        old_keys = self._positions
        common = min(len(old_keys), len(keys))
        if old_keys[:common] != keys[:common]:
            common = next(i for i, (old, new) in enumerate(zip(old_keys, keys, strict=False)) if old != new)
        return self._ends[bisect_right(self._ends, min(common, limit)) - 1]

    def _forget(self, start: int) -> None:
        del self._positions[start:]
        del self._ends[bisect_right(self._ends, start) :]
        self._llama.llama_memory_seq_rm(self._kv, 0, start, -1)

    def _steps(self, prompt: PromptParts, first: int) -> Iterator[tuple[int, list[int] | PreparedPicture]]:
        """What is to be read in one go, each with its position; a long text in pieces of STEP tokens."""
        start = 0
        for part in prompt:
            stop = start + self.length([part])
            if not isinstance(part, PreparedPicture):
                for at in range(max(start, first), stop, STEP):
                    yield at, part[at - start : min(at + STEP, stop) - start]
            elif start >= first:
                yield start, part
            start = stop

    def _read_step(self, part: list[int] | PreparedPicture, first_output: int) -> Floats:
        """The logits [rows, V] of the part's rows from `first_output` on."""
        past = len(self._positions)
        if isinstance(part, PreparedPicture):
            assert self._vision is not None
            batch = self._picture_batch.filled(self._vision.features(part), past, first_output)
        else:
            batch = self._token_batch.filled(part, past, first_output)
        code = self._llama.llama_decode(self._context, batch)
        if self._watch:
            self._watch.check()
        if code:
            raise RuntimeError(f"llama_decode failed with code {code}{reason()}")
        self._positions += self._keys(part)
        self._ends.append(len(self._positions))
        count = min(batch.n_tokens, batch.n_tokens - first_output)
        if count <= 0:
            return np.empty((0, self._n_vocab), np.float32)
        return rows(self._llama.llama_get_logits(self._context), count, self._n_vocab).copy()

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._context is not None:
            self._token_batch.close()
            self._picture_batch.close()
            self._llama.llama_free(self._context)
        self._context = None


class _Batch:
    """llama.cpp's llama_batch with room for `size` tokens or, where `width` is not 0, rows of so many numbers."""

    def __init__(self, llama: ModuleType, size: int, width: int) -> None:
        self._llama, size = llama, max(size, 1)
        self._batch = batch = llama.llama_batch_init(size, width, 1)
        for index in range(size):
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        view = np.ctypeslib.as_array
        self._inputs = view(batch.embd, (size, width)) if width else view(batch.token, (size,))
        self._positions, self._outputs = view(batch.pos, (size,)), view(batch.logits, (size,))

    def filled(self, inputs: list[int] | Floats, past: int, first_output: int) -> Any:
        """The batch with these inputs, behind `past` positions; its rows from `first_output` on get logits."""
        count = self._batch.n_tokens = len(inputs)
        self._inputs[:count] = inputs
        self._positions[:count] = np.arange(past, past + count)
        self._outputs[:count] = np.arange(count) >= first_output
        return self._batch

    def close(self) -> None:
        self._llama.llama_batch_free(self._batch)
