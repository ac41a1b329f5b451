"""WHICH MODEL: one file per kind of vision-language model, named by config.json's `model_type`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
