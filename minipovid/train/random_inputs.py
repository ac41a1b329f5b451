"""A model of random weights and random pairs, of any shapes: random weights cost what trained ones cost.

Tokenizer and processor files are the tiny world's: a small vocabulary below an embedding of the real one's size.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from minipovid.models import hub, tokenizer
from minipovid.models.shapes import skeleton
from minipovid.models.stored_tensors import INDEX
from minipovid.tinyworld import CHECKPOINT

SHARD = 2**30  # bytes of weights that are held before they are written
LONGEST = 4096  # tokens that the model takes
PICTURE = (640, 480)  # pixels, COCO's usual size
FRAME = 8  # tokens that LLaVA 1.5's format puts around a prompt
WORDS = (
    "The",
    "the",
    "red",
    "green",
    "blue",
    "white",
    "circle",
    "square",
    "star",
    "is",
    "left",
    "right",
)  # a token or two each


def write_model(folder: Path, config: dict[str, Any], dtype: torch.dtype, device: str) -> int:
    """Write a random checkpoint of a config.json's shapes, drawn on `device`; returns its number of parameters."""
    from transformers import AutoConfig

    settings = write_settings(folder, config, dtype)
    generator = torch.Generator(device).manual_seed(0)
    places: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    count = 0

    def write() -> None:
        shard = f"model-{len(set(places.values())) + 1:05d}.safetensors"
        save_file(held, folder / shard, metadata={"format": "pt"})
        places.update(dict.fromkeys(held, shard))
        held.clear()

    for name, parameter in skeleton(AutoConfig.for_model(**settings)).named_parameters():
        held[name] = _draw(name, parameter.shape, dtype, generator)
        count += parameter.numel()
        if sum(tensor.nbytes for tensor in held.values()) >= SHARD:
            write()
    write()
    _write_json(folder / INDEX, {"metadata": {}, "weight_map": places})
    return count


def write_settings(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Write all of a checkpoint but its weights; returns its config.json, with the tokens of the tokenizer here."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = {path.name: hub.settings(path) for path in CHECKPOINT.glob("*config.json")}
    tokens = {key: value for key, value in ours["config.json"].items() if key.endswith(("token_id", "token_index"))}
    kind = str(dtype).removeprefix("torch.")
    text = {**config["text_config"], "max_position_embeddings": LONGEST, "dtype": kind}
    size = config["vision_config"]["image_size"]
    ours["config.json"] = {**config, **tokens, "dtype": kind, "text_config": text}
    ours["tokenizer_config.json"]["model_max_length"] = LONGEST
    ours["preprocessor_config.json"] |= {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    ours["processor_config.json"]["patch_size"] = config["vision_config"]["patch_size"]
    for name, settings in ours.items():
        _write_json(folder / name, settings)
    for path in CHECKPOINT.glob("tokenizer.*"):
        shutil.copyfile(path, folder / path.name)
    return ours["config.json"]


def _draw(name: str, shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Norms one, biases zero, matrices scaled by their fan-in, so that activations keep their size."""
    if len(shape) == 1:
        value = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        return torch.full(shape, value, dtype=dtype)
    fan_in = 1 if "embed_tokens" in name else shape[1:].numel()
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    return noise.mul_(fan_in**-0.5).cpu()


def write_pairs(folder: Path, count: int, seed: int, prompt_tokens: int, answer_tokens: int) -> list[dict[str, str]]:
    """Write `count` pairs, each with a JPEG of its own, as folder/pairs.jsonl; returns them as its rows.

    Prompts have about `prompt_tokens` beside the picture's, answers `answer_tokens` with the end of sequence. Another
    seed gives other texts and pictures, so that no cache of one measurement helps another.
    """
    folder.mkdir(parents=True)
    pieces = tokenizer.load(CHECKPOINT)
    dice = random.Random(seed)

    def text(tokens: int) -> str:
        words = [dice.choice(WORDS)]
        while len(pieces.encode(" ".join(words), add_special_tokens=False)) < tokens:
            words.append(dice.choice(WORDS))
        return " ".join(words)

    rows = []
    for number in range(count):
        coarse = np.random.default_rng([seed, number]).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
        texts = {
            "prompt": text(prompt_tokens - FRAME),
            "chosen": text(answer_tokens - 1),
            "rejected": text(answer_tokens - 1),
        }
        rows.append({"id": str(number), "image": f"{number}.jpg", **texts})
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return rows


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
