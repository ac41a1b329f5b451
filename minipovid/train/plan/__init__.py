"""What a recipe will need, predicted from the model's shapes alone: nothing is downloaded, no weight is loaded.

    predicted = predict(recipe)          # GiB by part, disk, and which cards do it in what time
    verdict(predicted, recipe, 8)        # does it fit 8 GiB, and what to change where it does not
    settle(recipe)                       # the recipe with every `auto` replaced by what fits this machine

The arithmetic is in costs.py, the cards are in cards.py, what is told of them in forecast.py. Memory is predicted for
the longest row that data.max_length admits, time for a question of 60 tokens and answers of 100. Nothing of this is
measured on a GPU yet: memory may be 25 % more or less, time 50 %.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from operator import mul
from pathlib import Path
from typing import Any

from minipovid.images.views import CLEAN, is_fresh_each_epoch, view_settings
from minipovid.models.device import check_bfloat16
from minipovid.models.shapes import CPU_LIMIT, Shapes, shapes
from minipovid.pairs import formats
from minipovid.recipe.schema import BUILTIN, DataSection, Recipe
from minipovid.train import losses
from minipovid.train.losses import View
from minipovid.train.plan import costs
from minipovid.train.plan.cards import CARDS, Card
from minipovid.train.plan.costs import GIB, Memory, Setting, Tree
from minipovid.train.plan.forecast import RESERVE, FitVerdict, Forecast, OnCard, is_tight, layers_in_words

PROMPT, ANSWER = 60, 100  # tokens of a usual question and answer, for the time alone
WORKERS = 4  # processes that prepare pictures, at most


def predict(recipe: Recipe, card_gib: float | None = None) -> Forecast:
    """What the recipe will need on a card of `card_gib`. Without one: what it needs at least, or, where this machine
    has no GPU and the model is small enough to do without, here. `auto` is settled accordingly.

    Raises MinipovidError where the model's shapes cannot be known yet, and where this machine's GPU has no bfloat16.
    """
    model = shapes(recipe.model.path, recipe.model.revision)
    if card_gib is None:
        check_bfloat16(recipe.model)
    if card_gib is None and model.weights <= CPU_LIMIT and not _cuda():
        return forecast(model, recipe, free_gib(), on_gpu=False)
    return forecast(model, recipe, card_gib or 0.0)


def forecast(model: Shapes, recipe: Recipe, memory_gib: float = 0.0, on_gpu: bool = True) -> Forecast:
    """What the recipe will need where there are `memory_gib`; the least that it can do with where that is 0."""
    settled = settled_for(model, recipe, memory_gib, on_gpu)
    peak = _peak(model, settled, on_gpu, _policies(model, settled))
    return Forecast(
        device="GPU" if on_gpu else "CPU",
        moment=peak.moment,
        memory={part: size / GIB for part, size in peak.parts.items()},
        disk=_disk(model, recipe),
        visits=_visits(recipe),
        cards=[_on_card(model, recipe, card) for card in CARDS],
        paged_gib=costs.paged(model, Setting.of(settled, on_gpu)) / GIB,
    )


def verdict(predicted: Forecast, recipe: Recipe, card_gib: float) -> FitVerdict:
    """Whether the recipe fits a card, and if not, which changes make it fit; and which known cards it fits."""
    model = shapes(recipe.model.path, recipe.model.revision)
    recipe = settled_for(model, recipe, card_gib)
    start = _gib(model, recipe)
    *others, last = [each.card.name for each in predicted.cards if each.fits] or [""]
    known = ", ".join(others) + " and " * bool(others) + last
    cards = f" Of the known cards, {known} can do it." if known else ""
    if start <= card_gib:
        fits = "It fits, but tightly" if is_tight(start, card_gib) else "It fits"
        layers, pairs = Setting.of(recipe, on_gpu=True).checkpointing, int(recipe.train.micro_batch)
        way = (
            f"with gradient checkpointing of {layers_in_words(layers)}" if layers else "without gradient checkpointing"
        )
        how = f"{way}, {pairs} pair{'s' * (pairs > 1)} at once"
        return FitVerdict(True, card_gib, {}, f"{fits}: {start:.1f} of {card_gib:g} GiB, {how}.{cards}")
    changes, peak = economise(model, recipe, card_gib)
    if not changes:
        return FitVerdict(
            False, card_gib, {}, f"It does not fit: {start:.1f} of {card_gib:g} GiB; use a smaller model.{cards}"
        )
    end = f"then it takes {peak:.1f} GiB" if peak <= card_gib else f"and a smaller model: {peak:.1f} GiB is left"
    sentence = f"It does not fit: {start:.1f} of {card_gib:g} GiB; set {_settings(changes)}, {end}.{cards}"
    return FitVerdict(False, card_gib, changes, sentence)


def advice(recipe: Recipe, memory_gib: float | None = None) -> str:
    """One sentence for an error of memory that ran out: what was predicted and what to change.

    The prediction may have said that it fits; so the changes lower it by a fifth, and below the memory that there is,
    by default this machine's.
    """
    model, on_gpu = shapes(recipe.model.path, recipe.model.revision), _cuda()
    memory_gib = total_gib() if memory_gib is None else memory_gib
    recipe = settled_for(model, recipe, memory_gib, on_gpu)
    start = _gib(model, recipe, on_gpu)
    changes, peak = economise(model, recipe, min(0.8 * start, (1 - RESERVE) * memory_gib), on_gpu)
    told = f"The memory ran out; {start:.1f} GiB were predicted, {memory_gib:.1f} GiB are there"
    if not changes:
        return f"{told}; close other programs that use it, or take a smaller model."
    return f"{told}; set {_settings(changes)} (predicted: {peak:.1f} GiB), or close other programs that use it."


def settle(recipe: Recipe, memory_gib: float | None = None) -> Recipe:
    """The recipe with micro_batch, gradient_checkpointing and dataloader_num_workers settled where they are `auto`.

    `memory_gib` is what may be used, by default what this machine has free now; 8 % of it is kept in reserve. Without
    checkpointing a step is a third faster, so as few layers are checkpointed as let a single pair fit, and then as many
    pairs at once as fit. Raises MinipovidError where the model's config.json is not on this machine.
    """
    train = recipe.train
    if train.dataloader_num_workers == "auto":
        workers = min(WORKERS, _cpus() // 2) if _cuda() else 0
        recipe = changed(recipe, "train.dataloader_num_workers", workers)
    if "auto" not in (train.micro_batch, train.gradient_checkpointing):
        return recipe
    memory_gib = free_gib() if memory_gib is None else memory_gib
    return settled_for(shapes(recipe.model.path, recipe.model.revision), recipe, memory_gib, _cuda())


def settled_for(model: Shapes, recipe: Recipe, memory_gib: float, on_gpu: bool = True) -> Recipe:
    """`micro_batch` and `gradient_checkpointing` as they fit into `memory_gib`; the leanest where nothing does."""
    train = recipe.train
    total = train.pairs_per_step
    sizes = range(total, 0, -1) if train.micro_batch == "auto" else [int(train.micro_batch)]
    given = train.gradient_checkpointing
    ways = [False, *range(1, model.layers - 1), True] if given == "auto" else [given]
    candidate, policies = recipe, _policies(model, recipe)  # which neither of the two changes
    for way in ways:
        for size in sizes:
            candidate = changed(changed(recipe, "train.gradient_checkpointing", way), "train.micro_batch", size)
            if not is_tight(_peak(model, candidate, on_gpu, policies).total / GIB, memory_gib):
                even = -(-total // -(-total // size)) if train.micro_batch == "auto" else size
                return changed(candidate, "train.micro_batch", even)  # 16 pairs, 10 fit: 8 and 8
    return candidate


def free_gib() -> float:
    """What this machine could give a training now: the GPU's free memory, else the computer's."""
    return _machine_memory()[0] / GIB


def total_gib() -> float:
    """What the GPU holds, else the computer."""
    return _machine_memory()[1] / GIB


def _machine_memory() -> tuple[int, int]:
    """Bytes that are free, and all."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def economise(model: Shapes, recipe: Recipe, target_gib: float, on_gpu: bool = True) -> tuple[dict[str, Any], float]:
    """The least harmful changes that bring a settled recipe down to `target_gib`, or as near as they can, and the peak
    that is left. What saves less than 1 % is left out."""
    peak = _gib(model, recipe, on_gpu)
    changes: dict[str, Any] = {}
    for key, value in _economies(recipe, on_gpu):
        if peak <= target_gib:
            break
        candidate = changed(recipe, key, value)
        lower = _gib(model, candidate, on_gpu)
        if lower < 0.99 * peak:
            recipe, peak, changes[key] = candidate, lower, value
    return changes, peak


