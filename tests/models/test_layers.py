"""Less work, the same numbers: peft's own forward pass and an untouched last layer are the oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llava
import torch
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
            torch.testing.assert_close(other, type(layer).forward(layer, x), atol=1e-5, rtol=1e-4)
            assert not torch.allclose(other, output, atol=1e-2)
        with model.peft.disable_adapter():
            assert torch.equal(layer(x), layer.base_layer(x))


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
