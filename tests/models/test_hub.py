"""A model's folder: damaged small files and other people's layouts are sentences with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_llava

from minipovid.common.errors import MinipovidError
from minipovid.models import shapes
from minipovid.models.hub import configuration, resolve_model
from minipovid.recipe import run_folder

SMALL = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
         "tokenizer_config.json")  # fmt: skip
DAMAGED = {
    "{not json": "cannot be read as JSON: .*; download this file of the model again",
    "[1]": "does not hold a JSON object; download this file",
    '{"x": ' + "[" * 50_000 + "]" * 50_000 + "}": "is nested more than 100 deep; download this file",
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("content", DAMAGED, ids=["no JSON", "a list", "deep"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    folder = tiny_llava.build(tmp_path)
    (folder / name).write_text(content)
    asks: list[Callable[[], object]] = [lambda: resolve_model(str(folder), weights=False)]
    if name == "config.json":
        asks += [lambda: shapes.shapes(str(folder)), lambda: configuration(folder)]
    for ask in asks:
        with pytest.raises(MinipovidError, match=f"{name} {DAMAGED[content]}"):
            ask()


@pytest.mark.parametrize("changes", [{"text_config": "x"}, {"vision_config": []}, {"model_type": "nothing"}])
def test_a_configuration_that_means_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = tiny_llava.build(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(MinipovidError, match="config.json of .* describes no model that transformers knows"):
        configuration(folder)


def haotian(folder: Path) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}))
    return folder


def pickled(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "pytorch_model.bin").write_bytes(b"")
    return folder


def gguf_folder(folder: Path) -> Path:
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    return folder


def adapter(folder: Path) -> Path:
    (folder / run_folder.ADAPTER_SETTINGS).write_text('{"base_model_name_or_path": "llava-hf/llava-1.5-7b-hf"}')
    return folder


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (haotian, "is in the layout of the LLaVA repository .*; take llava-hf/llava-1.5-13b-hf"),
        (pickled, "weights as pytorch_model.bin; .* never are here. Take the same model in safetensors, or convert"),
        (gguf_folder, "model-Q4_K_M.gguf is a GGUF file, .*; name the 16-bit model that it was made from"),
        (lambda folder: gguf_folder(folder) / "model-Q4_K_M.gguf", "is a GGUF file"),
        (adapter, "an adapter and no model; name the model that it was trained on .llava-hf/llava-1.5-7b-hf"),
    ],
    ids=["haotian-liu", "pickled", "gguf", "gguf file", "adapter"],
)
def test_other_layouts(tmp_path: Path, make: Callable[[Path], Path], why: str) -> None:
    (tmp_path / "llava-v1.5-13b").mkdir()
    with pytest.raises(MinipovidError, match=why):
        resolve_model(str(make(tmp_path / "llava-v1.5-13b")))


def test_a_pickled_adapter_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / run_folder.ADAPTER).mkdir()
    (tmp_path / run_folder.ADAPTER / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(MinipovidError, match="adapter_model.bin is pickled; .* Save the adapter as adapter_model.safe"):
        run_folder.adapter(tmp_path)
