"""WHICH MODEL: one file per kind of vision-language model, named by config.json's `model_type`.

    families.of(config.model_type).context(config)  # other rooms ask, and know no family by name

A file defines every member of `Family` below, as constants and functions of the module. It is put together from
models/parts: `text` and `vision` have the language models and towers that families share, `mmproj` the words in which
llama.cpp reads a vision side. It imports torch only within functions: export, reports and plans ask where none is.

    config      transformers' configuration of the whole model (AutoConfig), with the defaults that Hub files leave out
    folder      the model's folder in Hub layout; only config.json and the processor's settings in it are read
    model       transformers' model, loaded or as an empty skeleton (models/shapes); peft may have wrapped its layers
    size        (width, height) in pixels of a picture as it was found, before any transform
    name        of a tensor: `canonical` gives one spelling to all under which it is stored, held in memory or adapted
    Place       where a tensor goes in the GGUF pair (models/parts)

Shapes: B pictures, N image tokens of a picture, H width of the language model, S side of the tower's square, in pixels.
Every member may raise MinipovidError with a sentence for what the user can mend: a folder without its processor's
settings, or a model of this kind that is known but cannot be computed rightly by llama.cpp.

tests/models/test_families_shelf.py holds each file to this page; a family brings it a tests/helpers/tiny_<family>.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minipovid.common import shelf
from minipovid.models.parts import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

    from minipovid.images.transform import ImageTransform

PHOTO = (640, 480)  # a usual picture's size: asked about where none is at hand, as in a plan


class Family(Protocol):
    """What one kind of vision-language model says of itself."""

    __name__: str  # the module's

    # --- training ---

    LORA_TARGETS: str  # regex over module names: all linear layers of the language model, nothing of the vision side

    COLUMNWISE: Sequence[str]  # modules within a decoder layer that compute each position by itself, behind attention

    KNOWN: Mapping[str, Mapping[str, Any]]  # config.json by Hub id, of models that are planned for before a download

    def image_token_id(self, config: Any) -> int:
        """The placeholder's token id: in a prompt it stands once for each image token."""

    def image_tokens(self, config: Any, size: tuple[int, int]) -> int:
        """N of a picture of that size."""

    def processor(self, folder: Path) -> dict[str, Any]:
        """The image processor's settings."""

    def image_transform(self, folder: Path) -> ImageTransform:
        """A picture's way into the tower, the same in training and in llama.cpp."""

    def text_model(self, model: nn.Module) -> nn.Module:
        """The language model without its head: it alone is quantised and adapted."""

    def vision_modules(self, model: nn.Module) -> Sequence[nn.Module]:
        """Tower and projector: never quantised, never trained."""

    def image_features(self, model: nn.Module, pixels: Tensor) -> Tensor:
        """What the language model gets to see [B, N, H] of normalised pixels [B, 3, S, S]."""

    def context(self, config: Any) -> int:
        """Positions that the language model tells apart."""

    # --- plan ---

    def vision_flop(self, model: nn.Module, size: tuple[int, int]) -> int:
        """Of tower and projector for one picture of that size; 2 for each multiplication with its addition."""

    # --- the GGUF pair. How the model talks is measured from its template: models/chat_template ---

    def canonical(self, name: str) -> str:
        """The tensor's one name; of a canonical name that name itself."""

    def place(self, name: str, config: Any) -> Place | None:
        """Where the tensor of this canonical name goes; None: known, and of no use in the GGUF pair.

        Raises MinipovidError for a tensor that this family does not know.
        """

    def text_metadata(self, config: Any) -> Mapping[str, Any]:
        """GGUF keys of the language model, general.architecture first; int, float, str, bool or a list of them.

        Raises MinipovidError for what llama.cpp cannot compute.
        """

    def mmproj_metadata(self, config: Any, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """GGUF keys of tower and projector; `settings` are the processor's. Raises as `text_metadata`."""

    # --- verify ---

    def vision_faults(self, model: nn.Module) -> Mapping[str, Callable[[], AbstractContextManager[None]]]:
        """Ways in which a runtime may compute the vision side wrongly: each makes a context in which `model` does so.

        They are named as in verify/vision.SENTENCES, or `layer L` where the features of another layer are taken.
        """


def of(model_type: str) -> Family:
    """The family of config.json's `model_type`. Raises MinipovidError, with those that are known, where it has none."""
    return shelf.load("models.families", model_type)
