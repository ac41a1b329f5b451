"""The kinds of stage: what is on the shelf, a new one as one new file, and a stage with pairs of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_cases import STAGES, a_recipe, lines

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import ANSWERS
from minipovid.recipe import run_folder
from minipovid.train import stages
from minipovid.train.loop import train
from minipovid.train.run import Run
from minipovid.train.stages import StageContext

BODY = '''
"""Supervised: the chosen answer becomes likelier. No loss of the shelf, no reference, no rewards."""
from torch import nn
from minipovid.train.losses import View
from minipovid.train.scoring import count_tokens, score

VIEWS = [View("chosen", "clean", reference="nothing")]

def open(setting):
    return Objective(setting.model)

class Objective(nn.Module):
    images, together, precomputes = ("clean",), [("chosen",)], False
    def __init__(self, model):
        super().__init__()
        self.weights, self.model = model.peft, model
    def forward(self, batch):
        scores = score(self.model, batch, VIEWS)["chosen", "clean"]
        loss = -scores.logps().sum(-1) / scores.mask.sum(-1)
        return loss.sum(), {"loss": loss.detach().sum()}
    def tokens(self, batch):
        return count_tokens(batch, VIEWS)
    def precompute(self, batch): ...
    def after_step(self): ...
    def close(self): ...
'''


@pytest.mark.parametrize("name", shelf.names("train.stages"))
def test_every_kind_keeps_the_contract(name: str, world: Path, tmp_path: Path) -> None:
    """It opens, says what it looks at, and its call gives a finite sum that reaches the adapter, with a figure `loss`;
    closed, it is done."""
    recipe = a_recipe(world, tmp_path / "r.yaml", stages=[{**STAGES[0], "kind": name}])
    run = Run.open(recipe, tmp_path / "run")
    assert run is not None
    objective = stages.open(StageContext(run.model, run.recipe, 0, begins=True))
    assert isinstance(objective, nn.Module) and "clean" in objective.images
    assert all(set(answers) <= set(ANSWERS) for answers in objective.together)
    run.datasets[0].kinds = tuple(objective.images)
    batch = run_batch(run)
    loss, figures = objective(batch)
    loss.backward()
    assert torch.isfinite(loss) and figures["loss"].item() == pytest.approx(loss.item())
    assert all(value.ndim == 0 and not value.requires_grad for value in figures.values())
    assert any(weight.grad is not None and weight.grad.any() for weight in run.model.adapter().values())
    assert objective.tokens(batch) > 0
    objective.after_step()
    objective.close()


def run_batch(run: Run) -> Any:
    from minipovid.train.data import collate

    return collate([run.datasets[0][0, row] for row in range(3)])


def test_the_shelf_holds_kinds() -> None:
    assert "preference" in shelf.names("train.stages")


def test_a_new_kind_is_one_new_file(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two stages of preference; it logs what is its own; loop, optimiser and resuming are shared."""
    (tmp_path / "brandnew.py").write_text(BODY)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    three = [STAGES[0], {"kind": "brandnew", "loss": {"name": "dpo"}, "epochs": 2}, STAGES[1]]
    recipe = a_recipe(world, tmp_path / "r.yaml", stages=three, train__logging_steps=6)
    logged = [line for line in lines(train(recipe, tmp_path / "run", progress=False)) if "step" in line]
    assert [line["stage"] for line in logged] == [0, 1, 1, 2, 2]
    assert "rewards/margins" not in logged[1] and "rewards/margins" in logged[3]
    assert logged[2]["loss"] < logged[1]["loss"]


def test_an_unknown_kind_is_refused_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    recipe = a_recipe(world, tmp_path / "r.yaml", stages=[{**STAGES[0], "kind": "preferences"}])
    with pytest.raises(MinipovidError, match="no 'preferences' among the stages. Did you mean 'preference'"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_stage_may_have_pairs_of_its_own(world: Path, tmp_path: Path) -> None:
    """Checked before the first step, written beside the run's, all of them trained on; a bad row is logged with its
    stage, and a changed file is refused on resuming."""
    rows = [json.loads(line) for line in (world / "pairs.jsonl").read_text().splitlines()]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in [*rows[:4], {**rows[5], "chosen": ""}]))
    data = {"path": str(own), "images": str(world), "max_length": 128, "on_bad_row": "skip"}
    two = [STAGES[0], {**STAGES[1], "data": data}]
    run = train(a_recipe(world, tmp_path / "r.yaml", stages=two), tmp_path / "run", progress=False)
    kept = (run / run_folder.STAGE_PAIRS.format(1)).read_text().splitlines()
    assert [json.loads(line)["id"] for line in kept] == [row["id"] for row in rows[:4]]
    events = [line for line in lines(run) if line.get("event") == "data"]
    assert [(line.get("stage"), line["pairs"], line["bad_rows"]) for line in events] == [(None, 12, 0), (1, 4, 1)]
    steps = [line for line in lines(run) if "step" in line]
    assert steps[-1]["step"] == 6 + 4  # 12 pairs once by two, then 4 pairs twice by two


def test_a_stage_with_missing_pairs_is_refused_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "none.jsonl"), "images": str(world)}
    recipe = a_recipe(world, tmp_path / "r.yaml", stages=[STAGES[0], {**STAGES[1], "data": data}])
    with pytest.raises(MinipovidError, match=r"There is no data file .*none\.jsonl"):
        train(recipe, tmp_path / "run", progress=False)
