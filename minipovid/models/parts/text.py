"""Language models that stand inside a family, and what llama.cpp calls their parts: one entry per `model_type`.

    text.place("language_model.norm.weight", config.text_config)  # Place("text", "output_norm.weight")

Names of tensors are those within transformers 5, without the leading `model.`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.models.parts import Place

_OUTSIDE = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_QKV = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
_LINEAR = {
    **_QKV,
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = {**_LINEAR, "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


@dataclass(frozen=True)
class TextModel:
    """How one of transformers' text models becomes one of llama.cpp's (src/models/ there)."""

    architecture: str  # its name there
    in_pairs: bool  # it rotates rows 0 and 1, 2 and 3, ... of a head together; transformers rows i and i + d/2
    biases: frozenset[str] = frozenset()  # modules of a layer whose bias it adds
    any_head_width: bool = True  # may it differ from hidden_size / num_attention_heads?


TEXT_MODELS = {
    "llama": TextModel("llama", in_pairs=True, biases=frozenset(_LINEAR)),
    "mistral": TextModel("llama", in_pairs=True),
    "qwen2": TextModel("qwen2", in_pairs=False, biases=frozenset(_QKV), any_head_width=False),
}


def _entry(text: Any) -> TextModel:
    """The entry of this text_config. Raises MinipovidError for a model that has none."""
    if text.model_type not in TEXT_MODELS:
        raise MinipovidError(f"The language model is {text.model_type}; export knows {', '.join(TEXT_MODELS)}.")
    return TEXT_MODELS[text.model_type]


def place(name: str, text: Any) -> Place | None:
    """Where a tensor goes; None: it is computed there. Raises MinipovidError for one that llama.cpp's model has not."""
    model = _entry(text)
    if name.endswith("rotary_emb.inv_freq"):  # the Hub's files of 2023
        return None
    module, _, kind = name.removeprefix("language_model.").rpartition(".")
    if kind == "weight" and module in _OUTSIDE:
        return Place("text", f"{_OUTSIDE[module]}.weight")
    layer, part = _within(module)
    if part not in (_LAYER if kind == "weight" else model.biases):
        raise MinipovidError(f"The tensor {name} belongs to no part of LLaVA that llama.cpp knows.")
    heads = {"self_attn.q_proj": text.num_attention_heads, "self_attn.k_proj": text.num_key_value_heads}
    return Place(
        "text",
        f"blk.{layer}.{_LAYER[part]}.{kind}",
        heads=heads.get(part, 0) if model.in_pairs else 0,
        in_4bit=kind == "weight" and part in _LINEAR,
    )


def _within(module: str) -> tuple[str, str]:
    """(number of its layer, name within it) of a module; both empty where it stands in none."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", module)
    return (match[1], match[2]) if match else ("", "")


def metadata(text: Any) -> dict[str, Any]:
    """The keys of the architecture. Raises MinipovidError for what llama.cpp would compute otherwise."""
    model = _entry(text)
    if text.hidden_act != "silu":
        raise MinipovidError(f"The language model computes {text.hidden_act}; llama.cpp's {model.architecture}, silu.")
    return {
        "general.architecture": model.architecture,
        **{f"{model.architecture}.{key}": value for key, value in _keys(model, text).items()},
    }


def _keys(model: TextModel, text: Any) -> dict[str, Any]:
    width = _head_width(model, text)
    return {
        "context_length": context(text),
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(text.rms_norm_eps),
        "rope.dimension_count": width,
        "rope.freq_base": float(text.rope_parameters["rope_theta"]),
        **_scaling(text.rope_parameters),
        "vocab_size": text.vocab_size,
    }


def _head_width(model: TextModel, text: Any) -> int:
    plain = text.hidden_size // text.num_attention_heads
    width = getattr(text, "head_dim", None) or plain
    if width != plain and not model.any_head_width:
        raise MinipovidError(
            f"The heads of the language model are {width} wide (head_dim), but llama.cpp's {model.architecture} makes "
            f"them {plain}."
        )
    return int(width)


def context(text: Any) -> int:
    """Positions that can be told apart; with a sliding window, which llama.cpp would not slide, no more than that."""
    window = getattr(text, "sliding_window", None)
    return int(min(text.max_position_embeddings, window or text.max_position_embeddings))


def _scaling(rope: dict[str, Any]) -> dict[str, Any]:
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind != "default":
        raise MinipovidError(f"The language model scales its positions ({kind}); export knows default and linear.")
    return {}