def _economies(recipe: Recipe, on_gpu: bool) -> Iterator[tuple[str, Any]]:
    """Keys and values that save memory, the least harmful first: what changes no number, what costs time, what costs
    precision, what makes the adapter smaller, what leaves out rows."""
    pairs = int(recipe.train.micro_batch)
    while pairs > 1:
        pairs = -(-pairs // 2)
        yield "train.micro_batch", pairs
    yield "train.gradient_checkpointing", True
    if on_gpu and recipe.train.optim == "adamw_torch":
        yield "train.optim", "adamw_8bit"
    if on_gpu and not recipe.train.optim.startswith("paged_"):
        yield "train.optim", "paged_adamw_8bit"
    yield "model.load_in_4bit", True
    rank = recipe.lora.r
    while rank > 8:
        rank //= 2
        yield "lora.r", rank
    if recipe.data.max_length > 768:
        yield "data.max_length", 768


def changed(recipe: Recipe, dotted: str, value: Any) -> Recipe:
    section, _, key = dotted.partition(".")
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={key: value})})


def _peak(model: Shapes, recipe: Recipe, on_gpu: bool, policies: list[list[Tree]]) -> Memory:
    """The hungriest stage of a settled recipe."""
    setting = Setting.of(recipe, on_gpu)
    return max((costs.memory(model, setting, policy) for policy in policies), key=lambda memory: memory.total)


