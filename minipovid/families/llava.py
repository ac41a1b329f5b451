"""LLaVA 1.5 (llava-hf layout): a CLIP or SigLIP tower, a two-layer projector and a Llama-like language model.

USER: <image>
What is this? ASSISTANT: A red circle.</s>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.errors import MinipovidError
from minipovid.images import ImageTransform
from minipovid.layout import Place

if TYPE_CHECKING:
    from torch import Tensor, nn

# Module names in transformers 5. CLIP has a q_proj, k_proj and v_proj of its own: `language_model` keeps them out.
LORA_TARGETS = r".*language_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

COLUMNWISE = ("self_attn.o_proj", "mlp")  # parts of a decoder layer that compute each column by itself

IMAGE = "<image>"  # the picture's placeholder


def prompt(question: str) -> str:
    return f"USER: <image>\n{question} ASSISTANT:"


def answer(text: str) -> str:
    return f" {text}</s>"


def image_token(config: Any) -> tuple[int, int]:
    """(placeholder id, image tokens per picture) of a LlavaConfig: 576 for a 336-pixel tower with 14-pixel patches."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    has_class_token = vision.model_type == "clip_vision_model"
    keeps_class_token = has_class_token and config.vision_feature_select_strategy == "full"
    return config.image_token_id, patches + keeps_class_token


def image_transform(folder: Path) -> ImageTransform:
    """The picture's way into the tower, from the checkpoint's processor settings ."""
    settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    vision = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vision_config"]
    return ImageTransform(
        size=vision.get("image_size", 336),
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


# --- The GGUF pair: language model (architecture "llama") and mmproj (architecture "clip", projector "mlp") ---

_TEXT = {
    "language_model.embed_tokens": "token_embd",
    "language_model.norm": "output_norm",
    "lm_head": "output",
}
_TEXT_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_VISION = {
    "vision_tower.embeddings.patch_embedding": "v.patch_embd",
    "vision_tower.embeddings.position_embedding": "v.position_embd",
    "vision_tower.pre_layrnorm": "v.pre_ln",
    "multi_modal_projector.linear_1": "mm.0",  # llama.cpp counts the activation between them
    "multi_modal_projector.linear_2": "mm.2",
}
_VISION_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}
# The Hub's files of 2023 store two buffers that are computed; the norm behind the tower comes after the layer we take.
_UNUSED = re.compile(r".*(rotary_emb\.inv_freq|embeddings\.position_ids)|vision_tower\.post_layernorm\..*")
_ACTIVATIONS = {"quick_gelu": {}, "gelu": {"clip.use_gelu": True}}  # neither flag means QuickGELU to llama.cpp


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
    if _UNUSED.fullmatch(name):
        return None
    if name == "vision_tower.embeddings.class_embedding":
        return Place("mmproj", "v.class_embd", full=True)
    module, _, kind = name.rpartition(".")
    if module in _TEXT:
        return Place("text", f"{_TEXT[module]}.{kind}")
    if module in _VISION:
        return Place("mmproj", f"{_VISION[module]}.{kind}", full="embd" in _VISION[module])
    layer = re.fullmatch(r"(language_model|vision_tower\.encoder)\.layers\.(\d+)\.(.+)", module)
    if layer and layer[1] == "language_model" and layer[3] in _TEXT_LAYER:
        text = config.text_config
        heads = {"self_attn.q_proj": text.num_attention_heads, "self_attn.k_proj": text.num_key_value_heads}
        is_linear = kind == "weight" and "norm" not in layer[3]
        where = f"blk.{layer[2]}.{_TEXT_LAYER[layer[3]]}.{kind}"
        return Place("text", where, heads=heads.get(layer[3], 0), in_4bit=is_linear)
    if layer and layer[1] != "language_model" and layer[3] in _VISION_LAYER:
        is_used = int(layer[2]) < _vision_layers(config)
        return Place("mmproj", f"v.blk.{layer[2]}.{_VISION_LAYER[layer[3]]}.{kind}") if is_used else None
    raise MinipovidError(f"The tensor {name} belongs to no part of LLaVA 1.5 that llama.cpp knows.")


