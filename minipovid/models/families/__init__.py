"""WHICH MODEL: one file per kind of vision-language model, named by config.json's `model_type`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minipovid.models.parts import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minipovid.images.transform import ImageTransform


class Family(Protocol):
    """What one kind of vision-language model must say of itself: a module on the `families` shelf, named by
    config.json's `model_type`."""

    LORA_TARGETS: str  # regex over module names: the language model's linear layers, and nothing of the vision side

    COLUMNWISE: Sequence[str]  # modules within a decoder layer that compute each position by itself, behind attention

    def image_token(self, config: Any) -> tuple[int, int]:
        """(id of the placeholder token, how many image tokens one picture takes)."""

    def image_transform(self, folder: Path) -> ImageTransform: ...

    def text_model(self, model: nn.Module) -> nn.Module: ...

    def vision_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """Tower and projector: never quantised, never trained."""

    def image_features(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """Projected features [B, N, H] of pixels [B, 3, S, S]."""


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
