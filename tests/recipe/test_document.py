"""docs/recipes.md is what its generator writes, and explains every key; its examples are recipes."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from minipovid.common import shelf
from minipovid.recipe import schema, strict
from minipovid.recipe.read import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generator", ROOT / "docs" / "recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line[:3] == "| `"]
    assert len(cells) >= 50 and {len(row) for row in cells} == {4}
    return cells


def test_the_page_is_what_the_generator_writes(generator: ModuleType) -> None:
    assert generator.page() == PAGE, "run `python docs/recipes.py`"


def test_every_key_is_there_and_has_a_meaning() -> None:
    names = [row[0].strip("`") for row in rows()]
    for dotted in strict._dotted_keys(schema.Recipe):
        assert dotted.rpartition(".")[2] in names, dotted
    for name in shelf.names("train.losses"):
        own = PAGE.partition(f"\n### loss: {name}\n")[2].partition("\n#")[0]
        for field in dataclasses.fields(shelf.load("train.losses", name).Loss):
            assert f"\n| `{field.name}` |" in own, (name, field.name)
    assert [row for row in rows() if not row[3]] == []


def test_a_field_is_read_as_it_is(generator: ModuleType) -> None:
    """A few rows, written by hand."""
    for row in (
        "| `load_in_4bit` | `true` or `false` | `true` | NF4 with double quantisation, language model only |",
        "| `imatrix` | whole number (at least 0) | `0` | pairs whose chosen answers weigh the columns when llama.cpp "
        "quantises; 0: none |",
        "| `learning_rate` | number (above 0) | `1e-6` | at its highest |",
        "| `mmproj` | `f16` or `q8_0` | `f16` | the vision side's file |",
        "| `data` | [group of keys](#data) | required | The preference pairs. |",
    ):
        assert f"\n{row}\n" in PAGE
    assert generator.comments(schema.TrainSection)["optim"].startswith("The states of paged and 8-bit ones")


def test_its_examples_are_recipes(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    for text in examples:
        (tmp_path / "example.yaml").write_text(text)
        assert read(tmp_path / "example.yaml").name.startswith("my-")
