"""The exported files answer as the trained model does: greedy captions of 200 held-out pictures, on a real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from minipovid import evaluate
from minipovid.export import export
from minipovid.images import load as images
from minipovid.inference.llama_cpp import Runtime
from minipovid.models import chat_template, families, load
from minipovid.models.encoder import Encoder
from minipovid.models.hub import resolve_model
from minipovid.recipe import read as recipe
from minipovid.train.loop import train

# 8-bit weights and activations flip close decisions of a model this narrow (128 wide; a caption is 30 greedy choices):
# F16 agrees in 99 %, Q8_0 in 85 to 90 % of whole captions.
NEEDED = {"f16": 0.98, "q8_0": 0.80}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, built_in_pairs: tuple[Path, Path]) -> Path:
    """The tiny world's recipe, forty steps of each stage, exported."""
    settings = recipe.read(recipe.find("tinyworld"), ("train.max_steps=40",))
    folder = train(settings, tmp_path_factory.mktemp("runs") / "tiny", progress=False)
    export(folder, list(NEEDED))
    return folder


def merged_model(run: Path) -> nn.Module:
    """The 16-bit model with every text layer replaced by (dequantised 4-bit weight + adapter), all in float32.

    Nothing of the exporter is used: bitsandbytes dequantises, peft says what the adapter adds.
    """
    settings = recipe.read(run / "recipe.yaml")
    trained = load.load(settings.model, settings.lora)
    trained.load_adapter(run / "adapter")
    plain = AutoModelForImageTextToText.from_pretrained(trained.folder, dtype=torch.float32)
    replaced = 0
    with torch.no_grad():
        for name, layer in trained.base.named_modules():
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                assert isinstance(base, Linear4bit)
                weight = dequantize_4bit(base.weight.data, base.weight.quant_state).float()
                plain.get_submodule(name).weight.copy_(weight + layer.get_delta_weight("default"))
                replaced += 1
    assert replaced == 4 * 7
    return plain.eval()


@torch.inference_mode()
def transformers_captions(run: Path, selected: evaluate.Selected) -> list[str]:
    model = merged_model(run)
    folder = resolve_model("tinyworld")
    tokenizer, family = AutoTokenizer.from_pretrained(folder), families.of("llava")
    image = family.image_token_id(model.config), family.image_tokens(model.config, families.PHOTO)
    transform = family.image_transform(folder)
    encoder = Encoder(chat_template.of(folder, tokenizer), tokenizer, *image, 256)
    questions = selected.exam.questions
    captions = []
    for start in range(0, len(questions), 50):
        part = questions[start : start + 50]
        prompt = encoder.tokenizer(encoder.chat.prompt(part[0].prompt)).input_ids
        at = prompt.index(encoder.image_token_id)
        ids = [*prompt[:at], *[encoder.image_token_id] * encoder.image_tokens, *prompt[at + 1 :]]
        pixels = torch.stack([torch.from_numpy(transform(images.load(selected.root / q.image))) for q in part])
        out = model.generate(
            input_ids=torch.tensor([ids] * len(part)),
            attention_mask=torch.ones(len(part), len(ids), dtype=torch.long),
            pixel_values=pixels,
            max_new_tokens=96,
            do_sample=False,
        )
        captions += [tokenizer.decode(row[len(ids) :], skip_special_tokens=True).strip() for row in out]
    return captions


@pytest.mark.slow
def test_captions_are_those_of_the_merged_transformers_model(run: Path) -> None:
    selected = next(selected for selected in evaluate.find(["tinyworld"]) if selected.label == "chair")
    expected = transformers_captions(run, selected)
    assert len(expected) == 200
    assert len(set(expected)) > 100  # they are about their pictures
    questions = selected.exam.questions
    for quant, needed in NEEDED.items():
        with Runtime.open(run, quant) as runtime:
            found = [runtime.answer(selected.root / question.image, question.prompt, 96) for question in questions]
        equal = sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)
        print(f"{quant}: {equal:.1%} of {len(expected)} captions equal")
        assert equal >= needed
