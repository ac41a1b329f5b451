"""What the tests of scoring, attention and layers share: a small model, a batch and its views."""

from __future__ import annotations

from pathlib import Path

import torch

from minipovid.models import load
from minipovid.models import model as models
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.recipe.schema import LoraSection, ModelSection
from minipovid.train.batch import Batch, Pictures
from minipovid.train.losses import View

VIEWS = [View("chosen", "clean"), View("rejected", "clean"), View("chosen", "noised", grad=False)]


def a_model(folder: Path, in_4bit: bool = False, checkpointing: bool = False) -> models.Model:
    """A tiny LLaVA whose adapter is no longer zero."""
    section = ModelSection(path=str(folder), load_in_4bit=in_4bit)
    model = load.load(section, LoraSection(r=4), checkpointing=checkpointing)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.adapter().values():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    return model


def a_batch(model: models.Model) -> Batch:
    """Three pairs with prompts and answers of unequal lengths."""
    draw = torch.Generator().manual_seed(5)

    def tokens(lengths: list[int], image: bool = False) -> Tokens:
        rows = [torch.randint(10, 300, (length,), generator=draw).tolist() for length in lengths]
        if image:
            for row in rows:
                row[2 : 2 + model.image_tokens] = [model.image_token_id] * model.image_tokens
        return Tokens.padded(rows)

    prompts = [model.image_tokens + extra for extra in (4, 9, 6)]
    which = torch.tensor([0, 1, 0])  # the first and the last pair show one picture
    pictures = {kind: Pictures(torch.randn(2, 3, 28, 28, generator=draw), which) for kind in ("clean", "noised")}
    answers = {"chosen": tokens([5, 2, 7]), "rejected": tokens([1, 8, 3])}
    return Batch(tokens(prompts, image=True), answers, pictures, {})


def gradients(model: models.Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.peft.zero_grad()
    loss.backward()
    return {key: value.grad.clone() for key, value in model.adapter().items()}
