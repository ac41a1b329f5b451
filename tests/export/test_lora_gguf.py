"""The LoRA GGUF on the base GGUF answers as the merged GGUF does, in llama.cpp itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
from safetensors.numpy import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base, lora_gguf
from minipovid.export.gguf_pair import GgufPair
from minipovid.export.naming import FILE_NAME, title
from minipovid.models import adapter as lora
from minipovid.models.families import llava

TEXT = "USER: Is there a red circle? ASSISTANT: Yes, there is. A small dog is left of the table."
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"alpha_pattern": {"q_proj": 3, "down_proj": 40}, "rank_pattern": {"layers.1.mlp.up_proj": 2}},
    "rslora-patterns": {"use_rslora": True, "rank_pattern": {"k_proj": 2, "o_proj": 7}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "toy-1.5-7b-hf")


@pytest.fixture(scope="module")
def base_gguf(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_base(str(base), tmp_path_factory.mktemp("base"), ["f32"])[0]


def config_of(folder: Path) -> Any:
    """Read from a folder that holds config.json alone: a LoRA GGUF must need no weights."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def write(base: Path, adapter: Path, path: Path, quant: str = "f16") -> Path:
    factors = lora.read(adapter, llava.canonical)
    places = lora_gguf.places(llava, config_of(base), factors)
    metadata = {"general.architecture": "llama", **title("toy-1.5-7b-hf", 0, "minipovid").metadata("adapter")}
    lora_gguf.write_lora(path, factors, places, {**metadata, "minipovid.family": "llava"}, quant)
    return path


def logps(model: Path, adapter: Path | None = None) -> np.ndarray:
    """Log-probability of each token of TEXT but the first, by llama.cpp alone."""
    from llama_cpp import Llama

    llama = Llama(
        str(model),
        lora_path=str(adapter) if adapter else None,
        n_ctx=256,
        n_threads=1,
        logits_all=True,
        type_k=0,
        type_v=0,
        verbose=False,
    )
    ids = llama.tokenize(TEXT.encode())
    llama.eval(ids)
    logits = llama.scores[: len(ids) - 1].astype(np.float64)
    llama.close()
    logits -= logits.max(1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    return logits[np.arange(len(logits)), ids[1:]]


@pytest.mark.parametrize("settings", ADAPTERS.values(), ids=ADAPTERS)
def test_it_answers_as_the_merged_file(base: Path, base_gguf: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    """Within 1e-4 nats per token at F32, where the adapter moves tokens by several; at F16, with factors and the rows
    that meet them rounded to 11 bits, within 0.15 % of what it moves."""
    adapter = tiny_llava.adapter(base, tmp_path / "adapter", **settings)
    GgufPair(base, adapter, "toy", "float32").write_text(tmp_path / "merged.gguf", "f32", "original")
    before, merged = logps(base_gguf), logps(tmp_path / "merged.gguf")
    moved = np.abs(before - merged).max()
    assert moved > 3
    for quant, tolerance in (("f32", 1e-4), ("f16", 1.5e-3 * moved)):
        with_lora = logps(base_gguf, write(base, adapter, tmp_path / f"{quant}.gguf", quant))
        assert np.abs(with_lora - merged).max() < tolerance, quant


def test_scales_of_one_file_by_hand(base: Path, tmp_path: Path) -> None:
    """alpha 8 of rank 4 is scale 2. q_proj has alpha 3: scale 3/4. llama.cpp will use 8/4 for it, so B is 3/8 of what
    it was; all others stay as they are. up_proj of layer 1 has rank 2: scale 8/2, and llama.cpp computes 8/2 too."""
    patterns = {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"layers.1.mlp.up_proj": 2}}
    adapter = tiny_llava.adapter(base, tmp_path / "adapter", **patterns)
    reader = gguf.GGUFReader(write(base, adapter, tmp_path / "lora.gguf", "f32"))
    stored = load_file(adapter / "adapter_model.safetensors")
    written = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    key = "base_model.model.model.language_model.layers.{}.{}.lora_{}.weight"

    assert reader.get_field("adapter.lora.alpha").contents() == 8.0
    assert np.array_equal(written["blk.1.attn_q.weight.lora_a"], stored[key.format(1, "self_attn.q_proj", "A")])
    q = stored[key.format(1, "self_attn.q_proj", "B")]
    assert np.allclose(written["blk.1.attn_q.weight.lora_b"][:4], q[[0, 8, 1, 9]] * 3 / 8)  # heads of 16 rows, in pairs
    assert np.array_equal(written["blk.1.ffn_up.weight.lora_b"], stored[key.format(1, "mlp.up_proj", "B")])
    assert np.array_equal(written["blk.0.attn_v.weight.lora_b"], stored[key.format(0, "self_attn.v_proj", "B")])
    assert len(written) == 2 * 2 * 7


def test_rslora_writes_the_alpha_that_gives_its_scale(base: Path, tmp_path: Path) -> None:
    """alpha 8, rank 4: scale 8 / sqrt(4) = 4, so llama.cpp needs alpha 16 to come to 16 / 4."""
    adapter = tiny_llava.adapter(base, tmp_path / "adapter", use_rslora=True)
    reader = gguf.GGUFReader(write(base, adapter, tmp_path / "lora.gguf"))
    assert reader.get_field("adapter.lora.alpha").contents() == 8 / math.sqrt(4) * 4


def test_an_alpha_of_zero_adds_nothing(base: Path, base_gguf: Path, tmp_path: Path) -> None:
    """llama.cpp takes alpha 0 for a scale of 1, so it must not be written."""
    patterns = {"alpha_pattern": {"mlp.*": 0, "self_attn.*": 0}}
    adapter = tiny_llava.adapter(base, tmp_path / "adapter", **patterns)
    path = write(base, adapter, tmp_path / "lora.gguf")
    assert np.abs(logps(base_gguf, path) - logps(base_gguf)).max() < 1e-6


def test_only_config_and_adapter_are_needed(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((base / "config.json").read_bytes())
    adapter = tiny_llava.adapter(base, tmp_path / "adapter")
    first, second = (write(folder, adapter, tmp_path / f"{folder.name}.gguf") for folder in (base, bare))
    assert first.read_bytes() == second.read_bytes()
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(first).tensors}
    assert kinds == {"F16"}


def test_keys_and_name(base: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write(base, tiny_llava.adapter(base, tmp_path / "adapter"), tmp_path / "lora.gguf"))
    expected = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.file_type": 1,
        "general.finetune": "minipovid",
        "adapter.type": "lora",
        "minipovid.family": "llava",
    }
    assert {key: reader.get_field(key).contents() for key in expected} == expected
    name = title("llava-hf/llava-1.5-7b-hf", 0, "minipovid").lora()
    assert name == "llava-1.5-7B-minipovid-v1.0-F16-LoRA.gguf"
    assert FILE_NAME.fullmatch(name)["type"] == "LoRA"


