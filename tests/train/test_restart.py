"""Two starts of one run: the recipe of the first is held against that of the second."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from training_cases import STAGES, a_recipe

from minipovid.common.errors import MinipovidError
from minipovid.recipe import run_folder
from minipovid.train.restart import claim


def test_a_run_from_before_a_key_was_there_goes_on(tmp_path: Path) -> None:
    """Its recipe is read with today's defaults; what says otherwise is another recipe."""
    run, recipe = tmp_path / "run", a_recipe(tmp_path, tmp_path / "r.yaml")
    (run / run_folder.ADAPTER).mkdir(parents=True)
    old = recipe.model_dump()
    for stage in old["stages"]:
        del stage["kind"], stage["data"]
    (run / run_folder.RECIPE).write_text(yaml.safe_dump(old))
    claim(run, recipe)
    assert run_folder.recipe(run) == recipe
    own = {"path": str(tmp_path / "own.jsonl")}
    for changes, key in [({"kind": "other"}, r"stages\.1\.kind"), ({"data": own}, r"stages\.1\.data\.format")]:
        other = a_recipe(tmp_path, tmp_path / "r.yaml", stages=[STAGES[0], {**STAGES[1], **changes}])
        with pytest.raises(MinipovidError, match=rf"holds a run of another recipe \({key} is "):
            claim(run, other)