def _gib(model: Shapes, recipe: Recipe, on_gpu: bool = True) -> float:
    return _peak(model, recipe, on_gpu, _policies(model, recipe)).total / GIB


def _policies(model: Shapes, recipe: Recipe) -> list[list[Tree]]:
    """What each stage's policy scores of the longest pair."""
    lengths = _lengths(model, _longest(recipe))
    return [costs.trees(views, *lengths) for views in _views(recipe)]


def _views(recipe: Recipe) -> list[list[View]]:
    """The views of each stage's loss."""
    return [list(loss.views) for loss in losses.of_stages(recipe)]


def _longest(recipe: Recipe) -> int:
    """Tokens of the longest row that any stage admits."""
    return max(data.max_length for data in recipe.data_sections())


def _lengths(model: Shapes, length: int) -> tuple[int, int]:
    """Tokens of prefix and answer in a row of `length`."""
    prefix = min(model.image_tokens + PROMPT, length - 1)
    return prefix, length - prefix


def _on_card(model: Shapes, recipe: Recipe, card: Card) -> OnCard:
    settled = settled_for(model, recipe, card.gib)
    seconds = seconds_per_step(model, settled, card)
    return OnCard(
        card=card,
        peak_gib=_gib(model, settled),
        micro_batch=int(settled.train.micro_batch),
        gradient_checkpointing=Setting.of(settled, on_gpu=True).checkpointing,
        seconds_per_step=seconds,
        seconds_per_pair=seconds / settled.train.pairs_per_step,
    )


def seconds_per_step(model: Shapes, recipe: Recipe, card: Card) -> float:
    """A step over usual pairs, averaged over the stages by their epochs."""
    epochs = [stage.epochs for stage in recipe.stages]
    seconds = [stage_seconds_per_step(model, recipe, card, number) for number in range(len(epochs))]
    return sum(map(mul, seconds, epochs)) / sum(epochs)


