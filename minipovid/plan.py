"""What a recipe will need, predicted from the model's shapes alone: nothing is downloaded, no weight is loaded.

The parameters are counted on the real model, built on torch's `meta` device (shapes without numbers). The rest is
arithmetic; with T tokens in one pass, L layers, hidden size H and feed-forward size I:

    4-bit weights   4 bits + 8 bits per 64 weights + 32 bits per 64 * 256     NF4, double quantised (arXiv 2305.14314)
    adapters        4 bytes per weight, and as many again for the frozen copy that later stages refer to
    optimiser       gradient 4 bytes, Adam's two moments 8 bytes
    activations     T * (16 H + 4 I) values per layer, and T * (6 H + I) inputs of the adapters, 2 bytes each; with
                    gradient checkpointing all that for one layer, and T * H values per layer
    workspace       one weight matrix in 16 bits, the adapters' 16-bit copies, the log-probs, 1 GiB of CUDA's own

T is what the longest row that data.max_length admits can take: prompt and picture once, then every answer. Nothing of
this is measured: memory may be 25 % more or less, time 50 %.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minipovid import losses, shelf
from minipovid.checkpoint import read_json
from minipovid.errors import MinipovidError
from minipovid.recipe import BUILTIN, Recipe
from minipovid.types import View

GIB = 2**30
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # per weight
PROMPT, ANSWER = 60, 100  # tokens of a usual question and answer, for the time alone
TFLOPS = {"RTX 3090": 50, "RTX 4090": 110}  # sustained in bfloat16, 1e12 per second
CHUNK = 8192  # columns of the output head that are in float32 at a time (minipovid.scoring), with two more copies

# Published config.json files of models that are often planned for before they are fetched.
_CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
         "num_attention_heads": 16, "image_size": 336, "patch_size": 14}  # fmt: skip
_LLAMA_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
              "num_key_value_heads": 40}  # fmt: skip
KNOWN: dict[str, dict[str, Any]] = {
    f"llava-hf/llava-1.5-{size}-hf": {
        "model_type": "llava",
        "text_config": {"model_type": "llama", "vocab_size": 32064, **shapes},
        "vision_config": _CLIP,
    }
    for size, shapes in (("7b", {}), ("13b", _LLAMA_13B))
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
    vocabulary: int
    image_tokens: int


@dataclass(frozen=True)
class Forecast:
    """What a recipe will need."""

    vram: dict[str, float]  # GiB by part
    disk: dict[str, float]  # GiB by part
    seconds_per_pair: dict[str, float]  # by card, each pair visited in every epoch of every stage
    visits: int | None  # pairs times epochs, all stages together; none where the data is not here yet

    @property
    def peak_gib(self) -> float:
        return sum(self.vram.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "peak_gib": round(self.peak_gib, 2),
            "vram_gib": {part: round(size, 2) for part, size in self.vram.items()},
            "disk_gib": {part: round(size, 2) for part, size in self.disk.items()},
            "seconds_per_pair": {card: float(f"{seconds:.3g}") for card, seconds in self.seconds_per_pair.items()},
            "visits": self.visits,
        }

    def table(self) -> str:
        lines = ["GPU memory at its peak, GiB (predicted)", *_column(self.vram)]
        lines += ["Disk, GiB", *_column(self.disk)]
        for card, seconds in self.seconds_per_pair.items():
            visits = self.visits or 1000
            of = f"{visits:,} visits of a pair" if self.visits else "1,000 visits of a pair"
            lines.append(f"Training, about: {_duration(seconds * visits)} on an {card} for {of}")
        return "\n".join(lines)


class Verdict(NamedTuple):
    """Does it fit a card, and what to change where it does not."""

    fits: bool
    card_gib: float
    changes: dict[str, Any]  # recipe keys and values for --set, the least harmful first
    sentence: str


def predict(recipe: Recipe) -> Forecast:
    """What the recipe will need. Raises MinipovidError where the model's shapes cannot be known yet."""
    return forecast(shapes(recipe.model.path, recipe.model.revision), recipe)


