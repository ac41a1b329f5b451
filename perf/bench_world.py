"""What the benchmarks run on: a random LLaVA of a chosen geometry, JPEG pictures of a photograph's size, and pairs.

Random weights cost what trained ones cost. Tokenizer and processor files are those of tests/helpers/tiny_llava.py: a
small vocabulary of pieces below an embedding of the real one's size.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import tiny_llava  # noqa: E402 - found through the line above

WORDS = ["A", "The", "red", "green", "blue", "large", "small", "circle", "square", "dog", "cat", "table", "is", "over"]
PICTURE = (640, 480)  # pixels, COCO's usual size


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


SMALL = Geometry(64, 192, 2, 4, 416, 64, 128, 3, 4, 56, 14, prompt_tokens=20, answer_tokens=24)
CPU = Geometry(640, 1728, 10, 10, 32064, 256, 1024, 8, 4, 336, 14)
LLAVA_7B = Geometry(4096, 11008, 32, 32, 32064, 1024, 4096, 24, 16, 336, 14)


def build_folder(folder: Path, geometry: Geometry, dtype: torch.dtype) -> dict[str, Any]:
    """Write all of a checkpoint but its weights (those that lie there are tiny_llava's); returns its configuration."""
    g = geometry
    tiny_llava.build(folder, layers=1, vision_layers=2, image_size=g.image_size, patch_size=g.patch_size)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config["text_config"]["torch_dtype"] = str(dtype).removeprefix("torch.")
    config["text_config"] |= {
        "hidden_size": g.hidden,
        "intermediate_size": g.ffn,
        "num_hidden_layers": g.layers,
        "num_attention_heads": g.heads,
        "num_key_value_heads": g.heads,
        "vocab_size": g.vocabulary,
        "max_position_embeddings": 4096,
    }
    config["vision_config"] |= {
        "hidden_size": g.vision_hidden,
        "intermediate_size": g.vision_ffn,
        "num_hidden_layers": g.vision_layers,
        "num_attention_heads": g.vision_heads,
    }
    _write_json(folder / "config.json", config)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    _write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 4096})
    return config


def build_checkpoint(folder: Path, geometry: Geometry, dtype: torch.dtype, device: str) -> int:
    """Write the random checkpoint, drawn on `device`, in Hub layout; returns its number of parameters."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = build_folder(folder, geometry, dtype)
    with torch.device("meta"):
        skeleton = LlavaForConditionalGeneration(LlavaConfig(**config))
    generator = torch.Generator(device).manual_seed(0)
    tensors = {
        tiny_llava.hub_name(name): _draw(name, value.shape, dtype, generator)
        for name, value in skeleton.named_parameters()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def _draw(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Norms one, biases zero, matrices scaled by their fan-in, so that activations keep their size."""
    if len(shape) == 1:
        value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return torch.full(shape, value, dtype=dtype)
    fan_in = 1 if "embed_tokens" in name else shape[1:].numel()
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return noise.mul_(fan_in**-0.5).cpu()


def write_pairs(folder: Path, count: int, seed: int, geometry: Geometry) -> list[dict[str, str]]:
    """`count` pairs of `geometry`'s lengths, each with a JPEG of its own, in folder/pairs.jsonl; returns its rows.

    Another seed gives other texts and pictures, so that no cache of one measurement helps another.
    """
    from sentencepiece import SentencePieceProcessor

    folder.mkdir(parents=True)
    pieces = SentencePieceProcessor(model_proto=tiny_llava.sentencepiece_model())
    dice = random.Random(seed)
    rows = []
    for number in range(count):
        coarse = np.random.default_rng([seed, number]).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        template = pieces.encode("USER: \n ASSISTANT:")
        row = {
            "id": str(number),
            "image": f"{number}.jpg",
            "prompt": _text(dice, pieces, geometry.prompt_tokens - len(template)),
            "chosen": _text(dice, pieces, geometry.answer_tokens - 1),
            "rejected": _text(dice, pieces, geometry.answer_tokens - 1),
        }
        rows.append(row)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _text(dice: random.Random, pieces: Any, tokens: int) -> str:
    """Words of about that many tokens together."""
    words = [dice.choice(WORDS)]
    while len(pieces.encode(" ".join(words))) < tokens:
        words.append(dice.choice(WORDS))
    return " ".join(words)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
