"""What the benchmarks run on: the package's random model and pairs, in geometries of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minipovid.train import random_inputs


@dataclass(frozen=True)
class Geometry:
    """Widths and depths of the two halves, and the lengths of a pair in tokens."""

    hidden: int
    ffn: int
    layers: int
    heads: int
    vocabulary: int
    vision_hidden: int
    vision_ffn: int
    vision_layers: int
    vision_heads: int
    image_size: int
    patch_size: int
    prompt_tokens: int = 60  # the picture's own not counted
    answer_tokens: int = 100  # of each answer, the end of sequence counted

    def config(self) -> dict[str, Any]:
        """A LLaVA's config.json."""
        text = {
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "rms_norm_eps": 1e-5,
            "vocab_size": self.vocabulary,
        }
        vision = {
            "model_type": "clip_vision_model",
            "hidden_size": self.vision_hidden,
            "intermediate_size": self.vision_ffn,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "image_seq_length": (self.image_size // self.patch_size) ** 2,
            "text_config": text,
            "vision_config": vision,
        }


SMALL = Geometry(64, 192, 2, 4, 512, 64, 128, 3, 4, 56, 14, prompt_tokens=20, answer_tokens=24)
CPU = Geometry(640, 1728, 10, 10, 32064, 256, 1024, 8, 4, 336, 14)
LLAVA_7B = Geometry(4096, 11008, 32, 32, 32064, 1024, 4096, 24, 16, 336, 14)


def build_checkpoint(folder: Path, geometry: Geometry, dtype: torch.dtype, device: str) -> int:
    """Write the random checkpoint, drawn on `device`; returns its number of parameters."""
    return random_inputs.write_model(folder, geometry.config(), dtype, device)


def write_pairs(folder: Path, count: int, seed: int, geometry: Geometry) -> list[dict[str, str]]:
    """`count` pairs of `geometry`'s lengths in folder/pairs.jsonl; returns its rows."""
    return random_inputs.write_pairs(folder, count, seed, geometry.prompt_tokens, geometry.answer_tokens)
