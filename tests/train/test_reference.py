"""The reference is asked once: what is kept equals what was computed, and what changed is computed again, no more."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.models import chat_template, load
from minipovid.models import model as models
from minipovid.models.encoder import Encoder
from minipovid.pairs.pair import Pair
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import DataSection, LoraSection, ModelSection, Recipe, StageSection
from minipovid.train import losses
from minipovid.train.data import PairDataset, collate
from minipovid.train.loop import train
from minipovid.train.losses import View
from minipovid.train.reference import Reference, digest
from minipovid.train.scoring import score

PAIRS = [
    Pair("1", "a.png", "What is this?", "A red circle.", "A red circle and a dog."),
    Pair("2", "b.png", "And this?", "A table near the star.", "No."),
    Pair("3", "a.png", "Describe this image.", "There is a green star.", "There is a cat and a small dog."),
]
PROPER = {"name": "povid", "variant": "proper"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_llava.build(folder / "model")
    for name, turn in (("a.png", 0), ("b.png", 90)):
        Image.linear_gradient("L").rotate(turn).resize((40, 30)).convert("RGB").save(folder / name)
    rows = [{**{key: getattr(pair, key) for key in ("id", "image", "prompt", "chosen", "rejected")}} for pair in PAIRS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test begins with nothing kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "minipovid" / "reference"


def a_model(world: Path, in_4bit: bool = False) -> models.Model:
    return load.load(ModelSection(path=str(world / "model"), load_in_4bit=in_4bit), LoraSection(r=4))


def a_dataset(world: Path, model: models.Model, pairs: list[Pair], seed: int = 1) -> PairDataset:
    recipe = Recipe(
        name="x",
        seed=seed,
        model=ModelSection(path="x"),
        data=DataSection(path="x"),
        stages=[StageSection(loss={"name": "dpo"})],
    )
    transform = model.family.image_transform(model.folder)
    dataset = PairDataset(list(pairs), world, Encoder.of(model, 128), transform, recipe)
    dataset.kinds = ("clean", "noised", "cropped")
    return dataset


def ask(world: Path, model: models.Model, loss: dict[str, Any], pairs: list[Pair] = PAIRS, seed: int = 1) -> Any:
    """One visit of all pairs; returns (scores, entries computed, pairs that the model was run on)."""
    reference = Reference(model, losses.build(loss).views, cache_gib=1)
    table = reference(collate([a_dataset(world, model, pairs, seed)[0, row] for row in range(len(pairs))]))
    computed, passes = len(reference.computed), reference.passes
    reference.keep()
    reference.cache.close()
    return table, computed, passes


VIEWS = {  # loss -> the views that it asks of the reference
    "dpo": ({"name": "dpo"}, 2),
    "mdpo": ({"name": "mdpo"}, 3),
    "proper": (PROPER, 2),
    "code": ({"name": "povid", "variant": "code"}, 3),
    "paper": ({"name": "povid", "variant": "paper"}, 3),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("in_4bit", [False, True])
def test_kept_scores_equal_computed_ones_bit_for_bit(world: Path, name: str, in_4bit: bool) -> None:
    """And the model is not run for them. For 'any' the hidden rows are kept, so other tokens' scores are equal too."""
    loss, views = VIEWS[name]
    model = a_model(world, in_4bit)
    first, computed, passes = ask(world, model, loss)
    assert (computed, passes) == (3 * views, 3)
    again, computed, passes = ask(world, model, loss)
    assert (computed, passes) == (0, 0)
    for view in losses.build(loss).views:
        if view.reference != "nothing":
            assert torch.equal(first[view.key].logps(), again[view.key].logps())
        if view.reference == "any":
            ids = torch.randint(416, again[view.key].ids.shape)
            assert torch.equal(first[view.key].logps(ids), again[view.key].logps(ids))
            assert torch.equal(first[view.key].argmax(), again[view.key].argmax())