def stage_seconds_per_step(model: Shapes, recipe: Recipe, card: Card, number: int) -> float:
    """The same of one stage of a settled recipe; the reference counts where it is computed."""
    setting = Setting.of(recipe, on_gpu=True)
    pairs, epochs = recipe.train.pairs_per_step, recipe.stages[number].epochs
    views, lengths = _views(recipe)[number], usual_lengths(model, recipe)
    policy = costs.trees(views, *lengths)
    flop = sum(costs.flop(model, setting, policy).values()) * pairs
    moved = costs.dequantised(model, setting, policy) * setting.passes + costs.optimiser_traffic(model, setting)
    seconds = card.seconds(flop, moved) * epochs
    adapted = number > 0 or recipe.start_from is not None
    for times, asked in _reference(recipe, views, epochs):
        quiet = costs.trees(asked, *lengths)
        flop = costs.reference_flop(model, setting, quiet, adapted) * pairs
        seconds += card.seconds(flop, costs.dequantised(model, setting, quiet) * setting.passes) * times
    return seconds / epochs


def usual_lengths(model: Shapes, recipe: Recipe) -> tuple[int, int]:
    """Tokens of prefix and answer in a usual pair, as far as the recipe admits so many."""
    return _lengths(model, min(model.image_tokens + PROMPT + ANSWER, _longest(recipe)))


def _reference(recipe: Recipe, views: list[View], epochs: int) -> list[tuple[int, list[View]]]:
    """How often the reference scores which views of a pair: once where the cache may keep them, and every epoch where
    it may not or where the picture is drawn anew."""
    asked = costs.reference(views)
    cached = recipe.reference.cache_gib > 0
    lasting = [view for view in asked if cached and not is_fresh_each_epoch(view.image, recipe)]
    anew = [view for view in asked if view not in lasting]
    return [(times, some) for times, some in ((1, lasting), (epochs, anew)) if some]


def _disk(model: Shapes, recipe: Recipe) -> dict[str, float]:
    adapter = model.adapter_per_rank * recipe.lora.r
    text = model.linear + model.embeddings
    moments = costs.MOMENTS[recipe.train.optim]
    bytes_by_part = {
        "base model, 16-bit": 2 * (text + model.vision),
        "checkpoints": (4 + moments) * adapter * recipe.train.save_total_limit,
        "adapter": 4 * adapter,
        "GGUF files": sum(text * _bits(quant) / 8 for quant in recipe.export.quants) + 2 * model.vision,
    }
    sizes = {part: size / GIB for part, size in bytes_by_part.items()}
    stages = _views(recipe)
    for name in dict.fromkeys(view.image for views in stages for view in views if view.image != CLEAN):
        settings = view_settings(name, recipe)
        if hasattr(settings, "cache_gib"):
            sizes[f"{name} pictures, at most"] = settings.cache_gib
    # Log-probabilities take some megabytes; hidden rows gigabytes, where a loss asks for any token more than once.
    again = [views for section, views in zip(recipe.stages, stages, strict=True) if recipe.asks_again(section)]
    if recipe.reference.cache_gib and any(view.reference == "any" for views in again for view in views):
        sizes["reference scores, at most"] = recipe.reference.cache_gib
    return sizes


def _bits(quant: str) -> float:
    """Bits per weight of a GGUF type: f16 has 16; q8_0 8.5 and q4_k_m 4.85 hold scales beside their 8 and 4 bits."""
    found = re.search(r"\d+", quant)
    bits = int(found.group()) if found else 16
    return bits + (0.7 if bits < 16 else 0)


def _visits(recipe: Recipe) -> int | None:
    """How often a pair is visited in all stages together."""
    steps = recipe.train.max_steps
    limit = None if steps is None else steps * recipe.train.pairs_per_step
    pairs_of = {data: _pairs(data) for data in recipe.data_sections()}
    visits = 0
    for stage in recipe.stages:
        pairs = pairs_of[stage.data or recipe.data]
        if pairs is None and limit is None:
            return None
        visits += min(limit or sys.maxsize, sys.maxsize if pairs is None else pairs * stage.epochs)
    return visits


def _pairs(data: DataSection) -> int | None:
    path = Path(data.path)
    if data.path == BUILTIN or not path.exists():
        return None
    rows = sum(1 for _ in formats.reader(data.format).read(path))
    return min(rows, data.limit or rows)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _settings(changes: dict[str, Any]) -> str:
    return " and ".join(f"{key}={str(value).lower()}" for key, value in changes.items())
