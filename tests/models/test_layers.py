"""Less work, the same numbers: peft's own forward pass and an untouched last layer are the oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llava
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from scoring_cases import VIEWS, a_batch, a_model, gradients

from minipovid.models import load
from minipovid.recipe.schema import LoraSection, ModelSection
from minipovid.train.scoring import score


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("shape", [(2, 5), (7,)])
def test_fused_lora_is_peft_s(folder: Path, in_4bit: bool, rslora: bool, shape: tuple[int, ...]) -> None:
    """Output, and gradients of input, A and B, for the policy, the frozen reference, and switched off."""
    section = ModelSection(path=str(folder), load_in_4bit=in_4bit)
    model = load.load(section, LoraSection(r=4, rslora=rslora))
    draw = torch.Generator().manual_seed(0)
    model.freeze_reference()
    for name in ("default", "reference"):
        for value in model.adapter(name).values():
            value.data = 0.3 * torch.randn(value.shape, generator=draw)
    layers = [module for module in model.base.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 14
    for layer in layers[:7]:
        x = torch.randn(*shape, layer.in_features, generator=draw).requires_grad_()
        slope = torch.randn(*shape, layer.out_features, generator=draw)
        results = []
        for forward in (layer.forward, lambda x, layer=layer: type(layer).forward(layer, x)):
            model.peft.zero_grad()
            x.grad = None
            output = forward(x)
            (output * slope).sum().backward()
            results.append([output, x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
        with model.as_reference(), torch.no_grad():
            other = layer(x)
        assert not torch.allclose(other, output, atol=1e-2)
        layer.set_adapter("reference")
        torch.testing.assert_close(other, type(layer).forward(layer, x), atol=1e-5, rtol=1e-4)
        layer.set_adapter("default")
        with model.peft.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("in_4bit", [False, True])
def test_fused_lora_in_16_bits_is_peft_s(folder: Path, in_4bit: bool) -> None:
    """Under autocast B is scaled as it is rounded: with a power of two the forward pass has peft's bits but for the
    order of a sum, the gradients of A and B are float32, and the frozen product last gives the same."""
    section = ModelSection(path=str(folder), load_in_4bit=in_4bit, dtype="bfloat16")
    model = load.load(section, LoraSection(r=4, alpha=8))
    draw = torch.Generator().manual_seed(0)
    for value in model.adapter().values():
        value.data = 0.3 * torch.randn(value.shape, generator=draw)
    layer = next(module for module in model.base.modules() if isinstance(module, LoraLayer))
    x = torch.randn(5, layer.in_features, generator=draw).bfloat16().requires_grad_()
    slope = torch.randn(5, layer.out_features, generator=draw).bfloat16()
    results = []
    for forward, frozen_last in (
        (layer.forward, False),
        (layer.forward, True),
        (lambda x: type(layer).forward(layer, x), False),
    ):
        model.peft.zero_grad()
        x.grad, layer.frozen_last = None, frozen_last
        with torch.autocast("cpu", torch.bfloat16):
            output = forward(x)
        (output * slope).sum().backward()
        grads = [layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]
        assert {grad.dtype for grad in grads} == {torch.float32}
        results.append([output, x.grad, *grads])
    for ours in results[:2]:
        for one, other in zip(ours, results[2], strict=True):
            torch.testing.assert_close(one.float(), other.float(), atol=0.06, rtol=0.02)


def test_a_recomputed_layer_ends_before_its_last_frozen_product(tmp_path: Path) -> None:
    """Of three layers two are checkpointed: seven frozen products each, and again six; the last layer's are made once.
    The scores are those of the model that recomputes nothing."""
    folder = tiny_llava.build(tmp_path, layers=3)
    calls, tables = [], []
    for checkpointing in (True, False):
        model = a_model(folder, checkpointing=checkpointing)
        for module in model.base.modules():
            if isinstance(module, LoraLayer):
                module.base_layer.register_forward_hook(lambda *_, way=checkpointing: calls.append(way))
        batch = a_batch(model)
        table = score(model, batch, VIEWS[:2])
        tables.append(torch.stack([table[view.key].logps().sum() for view in VIEWS[:2]]))
        gradients(model, tables[-1].sum())
    assert (calls.count(True), calls.count(False)) == (3 * 7 + 2 * 6, 3 * 7)
    torch.testing.assert_close(*tables)


def test_the_fused_norm_is_the_model_s(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everywhere but on a GPU it is transformers' own. Were it torch's here: the same scores in float32, and in
    bfloat16 no further from those than transformers' own are."""

    def scores(dtype: str, fused: bool) -> torch.Tensor:
        model = load.load(ModelSection(path=str(folder), load_in_4bit=False, dtype=dtype), LoraSection(r=4))
        for module in model.base.modules():
            if hasattr(module, "variance_epsilon"):
                assert torch.equal(module.forward(x := torch.ones(2, 64)), type(module).forward(module, x))
                if fused:
                    module.forward = lambda x, norm=module: F.rms_norm(
                        x, norm.weight.shape, norm.weight, norm.variance_epsilon
                    )
        with torch.no_grad():
            table = score(model, a_batch(model), VIEWS[:2])
        return torch.cat([table[view.key].logps().flatten() for view in VIEWS[:2]])

    exact = scores("float32", False)
    torch.testing.assert_close(scores("float32", True), exact, atol=1e-5, rtol=1e-5)
    theirs, ours = ((scores("bfloat16", fused) - exact).abs().mean() for fused in (False, True))
    assert 1e-4 < ours < 1.5 * theirs


def test_the_last_layer_s_work_is_for_the_columns_that_predict(folder: Path) -> None:
    """How many rows each layer's MLP sees; and with all columns kept, the same scores and gradients."""
    model = a_model(folder)
    batch = a_batch(model)
    seen: list[int] = []
    for layer in model.family.text_model(model.base).layers:
        layer.mlp.gate_proj.register_forward_hook(lambda module, given, out: seen.append(out.flatten(0, -2).shape[0]))
    table = score(model, batch, VIEWS[:2])
    wanted = 5 + 2 + 7 + 1 + 8 + 3 - 3  # a prefix's end predicts the first token of both answers
    assert seen == [3 * 40, wanted]
    ours = gradients(model, sum(table[view.key].logps().sum() for view in VIEWS[:2]))
    for name in model.family.COLUMNWISE:
        module = model.family.text_model(model.base).layers[-1].get_submodule(name)
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
    whole = score(model, batch, VIEWS[:2])
    assert seen[2:] == [3 * 40, 3 * 40]
    for view in VIEWS[:2]:
        torch.testing.assert_close(table[view.key].logps(), whole[view.key].logps(), atol=1e-5, rtol=1e-5)
    theirs = gradients(model, sum(whole[view.key].logps().sum() for view in VIEWS[:2]))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-4)


def test_outside_of_scoring_the_model_is_as_ever(folder: Path) -> None:
    """Generation and other callers of the base get every column."""
    model = a_model(folder)
    seen: list[int] = []
    model.family.text_model(model.base).layers[-1].mlp.register_forward_hook(lambda m, i, o: seen.append(o.shape[1]))
    score(model, a_batch(model), VIEWS)
    model.base(input_ids=torch.arange(10, 22)[None])
    assert seen[-1] == 12
