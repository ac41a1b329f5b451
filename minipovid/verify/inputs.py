"""What a run folder gives to verify: its recipe, its files, its held-out pairs, what the files were made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.export.gguf_pair import GgufPair
from minipovid.inference.llama_cpp import find_pair
from minipovid.models.hub import resolve_model
from minipovid.pairs import source
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe

VerifyProgress = Callable[[str, int, int], None]  # (who is being asked, pairs done, pairs in all)


def settings(run: Path) -> Recipe:
    """The run's recipe. Raises MinipovidError where nothing was trained."""
    recipe = run_folder.recipe(run)
    run_folder.adapter(run)
    return recipe


def quantisations(run: Path, wanted: Sequence[str] | None) -> list[str]:
    """Those of RUN/gguf, largest file first, or the wanted ones. Raises MinipovidError where one is not there."""
    there = [path for path in (run / run_folder.GGUF).glob("*.gguf") if not path.name.startswith("mmproj-")]
    there = sorted((path for path in there if not path.stem.endswith("-LoRA")), key=lambda path: -path.stat().st_size)
    names = [quant.lower() for quant in wanted] if wanted else [path.stem.rpartition("-")[2].lower() for path in there]
    checked: list[str | None] = [*names] or [None]
    for name in checked:
        find_pair(run, name)  # its sentences say what is there, and how the rest is made
    return list(dict.fromkeys(names))


def held_out(run: Path, recipe: Recipe, most: int, notes: list[str]) -> list[Pair]:
    """The last pairs of the run, at most so many; a note where training saw them."""
    path = run / run_folder.PAIRS
    if not path.is_file():
        raise MinipovidError(f"{run} holds no pairs.jsonl, which training writes; verify it where it was trained.")
    pairs = [row for row in jsonl.read(path) if isinstance(row, Pair)]
    if not pairs:
        raise MinipovidError(f"{path} holds no pairs; train again.")
    untrained = source.split(pairs, recipe.data).held_out
    if not untrained:
        notes.append("The pairs were trained on: this run held none out.")
    return (untrained or pairs)[-most:]


def origin(run: Path, recipe: Recipe, notes: list[str]) -> GgufPair | None:
    """What the files were made of; None, with a note, where the base is not on this machine. Nothing is downloaded."""
    section = recipe.model
    try:
        folder = resolve_model(section.path, section.revision, download=False)
    except MinipovidError:
        notes.append(f"The base {section.path} is not on this machine: the files' weights were not looked into.")
        return None
    return GgufPair(folder, run / run_folder.ADAPTER, section.path, section.dtype, recipe, run)
