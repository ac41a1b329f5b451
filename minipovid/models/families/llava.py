"""LLaVA in transformers' layout: a CLIP or SigLIP tower, a two-layer projector and a Llama, Mistral or Qwen2 model.

llava-hf/llava-1.5-7b-hf, llava-hf/bakLlava-v1-hf, llava-hf/llava-interleave-qwen-0.5b-hf, ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.images.transform import ImageTransform
from minipovid.models.parts import Place, text, vision

if TYPE_CHECKING:
    from torch import Tensor, nn

# Module names in transformers 5. CLIP has a q_proj, k_proj and v_proj of its own: `language_model` keeps them out.
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

COLUMNWISE = ("self_attn.o_proj", "mlp")  # parts of a decoder layer that compute each column by itself


# Published config.json files of models that are often planned for before they are fetched.
_CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
_LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
              "num_key_value_heads": 40}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    f"llava-hf/llava-1.5-{size}-hf": {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064, **sizes},
        "vision_config": _CLIP,
    }
    for size, sizes in (("7b", {}), ("13b", _LLAMA_13B))
}


def image_token_id(config: Any) -> int:
    return int(config.image_token_id)


def image_tokens(config: Any, size: tuple[int, int]) -> int:
    """As many for every size: 576 for a 336-pixel tower with 14-pixel patches."""
    return vision.tokens(config)


def processor(folder: Path) -> dict[str, Any]:
    return vision.processor(folder)


def image_transform(folder: Path) -> ImageTransform:
    """From the checkpoint's processor settings; its size is the tower's."""
    settings = processor(folder)
    return ImageTransform(
        size=vision.image_size(folder), mean=tuple(settings["image_mean"]), std=tuple(settings["image_std"])
    )


def text_model(model: nn.Module) -> nn.Module:
    return model.get_submodule("model.language_model")


def vision_modules(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return model.get_submodule("model.vision_tower"), model.get_submodule("model.multi_modal_projector")


def image_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """Projected features [B, N, H] of normalised pixels [B, 3, S, S]."""
    import torch

    features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output  # type: ignore
    return features if isinstance(features, torch.Tensor) else torch.stack(list(features))


def context(config: Any) -> int:
    return text.context(config.text_config)


def vision_flop(model: nn.Module, size: tuple[int, int]) -> int:
    return vision.flop(*vision_modules(model), model.config)


def vision_faults(model: nn.Module) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    return vision.faults(*vision_modules(model), model.config)


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
        return text.place(name, config.text_config)
    return vision.place(name, config)


def text_metadata(config: Any) -> dict[str, Any]:
    """The keys of the language model's architecture in llama.cpp."""
    return text.metadata(config.text_config)


def mmproj_metadata(config: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of llama.cpp's architecture "clip" with projector "mlp" (tools/mtmd/clip.cpp)."""
    return vision.metadata(config, settings)