def test_scores_equal_the_adapterless_model_s(world: Path) -> None:
    """Asked of a model whose adapter has moved, while peft's own switch is the oracle."""
    model = a_model(world)
    with torch.no_grad():
        for value in model.adapter().values():
            value.add_(0.1)
    table, *_ = ask(world, model, {"name": "dpo"})
    batch = collate([a_dataset(world, model, PAIRS)[0, row] for row in range(3)])
    with torch.no_grad(), model.peft.disable_adapter():
        oracle = score(model, batch, [View("chosen", "clean"), View("rejected", "clean")])
    for key, scores in oracle.items():
        torch.testing.assert_close(table[key].logps(), scores.logps())


def test_one_letter_is_one_entry(world: Path) -> None:
    model = a_model(world)
    ask(world, model, {"name": "dpo"})
    changed = [PAIRS[0], replace(PAIRS[1], rejected="No!"), PAIRS[2]]
    assert ask(world, model, {"name": "dpo"}, changed)[1:] == (1, 1)
    changed = [replace(PAIRS[0], prompt="What is that?"), *PAIRS[1:]]
    assert ask(world, model, {"name": "dpo"}, changed)[1:] == (2, 1)
    assert ask(world, model, {"name": "dpo"})[1:] == (0, 0)  # the old ones are still there


def test_another_seed_is_another_noise_and_nothing_else(world: Path) -> None:
    model, loss = a_model(world), {"name": "povid", "variant": "paper"}
    ask(world, model, loss)
    assert ask(world, model, loss, seed=2)[1:] == (3, 3)  # the noised view of each pair
    ask(world, model, PROPER)
    assert ask(world, model, PROPER, seed=3)[1:] == (0, 0)  # proper asks the reference for no noise


