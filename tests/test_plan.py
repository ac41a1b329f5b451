"""The prediction against numbers that were worked out elsewhere: LLaVA-1.5-7B, r 128, 836 tokens behind one prefix.

By hand, in GiB of 2**30 bytes. One of 32 layers has 4 * 4096**2 + 3 * 4096 * 11008 = 202,375,168 linear weights, all
together 6,476,005,376: at 0.51586914 bytes 3.11 (NF4, double quantisation). Embedding and head, 2 * 32064 * 4096
weights of 2 bytes: 0.49. Tower 303.5 M and projector 21.0 M weights of 2 bytes: 0.565 + 0.039. Adapters have
128 * 32 * (4 * 8192 + 3 * 15104) = 319,815,680 weights of 16 bytes (value, gradient, two moments): 4.77.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minipovid import plan, recipe
from minipovid.errors import MinipovidError
from minipovid.recipe import Recipe

SEVEN = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture(scope="module")
def seven() -> plan.Shapes:
    return plan.shapes(SEVEN)


def made(**sections: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "r",
        "model": {"path": SEVEN},
        "data": {"path": "absent.json"},
        "lora": {"r": 128},
        "stages": [{"loss": {"name": "dpo"}}],
    }
    return recipe.validated(Recipe, tree | sections, "test")


def test_the_weights_are_those_of_the_real_model(seven: plan.Shapes) -> None:
    assert seven.linear == 32 * (4 * 4096**2 + 3 * 4096 * 11008) == 6_476_005_376
    assert seven.embeddings == 2 * 32064 * 4096 + 65 * 4096  # and two norms per layer, one at the end
    assert 128 * seven.adapter_per_rank == 319_815_680 and 16 * seven.adapter_per_rank == 39_976_960
    assert seven.vision == 303_507_456 + 20_979_712
    assert (seven.largest, seven.image_tokens) == (4096 * 11008, 576)


def test_the_parts_are_as_worked_by_hand(seven: plan.Shapes) -> None:
    parts = plan.forecast(seven, made()).vram
    assert parts["language model"] == pytest.approx(3.11, abs=0.005)
    assert parts["embeddings and output head"] == pytest.approx(0.49, abs=0.005)
    assert parts["vision tower and projector"] == pytest.approx(0.565 + 0.039, abs=0.005)
    assert parts["adapters"] + parts["optimiser"] == pytest.approx(4.77, abs=0.01)
    sixteen = plan.forecast(seven, made(lora={"r": 16})).vram
    assert sixteen["adapters"] + sixteen["optimiser"] == pytest.approx(0.6, abs=0.01)
    assert plan.forecast(seven, made(model={"path": SEVEN, "load_in_4bit": False})).vram[
        "language model"
    ] == pytest.approx(12.06, abs=0.01)


@pytest.mark.parametrize(
    ("tokens", "checkpointing", "known", "adapter_inputs"),
    [(836, False, 5.5, 3.5), (1472, False, 9.7, 6.2), (836, True, 0.4, 3.5 / 32), (1472, True, 0.7, 6.2 / 32)],
)
def test_activations_are_as_in_the_cost_model(
    seven: plan.Shapes, tokens: int, checkpointing: bool, known: float, adapter_inputs: float
) -> None:
    """The cost model gives the adapters' inputs in float32; ours are in bfloat16, half of that."""
    gib = plan._activations(seven, made(train={"gradient_checkpointing": checkpointing}), tokens) / plan.GIB
    assert gib == pytest.approx(known + adapter_inputs / 2, rel=0.05, abs=0.03)


def test_tokens_count_a_picture_once_and_every_answer(seven: plan.Shapes) -> None:
    """At length 736 the prefix takes 636 and an answer 100: DPO 836, TRL's two sequences would be 1,472."""
    passes = {}
    for name in ("dpo", "povid", "mdpo"):
        (views,) = plan._views(made(stages=[{"loss": {"name": name}}]))
        passes[name] = plan._passes(seven, made(), views, 736)
    assert passes["dpo"] == passes["povid"] == (836, 200)  # the noised pass keeps nothing
    assert passes["mdpo"] == (836 + 736, 300)


def test_a_second_stage_keeps_a_frozen_adapter(seven: plan.Shapes) -> None:
    one = plan.forecast(seven, made()).vram
    two = plan.forecast(seven, made(stages=[{"loss": {"name": "dpo"}}, {"loss": {"name": "povid"}}])).vram
    assert two["adapters"] == 2 * one["adapters"]
    assert {part for part in one if one[part] != two[part]} == {"adapters"}


def test_disk(seven: plan.Shapes) -> None:
    """7.063 G weights of 2 bytes; two checkpoints of 12 bytes per adapter weight; q8_0 has 8.5 bits per weight."""
    disk = plan.forecast(seven, made(export={"quants": ["q8_0"]})).disk
    assert disk["base model, 16-bit"] == pytest.approx(13.16, abs=0.01)
    assert disk["checkpoints"] == pytest.approx(7.15, abs=0.01)
    assert disk["GGUF files"] == pytest.approx(6.739e9 * 8.5 / 8 / plan.GIB + 0.6, rel=0.03)
    assert "noised pictures, at most" not in disk
    povid = made(stages=[{"loss": {"name": "povid"}}], noise={"cache_gib": 3})
    assert plan.forecast(seven, povid).disk["noised pictures, at most"] == 3


