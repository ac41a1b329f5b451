"""From a finished run to the files that llama.cpp reads: merge the adapter, write text GGUF and mmproj GGUF.

    files = export(Path("runs/my-run"), ["q8_0", "q4_k_m"])

Weights stream from the shards to the file a block of rows at a time, so memory does not grow with the model.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import BusyError, alone, finished
from minipovid.export import lora_gguf, writer
from minipovid.export import quants as table
from minipovid.export.card import facts_of, write_card
from minipovid.export.folder import PairOptions, Progress, check_quants, remove_stale, write_pair
from minipovid.export.gguf_pair import FORMAT, STAMP, GgufPair
from minipovid.export.importance import CalibrationExample
from minipovid.export.lm_studio import lm_studio
from minipovid.export.naming import FINETUNE, finetune
from minipovid.export.ollama import write_modelfile
from minipovid.export.safetensors import write_merged
from minipovid.export.source import ExportSource
from minipovid.images.load import inside
from minipovid.inference.llama_cpp import find_pair
from minipovid.models.hub import resolve_model
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.pairs.source import locate, split
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe

__all__ = ["export", "export_base", "export_lora", "export_merged", "lm_studio", "open_pair", "refresh_card"]
MERGE_BASES = ("auto", "nf4", "original")
TEXTS = 200  # pairs on whose prompts and answers tokenizer and llama.cpp must agree


def export(
    run: Path,
    quants: Sequence[str] | None = None,
    merge_base: str | None = None,
    mmproj: str | None = None,
    imatrix: int | None = None,
    progress: Progress | None = None,
    name: str | None = None,
) -> list[Path]:
    """Write RUN/gguf/: a text GGUF per quantisation and one mmproj GGUF; return them in this order, mmproj last.

    What is not given is read from the run's recipe. Files already made of the same inputs are kept. `imatrix` is the
    number of pairs that an importance matrix is gathered on. `progress` is called with (file name, bytes written, bytes
    in all). `name` is the run's in the names of the files (default: as they are called already, or as its folder).
    Raises MinipovidError for what the user can mend.
    """
    recipe = run_folder.recipe(run)
    names = table.valid_names(quants or recipe.export.quants)
    base = _merge_base(merge_base or recipe.export.merge_base, recipe)
    examples = _examples(run, recipe, recipe.export.imatrix if imatrix is None else imatrix)
    check_quants(names, bool(examples))
    pair = open_pair(run, _called(name))
    bases = {name: _base_for(name, base, recipe.model.load_in_4bit) for name in names}
    n_ctx = min(recipe.data.max_length, pair.context_length)
    options = PairOptions(bases, table.valid_mmproj(mmproj or recipe.export.mmproj), examples, n_ctx)
    with alone(run / run_folder.GGUF):
        files = write_pair(pair, run / run_folder.GGUF, options, progress)
        write_modelfile(run / run_folder.GGUF, pair.chat, files[0], files[-1], pair.words[1].first)
        write_card(run / run_folder.GGUF, facts_of(files[0], recipe, run))
    return files


def refresh_card(run: Path) -> None:
    """Tell new scores in the model card of a run that has been exported; nothing where it has not."""
    if (run / run_folder.GGUF / "README.md").is_file():
        # an export in hand ends by writing the card
        with suppress(BusyError), alone(run / run_folder.GGUF):
            write_card(run / run_folder.GGUF, facts_of(find_pair(run)[0], run_folder.recipe(run), run))


def export_base(
    path: str, out: Path, quants: Sequence[str], revision: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """Write the GGUF pair of a model as it is, without any adapter: the "before" of a before/after table."""
    names = table.valid_names(quants)
    check_quants(names, has_imatrix=False)
    pair = GgufPair(resolve_model(path, revision), None, path, "float32")
    with alone(out):
        return write_pair(pair, out, PairOptions(dict.fromkeys(names, "original")), progress)


def export_lora(run: Path, quant: str = "f16", progress: Progress | None = None, name: str | None = None) -> Path:
    """Write RUN/gguf/...-LoRA.gguf, the adapter alone in f16 or f32: it runs on anybody's GGUF of the same base.

    Of the base only configuration and tokenizer are read; its weights need not be on this machine.
    """
    if quant.lower() not in ("f16", "f32"):
        raise MinipovidError(f"A LoRA GGUF is written as f16 or f32, not as {quant}; the base's file is what is small.")
    quant, recipe = quant.lower(), run_folder.recipe(run)
    model = resolve_model(recipe.model.path, recipe.model.revision, weights=False)
    source = ExportSource(model, run_folder.adapter(run), recipe.model.path, recipe, run, called=_called(name))
    _tell_left_out(source)
    places = lora_gguf.places(source.family, source.config, source.factors)
    architecture = source.family.text_metadata(source.config)["general.architecture"]
    keys = {
        "general.architecture": architecture,
        **source.named_as("adapter"),
        **source.provenance(),
        **source.chat_keys(),
    }
    keys[STAMP] = hashlib.sha256(json.dumps([FORMAT, quant, keys], sort_keys=True).encode()).hexdigest()
    path = run / run_folder.GGUF / source.title.lora(quant)
    on_bytes = None if progress is None else lambda done, total: progress(path.name, done, total)
    with alone(path.parent):
        remove_stale(source, path.parent)
        if writer.stamp(path, STAMP) != keys[STAMP]:
            with finished(path) as draft:
                lora_gguf.write_lora(draft, source.factors, places, keys, quant, on_bytes)
    return path


def export_merged(run: Path, merge_base: str | None = None, progress: Progress | None = None) -> Path:
    """Write RUN/merged/, the merged model in Hugging Face's layout (safetensors); returns the folder."""
    recipe = run_folder.recipe(run)
    base = _merge_base(merge_base or recipe.export.merge_base, recipe)
    folder = run / run_folder.MERGED
    with alone(folder):
        write_merged(open_pair(run), folder, _base_for("f16", base, recipe.model.load_in_4bit), progress)
    return folder


