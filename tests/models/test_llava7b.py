"""The 7B recipes through the same code: LLaVA-1.5-7B's real shapes without weights, and its layout with small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_llava
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from minipovid.cli import main
from minipovid.common.errors import MinipovidError
from minipovid.models import families, load
from minipovid.recipe import read as recipe
from minipovid.recipe import schema
from minipovid.recipe.schema import ModelSection

# As on the Hub (llava-hf/llava-1.5-7b-hf): fields that equal a default are left out.
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    """A folder with LLaVA-1.5-7B's configuration and nothing else."""
    folder = tmp_path / "llava-1.5-7b-hf"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def test_the_real_shapes(seven_b: Path) -> None:
    """7.06 billion parameters, 576 image tokens, 224 adapted layers; rank 128 makes 319.8 million (facts: POVID 4)."""
    config = AutoConfig.from_pretrained(seven_b)
    family = families.of(config.model_type)
    assert (family.image_token_id(config), family.image_tokens(config, (640, 480))) == (32000, 576)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
        settings = recipe.read(recipe.find("llava7b_qlora"))
        peft = load.get_peft_model(model, load._lora_config(family, settings.lora))
    assert sum(value.numel() for key, value in model.named_parameters() if "lora_" not in key) == 7_063_427_072
    adapter = {key: value for key, value in peft.named_parameters() if "lora_" in key}
    assert len(adapter) == 2 * 7 * 32
    assert all("language_model" in key for key in adapter)
    assert sum(value.numel() for value in adapter.values()) == 319_815_680


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the next missing thing are the weights")
def test_without_a_gpu_one_sentence_says_so(seven_b: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        load.load(ModelSection(path=str(seven_b)), schema.LoraSection())
    assert str(error.value) == (
        f"{seven_b} has 7.1 billion parameters and torch finds no CUDA GPU on this machine: run it where there is one "
        f"(`minipovid doctor` tells what torch sees), or try `minipovid demo` on this CPU."
    )


def test_without_the_weights_one_sentence_says_how_to_get_them() -> None:
    with pytest.raises(MinipovidError) as error:
        load.load(recipe.read(recipe.find("llava7b_qlora")).model, schema.LoraSection())
    assert str(error.value).startswith("The weights of llava-hf/llava-1.5-7b-hf are not on this machine")
    assert str(error.value).endswith("fetch them with `hf download llava-hf/llava-1.5-7b-hf`.")


@pytest.mark.parametrize("name", ["llava7b_qlora", "llava7b_8gb"])
def test_the_recipe_trains_a_small_model_in_the_hub_layout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards, the Hub's tensor names, float16: both stages run, and the export finds every tensor."""
    monkeypatch.chdir(tmp_path)
    base = tiny_llava.build(tmp_path / "base", dtype="float16", shards=2, spelling="hub")
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")

    def talk(answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": answer}]

    answers = {"conversations": talk("A red wall."), "rejected_conversations": talk("A red wall and a dog.")}
    (tmp_path / "povid.json").write_text(json.dumps([{"id": "1", "image": "red.png", **answers}]))
    settings = {"model.path": base, "data.path": "povid.json", "data.images": ".", "train.max_steps": 2, "lora.r": 4}
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    trained = CliRunner().invoke(main, ["train", name, *overrides], catch_exceptions=False)
    assert trained.exit_code == 0, trained.output
    run = tmp_path / "runs" / name
    assert len(load_file(run / "adapter" / "adapter_model.safetensors")) == 2 * 7 * 2
    stages = [json.loads(line)["stage"] for line in (run / "log.jsonl").read_text().splitlines()[1:]]
    assert stages == [0, 1]
    exported = CliRunner().invoke(main, ["export", str(run), "--quant", "q8_0"], catch_exceptions=False)
    assert exported.exit_code == 0, exported.output
    assert len(list((run / "gguf").glob("*.gguf"))) == 2
