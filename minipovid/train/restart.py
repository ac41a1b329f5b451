"""The run folder: whose it is, and what may not change in it between two starts.

    runs/my-run/recipe.yaml    the resolved recipe, nothing left on auto: what this run is
                pairs.jsonl    the pairs as they were checked

What else training writes there stands in recipe/run_folder.py.
"""

from __future__ import annotations

from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, sweep
from minipovid.pairs import formats
from minipovid.pairs.source import locate
from minipovid.recipe import read as recipes
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.train import checkpoint

# Keys that may change between two starts of a run: none of them can change more of a weight than its last digits.
FREE = (
    *("export.", "train.save_", "train.logging_steps", "train.report_to", "train.dataloader_num_workers"),
    *("train.micro_batch", "train.gradient_checkpointing", "reference."),
)
FREE_EVERYWHERE = (".cache_gib",)  # noise.cache_gib, views.<name>.cache_gib
AUTO = ("micro_batch", "gradient_checkpointing", "dataloader_num_workers")


def check_inputs(recipe: Recipe) -> None:
    """What can be known to be missing before gigabytes are loaded. Raises MinipovidError."""
    for data in recipe.data_sections():
        formats.reader(data.format)
        locate(data)
    if recipe.reference.precompute and not recipe.reference.cache_gib:
        raise MinipovidError(
            "reference.precompute wants room: set reference.cache_gib above 0, or precompute to false."
        )
    if recipe.start_from is not None:
        _check_start(recipe, Path(recipe.start_from))


def _check_start(recipe: Recipe, start: Path) -> None:
    """The earlier run's adapter means the same weights only on the same base and at the same scale."""
    if not (start / run_folder.ADAPTER).is_dir():
        raise MinipovidError(f"start_from: {start} holds no finished run (no folder adapter/ in it).")
    earlier = run_folder.recipe(start)
    for section in ("model", "lora"):
        theirs, ours = (getattr(r, section).model_dump() for r in (earlier, recipe))
        for key in theirs:
            if key != "dtype" and theirs[key] != ours[key]:
                raise MinipovidError(
                    f"start_from: {start} was trained with {section}.{key} {theirs[key]!r}, and this "
                    f"recipe has {ours[key]!r}; use the same."
                )


def held(recipe: Recipe, run: Path) -> Recipe:
    """The recipe with what an earlier start of this run has settled in the place of `auto`.

    Another size of micro-batch would change the last digits of a sum, and the run would not end with the same bytes.
    """
    if not _is_begun(run):
        return recipe
    before = run_folder.recipe(run).train
    settled = {key: getattr(before, key) for key in AUTO if getattr(recipe.train, key) == "auto"}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=settled)})


def claim(run: Path, recipe: Recipe) -> None:
    """Write the resolved recipe into the run folder, with its newest checkpoint sound. Raises MinipovidError where
    another recipe has trained there, or no checkpoint is whole."""
    run_folder.check_place(run)
    run.mkdir(parents=True, exist_ok=True)
    sweep(run, f"{run_folder.CHECKPOINT}*")  # others' drafts may be in hand: a finished run is exported and examined
    if _is_begun(run):
        before, now = (recipes.flat(r.model_dump()) for r in (run_folder.recipe(run), recipe))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key) and not (key.startswith(FREE) or key.endswith(FREE_EVERYWHERE)):
                raise MinipovidError(
                    f"{run} holds a run of another recipe ({key} is {before.get(key)!r} there and {now.get(key)!r} "
                    f"here); choose another --out, or remove that folder."
                )
        if not (run / run_folder.ADAPTER).is_dir():
            checkpoint.drop_damaged(run)
    else:
        for kept in run.glob(run_folder.STAGE_PAIRS.format("*")):
            kept.unlink()
        (run / run_folder.PAIRS).unlink(missing_ok=True)
    with finished(run / run_folder.RECIPE) as draft:
        recipes.write(recipe, draft)


def _is_begun(run: Path) -> bool:
    return (run / run_folder.ADAPTER).is_dir() or checkpoint.exists(run)