def _called(name: str | None) -> str | None:
    """The name, checked."""
    if name is not None and finetune(name) == FINETUNE:
        raise MinipovidError(f"--name {name!r} holds no letter or digit of ASCII, of which files' names are made.")
    return name


def open_pair(run: Path, called: str | None = None) -> GgufPair:
    """Everything that the files of a run are made of. Raises MinipovidError where there is no finished run."""
    recipe = run_folder.recipe(run)
    model = resolve_model(recipe.model.path, recipe.model.revision)
    texts = [text for pair in islice(_pairs(run), TEXTS) for text in (pair.prompt, pair.chosen, pair.rejected)]
    pair = GgufPair(model, run_folder.adapter(run), recipe.model.path, recipe.model.dtype, recipe, run, texts, called)
    _tell_left_out(pair)
    return pair


def _tell_left_out(source: ExportSource) -> None:
    """A note for an adapter that is on more than the model runs, as PEFT's "all-linear" is."""
    if source.left_out:
        more = f" and {len(source.left_out) - 1} more" if len(source.left_out) > 1 else ""
        what = f"what the adapter adds to {source.left_out[0]}{more}"
        print(f"Left out: {what}, which this model never runs, so that no answer changes.", file=sys.stderr)


def _pairs(run: Path) -> Iterable[Pair]:
    """The run's own pairs; none for a run that was made elsewhere without them."""
    path = run / run_folder.PAIRS
    return (row for row in jsonl.read(path) if isinstance(row, Pair)) if path.is_file() else ()


def _examples(run: Path, recipe: Recipe, number: int) -> list[CalibrationExample]:
    """Pictures, prompts and chosen answers that training saw: verify's pairs stay unseen."""
    if not number:
        return []
    trained = split(list(_pairs(run)), recipe.data).trained[:number]
    if not trained:
        raise MinipovidError(f"{run} holds no pairs.jsonl to gather an importance matrix on; use --imatrix 0.")
    root = locate(recipe.data)[1]
    return [(inside(root, pair.image), pair.prompt, pair.chosen) for pair in trained]


def _merge_base(name: str, recipe: Recipe) -> str:
    """The name, checked."""
    if name not in MERGE_BASES:
        raise MinipovidError(f"merge_base is {name!r}, but it must be one of {', '.join(MERGE_BASES)}.")
    if name == "nf4" and not recipe.model.load_in_4bit:
        raise MinipovidError("merge_base is 'nf4', but the run did not train in 4-bit; use 'original'.")
    return name


def _base_for(quant: str, merge_base: str, trained_in_4bit: bool) -> str:
    """auto: what training saw, except for K-quants, whose own rounding would swallow the adapter on a 4-bit lattice."""
    if merge_base != "auto":
        return merge_base
    return "nf4" if trained_in_4bit and table.QUANTS[quant].kind is not None else "original"
