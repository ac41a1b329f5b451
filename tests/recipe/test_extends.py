"""`extends`: a recipe that differs by a few keys from another, which is found, merged, and named where it is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.recipe import read as recipe
from minipovid.recipe.read import read

BASE = """
name: base
model: {path: tinyworld}
lora: {r: 8, alpha: 4}
data: {path: tinyworld, limit: 5}
stages:
  - loss: {name: dpo, beta: 0.1}
  - loss: {name: povid}
export: {quants: [f16, q8_0]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def written(folder: Path, text: str, name: str = "r.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(MinipovidError) as caught:
        read(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "")


def test_mappings_are_merged_and_all_else_replaced(folder: Path) -> None:
    text = "name: r\nextends: base.yaml\nlora: {r: 16}\ndata: {limit: null}\nexport: {quants: [q4_k_m]}\n"
    path = written(folder, text + "stages: [{loss: {name: mdpo}}]")
    whole = {**yaml.safe_load(BASE), "name": "r", "lora": {"r": 16, "alpha": 4}, "data": {"path": "tinyworld"}}
    whole |= {"export": {"quants": ["q4_k_m"]}, "stages": [{"loss": {"name": "mdpo"}}]}
    assert read(path) == read(written(folder, yaml.safe_dump(whole), "whole.yaml"))


def test_a_chain_and_what_is_set_on_the_command_line(folder: Path) -> None:
    """Each is found from the folder of the one that names it, wherever the command runs; a shipped one by its name."""
    written(folder, "name: middle\nextends: ../base.yaml\nlora: {alpha: 2}\nseed: 7", "sub/middle.yaml")
    path = written(folder, "name: r\nextends: sub/middle.yaml\nlora: {r: 1}")
    resolved = read(path, ("loss.beta=0.3", "lora.alpha=9", "stages.1.epochs=2"))
    assert (resolved.name, resolved.seed, resolved.lora.r, resolved.lora.alpha) == ("r", 7, 1, 9)
    assert [stage.loss["beta"] for stage in resolved.stages] == [0.3, 0.3] and resolved.stages[1].epochs == 2
    assert [file.name for file, _ in recipe.chain(path)] == ["r.yaml", "middle.yaml", "base.yaml"]
    shipped = read(written(folder, "name: mine\nextends: tinyworld\nseed: 1"))
    assert shipped == read(recipe.find("tinyworld"), ("name=mine", "seed=1"))


def test_the_run_folders_recipe_stands_by_itself(folder: Path) -> None:
    resolved = read(written(folder, "name: r\nextends: base.yaml"))
    recipe.write(resolved, folder / "resolved.yaml")
    assert "extends" not in (folder / "resolved.yaml").read_text()
    assert read(folder / "resolved.yaml") == resolved


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # In whose file it stands: the recipe's, or that which it extends.
        ("name: r\nextends: base.yaml\nlora: {r: 0}", "r.yaml: lora.r is 0, but it must be at least 1."),
        ("name: r\nextends: wrong.yaml", "wrong.yaml: lora.r is 'big', but it must be a whole number."),
        ("name: r\nextends: wrong.yaml\nlora: {r: 2}", ""),
        ("name: r\nextends: wrong.yaml\nlora: {rank: 2, r: 2}", "r.yaml: lora.rank is not a key of a recipe; here "),
        ("name: r\nextends: unnamed.yaml", "unnamed.yaml: stages.0.loss.name is missing; it names a file in "),
        ("extends: base.yaml", "r.yaml: name is missing."),
        ("name: r\nextends: torn.yaml", "torn.yaml is not valid YAML: "),
        ("name: r\nextends: list.yaml", "list.yaml does not hold a recipe: it should begin with `name:`."),
        # What it extends.
        ("name: r\nextends: 5", "r.yaml: extends is 5, but it must be text."),
        ("name: r\nextends: no.yaml", "r.yaml: extends is 'no.yaml'. There is no recipe no.yaml."),
        (
            "name: r\nextends: tinyword",
            "r.yaml: extends is 'tinyword'. There is no recipe 'tinyword', neither a file nor one that ships with "
            "minipovid. Did you mean tinyworld? Shipped: ",
        ),
        (
            "name: r\nextends: r.yaml",
            "Recipes extend each other in a circle: r.yaml, which extends r.yaml; let one stand by itself.",
        ),
        (
            "name: r\nextends: round.yaml",
            "Recipes extend each other in a circle: r.yaml, which extends round.yaml, which extends r.yaml; ",
        ),
        (
            "name: r\nextend: base.yaml",
            "r.yaml: model is missing.\nr.yaml: data is missing.\nr.yaml: stages is missing.",
        ),
    ],
)
def test_a_mistake_is_told_with_the_file_where_it_stands(folder: Path, text: str, sentence: str) -> None:
    written(folder, BASE.replace("r: 8", "r: big"), "wrong.yaml")
    written(folder, "name: unnamed\nextends: base.yaml\nstages: [{loss: {beta: 1}}]", "unnamed.yaml")
    written(folder, "a: [", "torn.yaml")
    written(folder, "- a", "list.yaml")
    written(folder, "extends: r.yaml", "round.yaml")
    path = written(folder, text)
    if not sentence:
        assert read(path).lora.r == 2
    else:
        assert complaint(path).startswith(sentence)


def test_what_is_set_is_no_files_mistake(folder: Path) -> None:
    path = written(folder, "name: r\nextends: base.yaml")
    assert complaint(path, "lora.alpha=much") == "r.yaml: lora.alpha is 'much', but it must be a number."
    assert complaint(path, "extends=tinyworld") == (
        "--set extends: what a recipe extends stands in its file; write one with `extends:`."
    )


# --- those that ship ---


def test_the_8_gb_recipe_is_the_7b_recipe_but_for_these_keys() -> None:
    changed = ("name=llava7b_8gb", "lora.r=16", "lora.alpha=32", "data.max_length=896", "noise.cache_gib=4")
    assert read(recipe.find("llava7b_8gb")) == read(
        recipe.find("llava7b_qlora"), (*changed, "train.learning_rate=1e-6")
    )


def test_what_a_shipped_recipe_extends_ships_too() -> None:
    """So that a copy of it works from anywhere."""
    shipped = recipe.shipped()
    for path in shipped.values():
        named = yaml.safe_load(path.read_text("utf-8")).get("extends", "tinyworld")
        assert named in shipped


def test_a_shipped_recipe_is_called_by_method_family_and_size() -> None:
    families = "|".join(shelf.names("models.families"))
    for name in set(recipe.shipped()) - {"llava7b_qlora", "llava7b_8gb", "tinyworld"}:
        assert re.fullmatch(rf"[a-z0-9_]+-(?:{families})-[a-z0-9.]+", name), f"{name} is not <method>-<family>-<size>"
