"""The remedy for llama.cpp's order of CLIP's class token."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from minipovid.inference.llama_cpp.ggml import Tensor, Watch, read, write
from minipovid.inference.llama_cpp.libraries import ggml
from minipovid.models.parts import mmproj


class ClassToken:
    """Puts CLIP's class embedding where it belongs while llama.cpp encodes a picture.

    tools/mtmd/models/llava.cpp concatenates (patches, class token), but the position embeddings and the rows taken at
    the end expect (class token, patches): every patch gets its neighbour's position and patch 0 is lost
    (ggml-org/llama.cpp issue 25814). The remedy waits for that very concatenation and rolls its rows by one. Where
    llama.cpp concatenates in the right order, the class embedding is the first operand and nothing is found to mend.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.moved = False  # did the last picture need it?
        self._watch = Watch(lambda node: self.enabled and not self.moved and self.is_misplaced(node), self._roll)

    @property
    def callback(self) -> Any:
        """For mtmd_context_params.cb_eval."""
        return self._watch.callback

    def begin(self) -> None:
        """A new picture is about to be encoded."""
        self.moved = False

    def end(self) -> None:
        """The picture has been encoded. Raises what went wrong inside."""
        self._watch.check()

    @staticmethod
    def is_misplaced(node: Tensor) -> bool:
        """Is this the concatenation (patches, class token)?"""
        second = node.source(1)
        return second is not None and second.name == mmproj.CLASS_TOKEN.encode() and node.ne[0] == second.ne[0]

    def _roll(self, node: Tensor) -> None:
        base: ctypes.CDLL = ggml()
        write(base, node, np.roll(read(base, node), 1, axis=0))
        self.moved = True
