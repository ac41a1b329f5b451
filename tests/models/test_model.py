"""What was loaded, by type; what trains, by name; and that a step at POVID's learning rate is not rounded away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_llava
import torch
from bitsandbytes.nn import Linear4bit
from safetensors.torch import load_file, save_file
from scoring_cases import VIEWS, a_batch, a_model
from torch import nn

from minipovid.common.errors import MinipovidError
from minipovid.models import families, load
from minipovid.models import model as models
from minipovid.recipe.schema import LoraSection, ModelSection
from minipovid.train import scoring


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("model"), dtype="float16")


def loaded(folder: Path, checkpointing: bool = True) -> models.Model:
    return load.load(ModelSection(path=str(folder)), LoraSection(r=4), checkpointing=checkpointing)


def test_only_the_text_model_is_quantised(folder: Path) -> None:
    model = loaded(folder)
    linear = {name: module for name, module in model.base.named_modules() if isinstance(module, nn.Linear)}
    four_bit = {name for name, module in linear.items() if isinstance(module, Linear4bit)}
    assert four_bit == {name for name in linear if "language_model" in name and "lora_" not in name}
    assert len(four_bit) == 2 * 7
    assert sum("vision_tower" in name for name in linear) == 4 * 6
    assert sum("multi_modal_projector" in name for name in linear) == 2
    assert type(model.head) is nn.Linear
    state = linear["model.language_model.layers.0.mlp.up_proj.base_layer"].weight.quant_state
    assert (state.quant_type, state.nested) == ("nf4", True)


@pytest.mark.parametrize("wrong", ["model.multi_modal_projector", "model.language_model.layers.1.mlp"])
def test_a_wrongly_quantised_layer_is_noticed(folder: Path, wrong: str) -> None:
    base = loaded(folder).peft.unload()
    load.check_quantised(base, families.of("llava"), True)
    parent = base.get_submodule(wrong)
    name, module = next((n, m) for n, m in parent.named_children() if isinstance(m, nn.Linear))
    other = nn.Linear if isinstance(module, Linear4bit) else Linear4bit
    setattr(parent, name, other(module.in_features, module.out_features))
    with pytest.raises(RuntimeError, match=f"{wrong}.{name} is"):
        load.check_quantised(base, families.of("llava"), True)


def test_widths_that_bitsandbytes_misreads_on_a_cpu_are_refused(tmp_path: Path) -> None:
    odd = tiny_llava.build(tmp_path, ffn=160)
    with pytest.raises(MinipovidError, match="down_proj has rows of 160, and on a CPU bitsandbytes"):
        loaded(odd)


@pytest.mark.parametrize(("given", "wanted"), [(True, 3), (False, 0), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_so_many_layers_are_recomputed(tmp_path: Path, given: bool | int, wanted: int) -> None:
    """Never the last one: its activations are needed at once, so keeping them costs no memory at the peak."""
    section = ModelSection(path=str(tiny_llava.build(tmp_path, layers=4)), load_in_4bit=False)
    model = load.load(section, LoraSection(r=4), checkpointing=given)
    layers = model.family.text_model(model.base).layers
    assert [layer.gradient_checkpointing and layer.training for layer in layers] == [True] * wanted + [False] * (
        4 - wanted
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_exactly_the_adapter_trains(folder: Path, checkpointing: bool) -> None:
    model = loaded(folder, checkpointing)
    trains = {name for name, value in model.peft.named_parameters() if value.requires_grad}
    assert trains == set(model.adapter())
    assert len(trains) == 2 * 7 * 2  # two layers, seven linears, A and B
    assert {value.dtype for value in model.adapter().values()} == {torch.float32}
    assert all("language_model" in name for name in trains)
    model.freeze_reference()
    with model.as_reference():
        pass
    assert {name for name, value in model.peft.named_parameters() if value.requires_grad} == trains


@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_gradient_reaches_the_tower_or_the_embeddings(folder: Path, checkpointing: bool) -> None:
    """transformers' checkpointing and peft's k-bit preparation make the tower's input require gradients."""
    model = loaded(folder, checkpointing)
    touched = []
    for module in (*model.family.vision_modules(model.base), model.base.get_input_embeddings()):
        module.register_forward_hook(lambda m, _, out: touched.append(requires_grad(out)))
    scores = scoring.score(model, a_batch(model), VIEWS)
    scores["chosen", "clean"].logps().sum().backward()
    assert len(touched) >= 4
    assert not any(touched)


def requires_grad(out: object) -> bool:
    tensors = [out] if isinstance(out, torch.Tensor) else [v for v in out.values() if isinstance(v, torch.Tensor)]  # type: ignore[attr-defined]
    return any(tensor.requires_grad for tensor in tensors)


