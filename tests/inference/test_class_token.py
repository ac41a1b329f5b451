"""The remedy for CLIP's class token and its self-test: builds that need it, that do not, that cannot be helped."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llava
from twin import Twin, cosines, picture

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.inference.llama_cpp import Runtime, self_test
from minipovid.inference.llama_cpp.class_token import ClassToken
from minipovid.inference.llama_cpp.ggml import Tensor
from minipovid.inference.llama_cpp.libraries import libraries


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "tiny-7b", dtype="float16")


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return export_base(str(folder), folder.parent / "gguf", ["f16"])


@pytest.fixture(scope="module")
def model(files: list[Path]) -> Iterator[Any]:
    """A llama_model that is 64 numbers wide."""
    llama, _ = libraries()
    model = llama.llama_model_load_from_file(os.fsencode(files[0]), llama.llama_model_default_params())
    yield model
    llama.llama_model_free(model)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict is remembered, neither before nor after the test."""
    monkeypatch.setattr(self_test, "_verdicts", {})


def judged(model: Any) -> str:
    return self_test.verdict(model, use_gpu=False)


def node(first: Tensor, second: Tensor | None) -> Tensor:
    made = Tensor(name=b"concat")
    made.ne[0] = 64
    made.src[0] = ctypes.addressof(first)
    made.src[1] = ctypes.addressof(second) if second is not None else None
    return made


def test_only_the_wrong_order_is_called_misplaced() -> None:
    """Concatenations as the graph may hold them: only (patches, class token) of equal width is misplaced."""
    token, patches, wide = (Tensor(name=n) for n in (b"v.class_embd", b"patches", b"v.class_embd"))
    token.ne[0] = patches.ne[0] = 64
    wide.ne[0] = 32
    assert ClassToken.is_misplaced(node(patches, token))
    for harmless in (node(token, patches), node(patches, None), node(patches, wide), node(patches, patches)):
        assert not ClassToken.is_misplaced(harmless)


def test_the_mirror_of_ggml_tensor_has_its_size() -> None:
    """4 + 4 (hole) + 8 + 32 + 32 + 4 + 64 + 4 + 80 + 8 + 8 + 8 + 64 + 8 + 8 = 336 bytes, a multiple of 16."""
    assert ctypes.sizeof(Tensor) == 336
    from minipovid.inference.llama_cpp.libraries import ggml

    assert ggml().ggml_tensor_overhead() == 336 + 32  # and struct ggml_object before it


def test_this_build_needs_the_remedy_and_the_remedy_works(model: Any, fresh: None) -> None:
    """Should this fail with "not needed", llama.cpp has mended its order: say so in the README and the model cards."""
    assert judged(model) == "moved"


def test_numpy_tower_equals_transformers() -> None:
    """The self-test's own oracle against CLIP and the projector of transformers; it uses tanh's GELU, as llama.cpp."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    weights, canvas = self_test._draw(40)
    config = CLIPVisionConfig(
        **dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2),
        **dict(image_size=8, patch_size=4, hidden_act="quick_gelu", layer_norm_eps=1e-5),
    )
    tower = CLIPVisionModel(config).eval()
    names = {"v.class_embd": "embeddings.class_embedding", "v.patch_embd.weight": "embeddings.patch_embedding.weight"}
    names |= {"v.position_embd.weight": "embeddings.position_embedding.weight"}
    layer = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    layer |= {"attn_out": "self_attn.out_proj", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2"}
    layer |= {"ln1": "layer_norm1", "ln2": "layer_norm2"}
    for kind in ("weight", "bias"):
        names[f"v.pre_ln.{kind}"] = f"pre_layrnorm.{kind}"
        names |= {f"v.blk.0.{ours}.{kind}": f"encoder.layers.0.{theirs}.{kind}" for ours, theirs in layer.items()}
    state = {theirs: torch.from_numpy(weights[ours]) for ours, theirs in names.items()}
    expected = tower.state_dict()
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in expected) else ""
    missing, unexpected = tower.load_state_dict({prefix + name: x for name, x in state.items()}, strict=False)
    assert not unexpected and all("post_layernorm" in name or "position_ids" in name for name in missing)
    pixels = torch.from_numpy((canvas.astype(np.float32) / 255 - 0.5) / 0.25).permute(2, 0, 1)[None]
    with torch.no_grad():
        x = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[1][0, 1:]
        linear = torch.nn.functional.linear
        x = linear(x, torch.from_numpy(weights["mm.0.weight"]), torch.from_numpy(weights["mm.0.bias"]))
        x = torch.nn.functional.gelu(x, approximate="tanh")
        x = linear(x, torch.from_numpy(weights["mm.2.weight"]), torch.from_numpy(weights["mm.2.bias"]))
    np.testing.assert_allclose(self_test.forward(weights, canvas), x.numpy(), rtol=1e-4, atol=1e-5)


def test_a_mended_build_needs_no_remedy(
    model: Any, files: list[Path], fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake of it: there the class token is never misplaced, and features are right as they come."""
    monkeypatch.setattr(ClassToken, "is_misplaced", staticmethod(lambda node: False))
    encode = self_test.Tower.encode

    def right(self: Any, canvas: np.ndarray) -> np.ndarray:
        return self_test.forward(*self_test._draw(64)) if canvas.shape[0] == self_test.SIDE else encode(self, canvas)

    monkeypatch.setattr(self_test.Tower, "encode", right)
    assert judged(model) == "not needed"
    with Runtime(files[0], files[-1], n_ctx=256) as runtime:
        assert runtime.class_token == "not needed"
        assert runtime._vision._remedy is None