def test_another_template_is_everything(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model(world)
    ask(world, model, {"name": "dpo"})
    monkeypatch.setattr(chat_template, "VICUNA", replace(chat_template.VICUNA, begin="Look. "))
    assert ask(world, model, {"name": "dpo"})[1:] == (6, 3)


def test_another_quantisation_is_everything(world: Path) -> None:
    ask(world, a_model(world), {"name": "dpo"})
    assert ask(world, a_model(world, in_4bit=True), {"name": "dpo"})[1:] == (6, 3)


def test_a_changed_picture_is_its_pairs(world: Path, tmp_path: Path) -> None:
    model = a_model(world)
    ask(world, model, {"name": "dpo"})
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((world / name).read_bytes())
    assert ask(tmp_path, model, {"name": "dpo"})[1:] == (0, 0)  # moved
    Image.open(tmp_path / "b.png").rotate(10).save(tmp_path / "b.png")
    assert ask(tmp_path, model, {"name": "dpo"})[1:] == (2, 1)


def test_every_weight_counts_but_the_policy_s(world: Path, tmp_path: Path) -> None:
    """One number of one tensor in the file; then the policy moves; then it is frozen as a later stage's reference."""
    model = a_model(world)
    before = digest(model)
    assert digest(a_model(world)) == before
    folder = tiny_llava.build(tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert digest(load.load(ModelSection(path=str(folder), load_in_4bit=False), LoraSection(r=4))) != before
    with torch.no_grad():
        next(iter(model.adapter().values())).add_(1)
    assert digest(model) == before
    model.freeze_reference()
    frozen = digest(model)
    assert frozen != before
    with torch.no_grad():
        next(iter(model.adapter("reference").values())).add_(1)
    assert digest(model) != frozen


def test_a_stage_of_one_epoch_keeps_no_hidden_rows(world: Path) -> None:
    """They are as large as the noised pictures, and nobody would ask for them again; log-probabilities are kept."""
    model = a_model(world)
    batch = collate([a_dataset(world, model, PAIRS)[0, row] for row in range(3)])
    for computed in (3, 0):
        reference = Reference(model, losses.build(PROPER).views, cache_gib=1, keep_hidden=False)
        first, again = reference(batch), reference(batch)
        assert len(reference.computed) == computed
        assert reference.passes == 6  # nothing is on disk before keep(), and the hidden rows never are
        assert torch.equal(first["chosen", "clean"].logps(), again["chosen", "clean"].logps())
        reference.keep()
        reference.cache.close()


def test_a_loss_that_asks_more_than_it_declares_is_told(world: Path) -> None:
    table, *_ = ask(world, a_model(world), {"name": "dpo"})
    scores = table["chosen", "clean"]
    for question in (scores.argmax, scores.logits, lambda: scores.logps(scores.ids)):
        with pytest.raises(RuntimeError, match="declares with reference='own'; declare 'any'"):
            question()


# --- in training ---


def a_recipe(world: Path, path: Path, **reference: Any) -> Recipe:
    tree = {
        "name": "test",
        "model": {"path": str(world / "model")},
        "lora": {"r": 4, "alpha": 8},
        "data": {"path": str(world / "pairs.jsonl"), "max_length": 128},
        "stages": [{"loss": {"name": "dpo"}, "epochs": 3}, {"loss": PROPER, "epochs": 2}],
        "train": {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "logging_steps": 1, "save_steps": 2},
        "reference": reference,
    }
    path.write_text(json.dumps(tree))
    return recipes.read(path)


def computed(run: Path) -> list[tuple[int, float]]:
    """(stage, share of the step's pairs that the reference model was run on), step by step."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["stage"], line["reference/computed"]) for line in lines if "step" in line]


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_only_the_first_epoch_runs_the_reference(world: Path, tmp_path: Path) -> None:
    """3 pairs, 2 a step: 5 steps of stage 1 and 3 of stage 2; the second step holds a pair of the next epoch."""
    run = train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)
    assert computed(run) == [(0, 1), (0, 0.5), (0, 0), (0, 0), (0, 0), (1, 1), (1, 0.5), (1, 0)]
    again = train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "again", progress=False)
    assert {share for _, share in computed(again)} == {0}
    assert weights(again) == weights(run)


def test_precomputing_without_room_is_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        train(a_recipe(world, tmp_path / "r.yaml", precompute=True, cache_gib=0), tmp_path / "run")
    assert str(error.value) == (
        "reference.precompute wants room: set reference.cache_gib above 0, or precompute to false."
    )


def test_precomputing_runs_it_before_the_first_step(world: Path, tmp_path: Path) -> None:
    run = train(a_recipe(world, tmp_path / "r.yaml", precompute=True), tmp_path / "run", progress=False)
    assert {share for _, share in computed(run)} == {0}


def test_nothing_kept_is_everything_computed(world: Path, tmp_path: Path, own_cache: Path) -> None:
    run = train(a_recipe(world, tmp_path / "r.yaml", cache_gib=0), tmp_path / "run", progress=False)
    assert {share for _, share in computed(run)} == {1}
    assert not own_cache.exists()
    kept = train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "kept", progress=False)
    for name, value in load_file(run / "adapter" / "adapter_model.safetensors").items():
        theirs = load_file(kept / "adapter" / "adapter_model.safetensors")[name]
        torch.testing.assert_close(value, theirs, atol=1e-5, rtol=1e-3)


def test_a_corrupt_file_is_computed_again_with_a_warning(
    world: Path, tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "run", progress=False)
    files = list(own_cache.glob("*.sqlite"))
    assert len(files) == 2  # a stage's reference each
    for file in files:
        file.write_bytes(b"not a database" * 1000)
        for companion in ("-wal", "-shm"):
            file.with_name(file.name + companion).unlink(missing_ok=True)
    with caplog.at_level(logging.WARNING):
        again = train(a_recipe(world, tmp_path / "r.yaml"), tmp_path / "again", progress=False)
    assert sum(file.name in record.getMessage() for file in files for record in caplog.records) == 2
    assert computed(again) == computed(run)
    assert weights(again) == weights(run)
