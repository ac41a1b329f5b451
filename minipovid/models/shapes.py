"""What arithmetic needs to know of a model: sizes counted on its empty skeleton. Nothing is downloaded or loaded.

    model = shapes("llava-hf/llava-1.5-7b-hf")
    model.linear  # 6,476,005,376 weights in the language model's linear layers

The parameters are counted on the real classes, built on torch's `meta` device (shapes without numbers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.models import families, hub
from minipovid.recipe.schema import BUILTIN

if TYPE_CHECKING:
    from torch import nn

CPU_LIMIT = 1_000_000_000  # weights; beyond it training on a CPU is no use to anybody


@dataclass(frozen=True)
class Shapes:
    """What the arithmetic needs to know of a model; sizes in weights."""

    linear: int  # the language model's linear layers, which 4-bit loading quantises
    embeddings: int  # the rest of the language side: embeddings, output head, norms
    vision: int  # tower and projector
    largest: int  # of the linear layers
    adapter_widths: tuple[int, ...]  # of every A and B: weights at r = 1
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
    def adapter_per_rank(self) -> int:
        """Adapter weights at r = 1."""
        return sum(self.adapter_widths)

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
    family = families.of(str(settings.get("model_type")))
    with hub.understood(f"The config.json of {path}"):
        whole = AutoConfig.for_model(**settings)
        model, text = skeleton(whole), whole.get_text_config()
    linear = [module.weight.numel() for module in family.text_model(model).modules() if isinstance(module, nn.Linear)]
    vision = sum(_weights(module) for module in family.vision_modules(model))
    targets = [module for name, module in model.named_modules() if re.fullmatch(family.LORA_TARGETS, name)]
    return Shapes(
        linear=sum(linear),
        embeddings=_weights(model) - vision - sum(linear),
        vision=vision,
        largest=max(linear),
        adapter_widths=tuple(width for module in targets for width in (module.in_features, module.out_features)),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        feed_forward=text.intermediate_size,
        heads=text.num_attention_heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        kv_heads=text.num_key_value_heads or text.num_attention_heads,
        vocabulary=text.vocab_size,
        image_tokens=family.image_tokens(whole, families.PHOTO),
        vision_flop=family.vision_flop(model, families.PHOTO),
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

        return hub.settings(Path(CHECKPOINT) / "config.json")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return hub.settings(folder / "config.json")
    file = _in_cache(path, revision)
    if file is not None:
        return hub.settings(file)
    for name in shelf.names("models.families"):
        if path in families.of(name).KNOWN:
            return dict(families.of(name).KNOWN[path])
    raise MinipovidError(
        f"The shapes of {path} are not known on this machine; fetch its config alone with "
        f"`hf download {path} config.json`, or name a folder that holds it."
    )


def _in_cache(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        raise MinipovidError(f"{repo!r} is neither a folder nor a valid Hub id.") from None
    return Path(file) if isinstance(file, str) else None


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