def test_a_build_that_the_remedy_does_not_help_is_refused(
    model: Any, files: list[Path], fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake of it: the concatenation has another name, so nothing is found to mend. Nothing is answered."""
    monkeypatch.setattr(ClassToken, "is_misplaced", staticmethod(lambda node: False))
    with pytest.raises(
        MinipovidError, match=r"llama-cpp-python 0\.\S+\) computes picture features that are \d\d% wrong"
    ):
        judged(model)
    with pytest.raises(MinipovidError, match=r"install the tested version: `pip install llama-cpp-python==0\.3\.36`"):
        Runtime(files[0], files[-1], n_ctx=256)


def test_a_remedy_that_does_damage_is_refused(model: Any, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another fake: it rolls the wrong way, as a struct of another layout might have it."""
    write = self_test.ClassToken._roll.__globals__["write"]
    monkeypatch.setitem(
        self_test.ClassToken._roll.__globals__, "write", lambda base, at, rows: write(base, at, np.roll(rows, 1, 0))
    )
    with pytest.raises(MinipovidError, match="with minipovid's remedy"):
        judged(model)


def test_what_goes_wrong_inside_is_raised(model: Any, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """ctypes alone would print an exception of the callback and go on."""

    def broken(node: Tensor) -> bool:
        raise ValueError("seen")

    monkeypatch.setattr(ClassToken, "is_misplaced", staticmethod(broken))
    with pytest.raises(ValueError, match="seen"):
        judged(model)


@pytest.mark.parametrize(("plain", "mended", "expected"), [(0.0, 0.4, "not needed"), (0.4, 0.0, "moved")])
def test_judge(plain: float, mended: float, expected: str) -> None:
    assert self_test.judge(plain, mended) == expected


def test_the_verdict_is_remembered_and_cheap(model: Any, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """15 ms measured; the limit leaves room for a machine that does other things."""
    judged(model)
    self_test._verdicts.clear()
    before = time.process_time()
    judged(model)
    assert time.process_time() - before < 0.1
    monkeypatch.setattr(self_test, "_errors", None)  # would raise if it were asked again
    judged(model)


def test_without_the_remedy_features_are_wrong(
    folder: Path, files: list[Path], fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the remedy exists: the same file in stock llama.cpp."""
    twin = Twin(folder)
    with Runtime(files[0], files[-1], n_ctx=256) as mended:
        assert mended.class_token == "moved"
        assert cosines(mended.embed(picture(0)), twin.features(picture(0))).min() > 0.9999
    monkeypatch.setattr(self_test, "verdict", lambda model, use_gpu: "not needed")
    with Runtime(files[0], files[-1], n_ctx=256) as plain:
        assert cosines(plain.embed(picture(0)), twin.features(picture(0))).mean() < 0.95


def test_a_picture_that_the_remedy_misses_is_not_answered(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime(files[0], files[-1], n_ctx=256) as runtime:
        monkeypatch.setattr(ClassToken, "is_misplaced", staticmethod(lambda node: False))
        with pytest.raises(RuntimeError, match="found nothing to mend"):
            runtime.embed(picture(0))


def test_a_tower_without_class_token_is_left_alone(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SigLIP's features are right as they come, and nothing is tested."""
    monkeypatch.setattr(self_test, "verdict", None)  # would raise if it were asked
    folder = tiny_llava.build(tmp_path / "tiny-7b", tower="siglip", dtype="float16")
    with Runtime(*export_base(str(folder), tmp_path / "gguf", ["f16"]), n_ctx=256) as runtime:
        assert runtime.class_token == "no class token"
        assert cosines(runtime.embed(picture(1)), Twin(folder).features(picture(1))).min() > 0.9999
