"""Where a checkpoint's tensor goes in the GGUF pair: what a family says of each tensor, and the exporter obeys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import nn


class Place(NamedTuple):
    """One tensor's place."""

    file: Literal["text", "mmproj"]
    name: str  # in the GGUF
    heads: int = 0  # rotate-half rows of so many attention heads become interleaved pairs; 0: rows stay
    full: bool = False  # float32 whatever the file's quantisation
    half: bool = False  # float16 at least
    in_4bit: bool = False  # QLoRA quantises this one while it trains


class GgufFamily(Protocol):
    """The part of a family module that the exporter asks. How it talks is measured from its template: see chats."""

    def vision_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """Tower and projector of a loaded model, or of its empty skeleton."""

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