def verdict(predicted: Forecast, recipe: Recipe, card_gib: float) -> Verdict:
    """Whether the prediction fits a card, and if not, which changes make it fit."""
    peak = start = predicted.peak_gib
    if start <= card_gib:
        return Verdict(True, card_gib, {}, f"It fits: {start:.1f} of {card_gib:g} GiB.")
    known = shapes(recipe.model.path, recipe.model.revision)
    changes: dict[str, Any] = {}
    for key, value in _economies(recipe):
        changed = _changed(recipe, key, value)
        lower = forecast(known, changed).peak_gib
        if lower < peak - 0.05:
            recipe, peak, changes[key] = changed, lower, value
        if peak <= card_gib:
            break
    advice = "use a smaller model"
    if changes:
        advice = "set " + " and ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
        advice += (
            f", then it takes {peak:.1f} GiB" if peak <= card_gib else f", and a smaller model: {peak:.1f} GiB is left"
        )
    return Verdict(False, card_gib, changes, f"It does not fit: {start:.1f} of {card_gib:g} GiB; {advice}.")


def _economies(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Keys and values that save memory, the least harmful first."""
    yield "train.gradient_checkpointing", True
    yield "model.load_in_4bit", True
    yield "train.per_device_train_batch_size", 1
    rank = recipe.lora.r
    while rank > 8:
        rank //= 2
        yield "lora.r", rank
    if recipe.data.max_length > 768:
        yield "data.max_length", 768


def _changed(recipe: Recipe, dotted: str, value: Any) -> Recipe:
    section, _, key = dotted.partition(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={key: value})})


def shapes(path: str, revision: str | None = None) -> Shapes:
    """Count a model's weights on its empty skeleton."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForImageTextToText

    settings = _config(path, revision)
    family = shelf.load("families", str(settings.get("model_type")))
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    text = family.text_model(model)
    linear = [module.weight.numel() for module in text.modules() if isinstance(module, nn.Linear)]
    vision = sum(_weights(module) for module in family.vision_modules(model))
    targets = [module for name, module in model.named_modules() if re.fullmatch(family.LORA_TARGETS, name)]
    return Shapes(
        linear=sum(linear),
        embeddings=_weights(model) - vision - sum(linear),
        vision=vision,
        largest=max(linear),
        adapter_per_rank=sum(module.in_features + module.out_features for module in targets),
        layers=config.text_config.num_hidden_layers,
        hidden=config.text_config.hidden_size,
        feed_forward=config.text_config.intermediate_size,
        vocabulary=config.text_config.vocab_size,
        image_tokens=family.image_token(config)[1],
    )


def _weights(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _config(path: str, revision: str | None) -> dict[str, Any]:
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


def forecast(model: Shapes, recipe: Recipe) -> Forecast:
    """The arithmetic of the module's docstring."""
    return Forecast(
        vram=_vram(model, recipe),
        disk=_disk(model, recipe),
        seconds_per_pair=_seconds_per_pair(model, recipe),
        visits=_visits(recipe),
    )


def _vram(model: Shapes, recipe: Recipe) -> dict[str, float]:
    adapter = model.adapter_per_rank * recipe.lora.r
    copies = 2 if len(recipe.stages) > 1 or recipe.start_from is not None else 1
    longest = max(_passes(model, recipe, stage, recipe.data.max_length) for stage in _views(recipe))
    activations = recipe.train.per_device_train_batch_size * _activations(model, recipe, longest.tokens)
    log_probs = recipe.train.per_device_train_batch_size * longest.rows * min(model.vocabulary, CHUNK) * 3 * 4
    # AdamW's fused update makes one temporary the size of the adapters, after the activations are gone.
    passing = max(activations + log_probs, 4 * adapter)
    bytes_by_part = {
        "language model": model.linear * (NF4_BYTES if recipe.model.load_in_4bit else _width(recipe)),
        "embeddings and output head": model.embeddings * _width(recipe),
        "vision tower and projector": model.vision * _width(recipe),
        "adapters": 4 * adapter * copies,
        "optimiser": 12 * adapter,
        "activations": passing,
        "workspace": 2 * model.largest + 2 * adapter + GIB,
    }
    return {part: size / GIB for part, size in bytes_by_part.items()}


def _width(recipe: Recipe) -> int:
    """Bytes of a weight that is not quantised; `auto` is bfloat16 on a GPU."""
    return 4 if recipe.model.dtype == "float32" else 2


class _Passes(NamedTuple):
    """The passes of one pair that keep activations."""

    tokens: int
    rows: int  # answer positions that are scored


def _views(recipe: Recipe) -> Iterator[list[View]]:
    """The views of each stage's loss."""
    for number, stage in enumerate(recipe.stages):
        yield list(losses.build(stage.loss, f"stages.{number}.loss").views)


def _passes(model: Shapes, recipe: Recipe, views: list[View], length: int) -> _Passes:
    """Tokens and answer positions that keep activations, each picture's prompt and image counted once."""
    prefix = min(model.image_tokens + PROMPT, length)
    answer = max(length - prefix, 1)
    pictures = {view.image for view in views if view.grad}
    answers = {view.key for view in views if view.grad}
    return _Passes(len(pictures) * prefix + len(answers) * answer, len(answers) * answer)


def _activations(model: Shapes, recipe: Recipe, tokens: int) -> float:
    """Bytes that the backward pass needs of one pair."""
    layer = 2 * tokens * (16 * model.hidden + 4 * model.feed_forward + 6 * model.hidden + model.feed_forward)
    if recipe.train.gradient_checkpointing:
        return layer + 2 * tokens * model.hidden * model.layers
    return layer * model.layers


def _disk(model: Shapes, recipe: Recipe) -> dict[str, float]:
    adapter = model.adapter_per_rank * recipe.lora.r
    text = model.linear + model.embeddings
    bytes_by_part = {
        "base model, 16-bit": 2 * (text + model.vision),
        "checkpoints": 12 * adapter * recipe.train.save_total_limit,
        "adapter": 4 * adapter,
        "GGUF files": sum(text * _bits(quant) / 8 for quant in recipe.export.quants) + 2 * model.vision,
    }
    sizes = {part: size / GIB for part, size in bytes_by_part.items()}
    if any(view.image == "noised" for views in _views(recipe) for view in views):
        sizes["noised pictures, at most"] = recipe.noise.cache_gib
    return sizes


def _bits(quant: str) -> float:
    """Bits per weight of a GGUF type: f16 has 16; q8_0 8.5 and q4_k_m 4.85 hold scales beside their 8 and 4 bits."""
    found = re.search(r"\d+", quant)
    bits = int(found.group()) if found else 16
    return bits + (0.7 if bits < 16 else 0)


def _seconds_per_pair(model: Shapes, recipe: Recipe) -> dict[str, float]:
    """One visit of a usual pair, averaged over the stages by their epochs."""
    usual = min(model.image_tokens + PROMPT + ANSWER, recipe.data.max_length)
    epochs = [stage.epochs for stage in recipe.stages]
    each = [_flop(model, recipe, views, usual) for views in _views(recipe)]
    flop = sum(count * flops for count, flops in zip(epochs, each, strict=True)) / sum(epochs)
    return {card: flop / (tflops * 1e12) for card, tflops in TFLOPS.items()}


def _flop(model: Shapes, recipe: Recipe, views: list[View], length: int) -> float:
    """Floating point operations of one visit: 2 per weight and token forward; backward goes through the frozen weights
    once and through the adapters twice. The reference is counted at every visit, although much of it is cached."""
    adapter = model.adapter_per_rank * recipe.lora.r
    grad = _passes(model, recipe, views, length).tokens
    prefix = min(model.image_tokens + PROMPT, length)
    noted = {view.image: {other.key for other in views if other.image == view.image} for view in views if not view.grad}
    quiet = sum(prefix + len(answers) * (length - prefix) for answers in noted.values())
    forward = 2 * grad * (model.linear + adapter)
    backward = 2 * grad * model.linear + 4 * grad * adapter
    recomputed = forward if recipe.train.gradient_checkpointing else 0
    return forward + recomputed + backward + 2 * quiet * (model.linear + adapter) + 2 * grad * model.linear


def _visits(recipe: Recipe) -> int | None:
    """How often a pair is visited in all stages together."""
    step = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    limit = None if recipe.train.max_steps is None else recipe.train.max_steps * step
    pairs = _pairs(recipe)
    if pairs is None:
        return None if limit is None else limit * len(recipe.stages)
    return sum(min(pairs * stage.epochs, limit or pairs * stage.epochs) for stage in recipe.stages)


def _pairs(recipe: Recipe) -> int | None:
    path = Path(recipe.data.path)
    if recipe.data.path == BUILTIN or not path.is_file():
        return None
    rows = sum(1 for _ in shelf.load("pairs", recipe.data.format).read(path))
    return min(rows, recipe.data.limit or rows)


def _column(sizes: dict[str, float]) -> list[str]:
    rows = [f"  {part:<30}{size:>7.2f}" for part, size in sizes.items()]
    return [*rows, f"  {'together':<30}{sum(sizes.values()):>7.2f}"]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
