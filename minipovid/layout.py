"""Where a checkpoint's tensor goes in the GGUF pair: what a family says of each tensor, and the exporter obeys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol


class Place(NamedTuple):
    """One tensor's place."""

    file: Literal["text", "mmproj"]
    name: str  # in the GGUF
    heads: int = 0  # rotate-half rows of so many attention heads become interleaved pairs; 0: rows stay
    full: bool = False  # float32 whatever the file's quantisation
    in_4bit: bool = False  # QLoRA quantises this one while it trains


class GgufFamily(Protocol):
    """The part of a family module that the exporter and the runtime ask."""

    IMAGE: str  # the picture's placeholder in `prompt`

    def prompt(self, question: str) -> str: ...

    def answer(self, text: str) -> str: ...

    def canonical(self, name: str) -> str:
        """One spelling for every name under which this tensor is stored, held in memory or adapted."""

    def place(self, name: str, config: Any) -> Place | None:
        """Where the tensor of this canonical name goes; None: known, and of no use in the GGUF pair.

        Raises MinipovidError for a tensor that this family does not know.
        """

    def text_metadata(self, config: Any) -> Mapping[str, Any]:
        """GGUF keys of the language model; int, float, str, bool or a list of them."""

    def mmproj_metadata(self, config: Any, processor: Mapping[str, Any]) -> Mapping[str, Any]:
        """GGUF keys of tower and projector. Raises MinipovidError for what llama.cpp cannot compute."""

    def chat_template(self, first: str) -> str:
        """Jinja for llama.cpp's chat; `first` stands before everything (a space, or nothing)."""
