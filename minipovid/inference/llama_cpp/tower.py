"""One mmproj file in llama.cpp: pixels in, the rows that the language model reads out."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp.class_token import ClassToken
from minipovid.inference.llama_cpp.libraries import NO_FLASH_ATTENTION, libraries, listen, reason, rows

Canvas = npt.NDArray[np.uint8]  # [S, S, 3]


class Tower:
    """A vision tower and its projector; `model` is the llama_model beside which it shall stand.

    Raises MinipovidError where the file does not fit the model.
    """

    def __init__(
        self, path: Path, model: Any, *, use_gpu: bool, n_threads: int, class_token: ClassToken | None = None
    ) -> None:
        _, self._mtmd = libraries()
        self._class_token, self.width = class_token, n_embd(model)
        parameters = self._mtmd.mtmd_context_params_default()
        parameters.use_gpu = use_gpu
        parameters.print_timings = parameters.warmup = False
        parameters.n_threads = n_threads
        if not use_gpu:  # there it would round the tower's keys and values to 16 bits
            parameters.flash_attn_type = NO_FLASH_ATTENTION
        if class_token:
            parameters.cb_eval = class_token.callback
        listen()
        self._context = self._mtmd.mtmd_init_from_file(os.fsencode(path), model, parameters)
        if self._context is None:
            raise MinipovidError(
                f"llama.cpp cannot load {path} beside its language model{reason()}; export both again."
            )

    def count(self, canvas: Canvas) -> int:
        """How many rows a picture becomes, without computing them."""
        with self._chunk(canvas) as chunk:
            return int(self._mtmd.mtmd_input_chunk_get_n_tokens(chunk))

    def encode(self, canvas: Canvas) -> Floats:
        """Projected features [N, H] of a picture that already has the tower's size."""
        with self._chunk(canvas) as chunk:
            if self._class_token:
                self._class_token.begin()
            failed = self._mtmd.mtmd_encode_chunk(self._context, chunk)
            if self._class_token:
                self._class_token.end()
            if failed:
                raise RuntimeError("llama.cpp could not encode the picture")
            count = self._mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            return np.array(rows(self._mtmd.mtmd_get_output_embd(self._context), count, self.width))

    def is_read_in_order(self, canvas: Canvas) -> bool:
        """Does the language model read the rows like words: one after the other, one position each?"""
        with self._chunk(canvas) as chunk:
            non_causal = self._mtmd.mtmd_decode_use_non_causal(self._context, chunk)
        return not non_causal and not self._mtmd.mtmd_decode_use_mrope(self._context)

    def close(self) -> None:
        """Free everything. May be called twice."""
        if self._context is not None:
            self._mtmd.mtmd_free(self._context)
        self._context = None

    @contextmanager
    def _chunk(self, canvas: Canvas) -> Iterator[Any]:
        """mtmd's handle of a picture that already has the tower's size: it is copied unchanged."""
        mtmd = self._mtmd
        pixels = np.ascontiguousarray(canvas)
        bitmap = mtmd.mtmd_bitmap_init(
            canvas.shape[1], canvas.shape[0], pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        )
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        try:
            if mtmd.mtmd_tokenize(self._context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1):
                raise RuntimeError("llama.cpp could not take the picture")
            every = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
            pictures = [c for c in every if mtmd.mtmd_input_chunk_get_type(c) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE]
            if len(pictures) != 1:
                raise MinipovidError(f"The mmproj cuts a picture into {len(pictures)}; minipovid reads it as one.")
            yield pictures[0]
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            mtmd.mtmd_bitmap_free(bitmap)


def n_embd(model: Any) -> int:
    """Numbers per row that the language model reads."""
    llama, _ = libraries()
    return int(llama.llama_model_n_embd(model))
