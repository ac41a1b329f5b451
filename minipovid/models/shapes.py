"""What arithmetic needs to know of a model: sizes counted on its empty skeleton. Nothing is downloaded or loaded.

    model = shapes("llava-hf/llava-1.5-7b-hf")
    model.linear  # 6,476,005,376 weights in the language model's linear layers

The parameters are counted on the real classes, built on torch's `meta` device (shapes without numbers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.common.files import read_json
from minipovid.recipe.schema import BUILTIN

if TYPE_CHECKING:
    from torch import nn

CPU_LIMIT = 1_000_000_000  # weights; beyond it training on a CPU is no use to anybody

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


@dataclass(frozen=True)
class Shapes:
    """What the arithmetic needs to know of a model; sizes in weights."""

    linear: int  # the language model's linear layers, which 4-bit loading quantises
    embeddings: int  # the rest of the language side: embeddings, output head, norms
    vision: int  # tower and projector
    largest: int  # of the linear layers
    adapter_per_rank: int  # adapter weights at r = 1
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    head_width: int
    kv_heads: int
    vocabulary: int
    image_tokens: int
    vision_flop: int  # tower and projector, one picture

    @property
    def weights(self) -> int:
        return self.linear + self.embeddings + self.vision

    @property
    def attention(self) -> int:
        """Width of all heads together; the hidden size in most models."""
        return self.heads * self.head_width

    @property
    def columnwise(self) -> int:
        """Weights of one layer behind its attention (families' COLUMNWISE): output projection and gated MLP."""
        return self.attention * self.hidden + 3 * self.hidden * self.feed_forward

    @property
    def columnwise_per_rank(self) -> int:
        """Adapter weights on those at r = 1."""
        return self.attention + self.hidden + 3 * (self.hidden + self.feed_forward)

    @property
    def first(self) -> int:
        """Weights of the first layer's query, key and value, through which nothing is differentiated: they read the
        embeddings, which are frozen."""
        return self.hidden * (self.heads + 2 * self.kv_heads) * self.head_width


def shapes(path: str, revision: str | None = None) -> Shapes:
    """Count a model's weights. Raises MinipovidError where its config.json is not on this machine."""
    from torch import nn
    from transformers import AutoConfig

    settings = config(path, revision)
    family = shelf.load("models.families", str(settings.get("model_type")))
    settled = AutoConfig.for_model(**settings)
    model = skeleton(settled)
    text = settled.text_config
    linear = [module.weight.numel() for module in family.text_model(model).modules() if isinstance(module, nn.Linear)]
    vision = sum(_weights(module) for module in family.vision_modules(model))
    targets = [module for name, module in model.named_modules() if re.fullmatch(family.LORA_TARGETS, name)]
    image_tokens = family.image_token(settled)[1]
    return Shapes(
        linear=sum(linear),
        embeddings=_weights(model) - vision - sum(linear),
        vision=vision,
        largest=max(linear),
        adapter_per_rank=sum(module.in_features + module.out_features for module in targets),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=text.intermediate_size,
        heads=text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        kv_heads=text.num_key_value_heads or text.num_attention_heads,
        vocabulary=text.vocab_size,
        image_tokens=image_tokens,
        vision_flop=_vision_flop(family.vision_modules(model), settled.vision_config, image_tokens),
    )


def skeleton(config: Any) -> nn.Module:
    """A model's modules without their weights, from transformers' configuration of it."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)  # type: ignore[no-any-return,no-untyped-call]


def config(path: str, revision: str | None = None) -> dict[str, Any]:
    """config.json of a model: shipped, in a folder, in the Hub's cache, or known by heart. Never downloaded."""
    if path == BUILTIN:
        from minipovid.tinyworld import CHECKPOINT

        return read_json(Path(CHECKPOINT) / "config.json")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return read_json(folder / "config.json")
    cached = _cached(path, revision)
    if cached is not None:
        return read_json(cached)
    if path in KNOWN:
        return KNOWN[path]
    raise MinipovidError(
        f"The shapes of {path} are not known on this machine; fetch its config alone with "
        f"`hf download {path} config.json`, or name a folder that holds it."
    )


def _cached(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        raise MinipovidError(f"{repo!r} is neither a folder nor a valid Hub id.") from None
    return Path(found) if isinstance(found, str) else None


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _vision_flop(modules: Sequence[nn.Module], vision: Any, image_tokens: int) -> int:
    """2 per weight and place: patches in the embedding, patches and class token in the tower, image tokens in the
    projector; and two products of [places, places, width] per layer, attention."""
    tower, projector = modules
    patches = (vision.image_size // vision.patch_size) ** 2
    places = patches + (vision.model_type == "clip_vision_model")
    matrices = 2 * patches * _of_kind(tower, "Conv2d") + 2 * places * _of_kind(tower, "Linear")
    attention = 4 * places**2 * vision.hidden_size * vision.num_hidden_layers
    return int(matrices + attention + 2 * image_tokens * _of_kind(projector, "Linear"))


def _of_kind(module: nn.Module, kind: str) -> int:
    parts: Iterable[Any] = module.modules()
    return sum(part.weight.numel() for part in parts if type(part).__name__ == kind)