def _vision_layers(config: Any) -> int:
    """How many layers of the tower are run: features are hidden_states[-2], so 23 of CLIP-L's 24."""
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise MinipovidError(f"vision_feature_layer is {layer}; llama.cpp's LLaVA takes the features of one layer.")
    return int(layer if layer >= 0 else config.vision_config.num_hidden_layers + 1 + layer)


def text_metadata(config: Any) -> dict[str, Any]:
    """The keys of llama.cpp's architecture "llama" (src/models/llama.cpp)."""
    text = config.text_config
    rope = text.rope_parameters
    if text.model_type != "llama" or text.hidden_act != "silu":
        raise MinipovidError(f"The language model is {text.model_type} ({text.hidden_act}); export knows llama (silu).")
    if rope.get("rope_type", "default") != "default":
        raise MinipovidError(f"The language model scales its positions ({rope['rope_type']}); export knows default.")
    head_dim = text.head_dim or text.hidden_size // text.num_attention_heads
    return {
        "general.architecture": "llama",
        "llama.context_length": text.max_position_embeddings,
        "llama.embedding_length": text.hidden_size,
        "llama.block_count": text.num_hidden_layers,
        "llama.feed_forward_length": text.intermediate_size,
        "llama.attention.head_count": text.num_attention_heads,
        "llama.attention.head_count_kv": text.num_key_value_heads,
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": float(rope["rope_theta"]),
        "llama.vocab_size": text.vocab_size,
    }


def mmproj_metadata(config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of llama.cpp's architecture "clip" with projector "mlp" (tools/mtmd/clip.cpp)."""
    vision = config.vision_config
    _check_tower(config)
    return {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        **_ACTIVATIONS[vision.hidden_act],
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": _vision_layers(config),
        "clip.vision.feature_layer": [_vision_layers(config)],  # left out, llama.cpp would drop one layer more
        "clip.vision.projection_dim": config.text_config.hidden_size,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        "clip.vision.image_mean": [float(value) for value in processor["image_mean"]],
        "clip.vision.image_std": [float(value) for value in processor["image_std"]],
    }


def _check_tower(config: Any) -> None:
    vision = config.vision_config
    if vision.model_type != "clip_vision_model":
        raise MinipovidError(f"The vision tower is {vision.model_type}; export knows clip_vision_model.")
    if config.vision_feature_select_strategy != "default":
        raise MinipovidError(
            f"vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; "
            "llama.cpp's LLaVA drops the class token ('default')."
        )
    if vision.hidden_act not in _ACTIVATIONS or config.projector_hidden_act != "gelu":
        raise MinipovidError(
            f"The vision side computes {vision.hidden_act} and {config.projector_hidden_act}; "
            f"llama.cpp's LLaVA knows {' or '.join(_ACTIVATIONS)} in the tower and gelu in the projector."
        )


def chat_template(first: str) -> str:
    """The conversation as LLaVA 1.5 was taught it, for llama.cpp's Jinja. One line: no option trims it.

    Pictures come first, each with a newline, then the texts. A client that has put its picture's marker into a text
    part (`<__media...`) is understood. `first` stands before everything.
    """
    return (
        f"{{{{ {first!r} }}}}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{ 'USER: ' }}"
        "{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}{%- endif -%}"
        "{%- if message['content'] is string -%}{{ message['content'] }}"
        "{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' and '<__media' in part['text'] -%}{{ part['text'] + '\\n' }}"
        "{%- elif part['type'] != 'text' -%}{{ '<image>\\n' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'text' and '<__media' not in part['text'] -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- endif -%}"
        "{%- if message['role'] == 'assistant' -%}{{ '</s>' }}{%- else -%}{{ ' ' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
    )