def test_a_step_at_1e_7_changes_the_adapter(folder: Path) -> None:
    """More than 99 % of the weights that have a gradient; in bfloat16 nearly all would stay where they are."""
    model = a_model(folder, in_4bit=True)
    before = {key: value.detach().clone() for key, value in model.adapter().items()}
    optimizer = torch.optim.AdamW(model.adapter().values(), lr=1e-7, weight_decay=0.0)
    scoring.score(model, a_batch(model), VIEWS)["chosen", "clean"].logps().sum().backward()
    optimizer.step()
    moved = torch.cat([(value != before[key])[value.grad != 0] for key, value in model.adapter().items()])
    assert moved.numel() > 5000
    assert moved.float().mean() > 0.99


def test_reference_is_the_base_and_then_the_frozen_copy(folder: Path) -> None:
    """Bit for bit: the base, whatever the steps; after `freeze_reference` the adapter of that moment."""
    model = loaded(folder)
    batch = a_batch(model)

    def logps(reference: bool) -> torch.Tensor:
        with torch.no_grad():
            if not reference:
                return scoring.score(model, batch, VIEWS)["chosen", "clean"].logps()
            with model.as_reference():
                return scoring.score(model, batch, VIEWS)["chosen", "clean"].logps()

    def nudge() -> None:
        with torch.no_grad():
            for value in model.adapter().values():
                value += 0.05

    base = logps(reference=False)
    assert torch.equal(base, logps(reference=True))
    nudge()
    moved = logps(reference=False)
    assert not torch.allclose(moved, base)
    assert torch.equal(logps(reference=True), base)
    model.freeze_reference()
    nudge()
    assert torch.equal(logps(reference=True), moved)
    assert not torch.allclose(logps(reference=False), moved)


def test_the_reference_is_one_switch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft's own walks through all modules and toggles every weight's `requires_grad`, in and out."""
    model = a_model(folder)

    def walk(*_: object, **__: object) -> None:
        raise AssertionError("peft was asked")

    for frozen in (False, True):
        if frozen:
            model.freeze_reference()
        with monkeypatch.context() as patch:
            for owner, name in ((model.peft, "disable_adapter"), (model.peft.base_model, "set_adapter")):
                patch.setattr(owner, name, walk)
            with model.as_reference():
                assert model.active.name == ("reference" if frozen else None)
            assert model.active.name == "default"


def test_the_frozen_adapter_in_16_bits_is_the_one_in_32(folder: Path) -> None:
    """Each use rounds it to the base's type anyway: the same scores, in half of the memory."""
    model = load.load(ModelSection(path=str(folder), dtype="bfloat16"), LoraSection(r=4))
    draw, batch = torch.Generator().manual_seed(3), a_batch(model)
    with torch.no_grad():
        for value in model.adapter().values():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    model.freeze_reference()
    assert {value.dtype for value in model.adapter("reference").values()} == {torch.bfloat16}
    found = []
    for wide in (False, True):
        if wide:
            for key, value in model.adapter("reference").items():
                value.data = model.adapter()[key.replace(".reference.", ".default.")].detach().clone()
        with torch.no_grad(), model.as_reference():
            found.append(scoring.score(model, batch, VIEWS)["chosen", "clean"].logps())
    assert torch.equal(*found)


def test_adapter_round_trip(folder: Path, tmp_path: Path) -> None:
    model = a_model(folder)
    model.save_adapter(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    other = loaded(folder)
    other.load_adapter(tmp_path)
    for key, value in model.adapter().items():
        assert torch.equal(value, other.adapter()[key])
    with pytest.raises(MinipovidError, match="does not fit this model"):
        load.load(ModelSection(path=str(folder)), LoraSection(r=8)).load_adapter(tmp_path)


def test_an_adapter_of_another_scale_or_spelling(folder: Path, tmp_path: Path) -> None:
    """Names as transformers 4 and others have them are understood; another alpha would be another model."""
    model = a_model(folder)
    model.save_adapter(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    spelled = {name.replace("model.language_model", "language_model.model"): value for name, value in saved.items()}
    save_file(spelled, tmp_path / "adapter_model.safetensors")
    other = a_model(folder)
    other.load_adapter(tmp_path)
    assert all(torch.equal(value, other.adapter()[key]) for key, value in model.adapter().items())
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 3 * settings["lora_alpha"]}))
    with pytest.raises(MinipovidError, match=r"multiplies \S+ by \S+, the recipe by \S+; use the lora.alpha"):
        other.load_adapter(tmp_path)


def test_same_seed_same_adapter(folder: Path) -> None:
    first, second = (loaded(folder).adapter() for _ in range(2))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
