"""LLaVA in transformers' layout: a CLIP or SigLIP tower, a two-layer projector and a Llama, Mistral or Qwen2 model.

llava-hf/llava-1.5-7b-hf, llava-hf/bakLlava-v1-hf, llava-hf/llava-interleave-qwen-0.5b-hf, ...
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.images.transform import ImageTransform
from minipovid.models.parts import Place
from minipovid.models.parts import text as text_layout
from minipovid.models.parts import vision as vision_layout

if TYPE_CHECKING:
    from torch import Tensor, nn

# Module names in transformers 5. CLIP has a q_proj, k_proj and v_proj of its own: `language_model` keeps them out.
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

COLUMNWISE = ("self_attn.o_proj", "mlp")  # parts of a decoder layer that compute each column by itself


def image_token(config: Any) -> tuple[int, int]:
    """(placeholder id, image tokens per picture) of a LlavaConfig: 576 for a 336-pixel tower with 14-pixel patches."""
    return config.image_token_id, vision_layout.tokens(config)


def image_transform(folder: Path) -> ImageTransform:
    """The picture's way into the tower, from the checkpoint's processor settings; its size is the tower's."""
    settings = vision_layout.processor(folder)
    return ImageTransform(
        size=vision_layout.image_size(folder),
        mean=tuple(settings["image_mean"]),
        std=tuple(settings["image_std"]),
    )


def text_model(model: nn.Module) -> nn.Module:
    return model.get_submodule("model.language_model")


def vision_modules(model: nn.Module) -> Sequence[nn.Module]:
    return model.get_submodule("model.vision_tower"), model.get_submodule("model.multi_modal_projector")


def image_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """Projected features [B, N, H] of normalised pixels [B, 3, S, S]."""
    import torch

    features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output  # type: ignore
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


# --- The GGUF pair: the language model, and the vision side (architecture "clip", projector "mlp") ---


def canonical(name: str) -> str:
    """One spelling for a tensor's name: `language_model.layers...`, `lm_head...`, `vision_tower.encoder...`.

    It is the name inside transformers 5 without the leading `model.`; the Hub's LLaVA-1.5 and files saved by
    transformers 4 and 5 nest the language model and the tower one level deeper.
    """
    name = re.sub(r"^(model\.)+", "", name)
    name = re.sub(r"^language_model\.(model\.)+", "language_model.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)


def place(name: str, config: Any) -> Place | None:
    """Where the tensor of this canonical name goes; None if llama.cpp needs it not. Raises for an unknown one."""
    if name.startswith(("language_model.", "lm_head.")):
        return text_layout.place(name, config.text_config)
    return vision_layout.place(name, config)


def text_metadata(config: Any) -> dict[str, Any]:
    """The keys of the language model's architecture in llama.cpp."""
    return text_layout.metadata(config.text_config)


def mmproj_metadata(config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of llama.cpp's architecture "clip" with projector "mlp" (tools/mtmd/clip.cpp)."""
    return vision_layout.metadata(config, processor)
