"""From a finished run to the files that llama.cpp reads: merge the adapter, write text GGUF and mmproj GGUF.

    files = export(Path("runs/my-run"), ["q8_0", "q4_k_m"])

Weights stream from the shards to the file a block of rows at a time, so memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minipovid import recipe as recipes
from minipovid.checkpoint import resolve_model
from minipovid.errors import MinipovidError
from minipovid.export import quants as table
from minipovid.export.pair import Pair, Progress, write_pair

MERGE_BASES = ("auto", "nf4", "original")


def export(
    run: Path,
    quants: Sequence[str] | None = None,
    merge_base: str | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Write RUN/gguf/: a text GGUF per quantisation and one mmproj GGUF; return them in this order, mmproj last.

    What is not given is read from the run's recipe. Files already made of the same inputs are kept. `progress` is
    called with (file name, bytes written, bytes in all). Raises MinipovidError for what the user can mend.
    """
    recipe = _recipe(run)
    adapter = run / "adapter"
    if not (adapter / "adapter_model.safetensors").is_file():
        raise MinipovidError(f"{run} holds no trained adapter; finish the training with `minipovid train` first.")
    names = table.known(quants or recipe.export.quants)
    chosen = _merge_base(merge_base or recipe.export.merge_base, recipe)
    model = resolve_model(recipe.model.path, recipe.model.revision)
    pair = Pair(model, adapter, recipe.model.path, recipe.model.dtype)
    bases = {name: _base_for(name, chosen, recipe.model.load_in_4bit) for name in names}
    return write_pair(pair, run / "gguf", names, bases, progress)


def export_base(
    path: str, out: Path, quants: Sequence[str], revision: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """Write the GGUF pair of a model as it is, without any adapter: the "before" of a before/after table."""
    names = table.known(quants)
    pair = Pair(resolve_model(path, revision), None, path, "float32")
    return write_pair(pair, out, names, dict.fromkeys(names, "original"), progress)


def _recipe(run: Path) -> recipes.Recipe:
    if not (run / "recipe.yaml").is_file():
        raise MinipovidError(f"{run} is no run folder: it holds no recipe.yaml.")
    return recipes.read(run / "recipe.yaml")


def _merge_base(wanted: str, recipe: recipes.Recipe) -> str:
    if wanted not in MERGE_BASES:
        raise MinipovidError(f"merge_base is {wanted!r}, but it must be one of {', '.join(MERGE_BASES)}.")
    if wanted == "nf4" and not recipe.model.load_in_4bit:
        raise MinipovidError("merge_base is 'nf4', but the run did not train in 4-bit; use 'original'.")
    return wanted


def _base_for(quant: str, wanted: str, trained_in_4bit: bool) -> str:
    """auto: what training saw, except for K-quants, whose own rounding would swallow the adapter on a 4-bit lattice."""
    if wanted != "auto":
        return wanted
    return "nf4" if trained_in_4bit and table.QUANTS[quant].kind is not None else "original"