Q = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"


def edited(base: Path, folder: Path, changes: dict[str, np.ndarray]) -> Path:
    tiny_llava.adapter(base, folder)
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), **changes}, path)
    return folder


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {
                f"base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1.lora_{half}.weight": np.ones(
                    (4, 64) if half == "A" else (128, 4), np.float32
                )
                for half in "AB"
            },
            "changes vision_tower.encoder.layers.0.mlp.fc1.weight, which is no part of the language model",
        ),
        (
            {
                "base_model.model.model.multi_modal_projector.linear_1.lora_A.weight": np.ones((4, 64), np.float32),
                "base_model.model.model.multi_modal_projector.linear_1.lora_B.weight": np.ones((64, 4), np.float32),
            },
            "changes multi_modal_projector.linear_1.weight, which is no part of the language model",
        ),
        (
            {Q.format("B"): np.ones((20, 4), np.float32)},
            "changes 20 rows of .*q_proj.weight, which do not divide into 4 heads",
        ),
        ({Q.format("B"): np.full((64, 4), np.nan, np.float32)}, "q_proj.weight holds infinities or NaN"),
        ({Q.format("B"): np.full((64, 4), 1e9, np.float32)}, "attn_q.weight.lora_b holds numbers beyond float16's"),
    ],
)
def test_what_it_cannot_hold(base: Path, tmp_path: Path, changes: dict[str, np.ndarray], sentence: str) -> None:
    adapter = edited(base, tmp_path / "adapter", changes)
    with pytest.raises(MinipovidError, match=sentence):
        write(base, adapter, tmp_path / "lora.gguf")