def test_time_is_within_the_error_bar_of_the_cost_model(seven: plan.Shapes) -> None:
    """Shared prefix with checkpointing takes 36.0 TF per pair, plus 10.8 TF for the reference of the same tokens; POVID
    10.6 TF more for its noised pass. At 50 TFLOPS."""
    dpo = plan.forecast(seven, made()).seconds_per_pair["RTX 3090"]
    povid = plan.forecast(seven, made(stages=[{"loss": {"name": "povid"}}])).seconds_per_pair["RTX 3090"]
    assert dpo == pytest.approx((36.0 + 10.8) / 50, rel=0.1)
    assert povid - dpo == pytest.approx(10.6 / 50, rel=0.1)


def test_visits_count_epochs_stages_and_limits(tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": "a", "prompt": "Q?", "chosen": "A", "rejected": "B"} for n in range(10)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stages = [{"loss": {"name": "dpo"}, "epochs": 3}, {"loss": {"name": "povid"}}]
    data = {"path": str(path)}
    assert plan._visits(made(data=data, stages=stages)) == 40
    assert plan._visits(made(data=data | {"limit": 4}, stages=stages)) == 16
    assert plan._visits(made(data=data, stages=stages, train={"max_steps": 6, "per_device_train_batch_size": 2})) == 22
    assert plan._visits(made(stages=stages)) is None
    assert plan._visits(made(stages=stages, train={"max_steps": 5, "gradient_accumulation_steps": 4})) == 40


def test_what_fits_is_said() -> None:
    wanted = made()
    fits = plan.verdict(plan.predict(wanted), wanted, 24)
    assert (fits.fits, fits.changes) == (True, {})
    assert fits.sentence.startswith("It fits: 11.8 of 24 GiB.")


def test_what_does_not_fit_is_told_what_to_change() -> None:
    """The changes are the least harmful ones first, they do what they promise, and none is idle."""
    greedy = made(train={"gradient_checkpointing": False, "per_device_train_batch_size": 2})
    predicted = plan.predict(greedy)
    told = plan.verdict(predicted, greedy, 12)
    assert not told.fits
    assert list(told.changes) == ["train.gradient_checkpointing", "train.per_device_train_batch_size"]
    assert told.sentence == (
        f"It does not fit: {predicted.peak_gib:.1f} of 12 GiB; set train.gradient_checkpointing=true and "
        "train.per_device_train_batch_size=1, then it takes 11.8 GiB."
    )
    changed = greedy
    for key, value in told.changes.items():
        changed = plan._changed(changed, key, value)
    assert plan.predict(changed).peak_gib <= 12


def test_what_never_fits_is_not_promised() -> None:
    wanted = made(lora={"r": 32})
    told = plan.verdict(plan.predict(wanted), wanted, 3)
    assert told.changes["lora.r"] == 8
    assert told.sentence.endswith(f"and a smaller model: {_peak(wanted, told.changes):.1f} GiB is left.")


def _peak(wanted: Recipe, changes: dict[str, Any]) -> float:
    for key, value in changes.items():
        wanted = plan._changed(wanted, key, value)
    return plan.predict(wanted).peak_gib


def test_a_recipe_of_ours_keeps_the_promise_of_its_head() -> None:
    """The GiB in a recipe's opening comment are the ones that are predicted, and they fit the card it names."""
    for name, card in (("llava7b_qlora", 24), ("llava7b_8gb", 8)):
        path = recipe.shipped()[name]
        predicted = plan.predict(recipe.read(path))
        head = path.read_text("utf-8")
        assert f"predicted, not measured: {predicted.peak_gib:.1f} GiB of GPU memory" in head
        assert f" {sum(predicted.disk.values()):.0f} GiB of disk" in head
        assert predicted.peak_gib < card - 0.5


def test_a_local_folder_counts_as_it_stands(tmp_path: Path) -> None:
    """The same shapes from a config.json on disk; published ones leave defaults out, as the table here does."""
    (tmp_path / "config.json").write_text(json.dumps(plan.KNOWN[SEVEN]), encoding="utf-8")
    assert plan.shapes(str(tmp_path)) == plan.shapes(SEVEN)
    thirteen = plan.shapes("llava-hf/llava-1.5-13b-hf")
    assert thirteen.linear == 40 * (4 * 5120**2 + 3 * 5120 * 13824)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "org/unheard-of",
            "The shapes of org/unheard-of are not known on this machine; fetch its config alone with "
            "`hf download org/unheard-of config.json`, or name a folder that holds it.",
        ),
        ("no//id", "'no//id' is neither a folder nor a valid Hub id."),
    ],
)
def test_an_unknown_model_is_asked_for(path: str, sentence: str) -> None:
    with pytest.raises(MinipovidError) as caught:
        plan.shapes(path)
    assert str(caught.value) == sentence


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(MinipovidError, match="There is no 'bert' among the families"):
        plan.shapes(str(tmp_path))


def test_the_table_adds_up(seven: plan.Shapes) -> None:
    forecast = plan.forecast(seven, made())
    lines = forecast.table().split("\n")
    assert lines[0] == "GPU memory at its peak, GiB (predicted)"
    assert lines[8] == f"  together                      {forecast.peak_gib:>7.2f}"
    assert forecast.peak_gib == pytest.approx(sum(float(line.split()[-1]) for line in lines[1:8]), abs=0.05)
    assert forecast.as_dict()["peak_gib"] == round(forecast.peak_gib, 2)
