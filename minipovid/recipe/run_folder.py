"""The run folder: what its files are called, and the first things that every command asks of it.

    runs/my-run/recipe.yaml        the resolved recipe, written before the first weight is loaded
                pairs.jsonl        the pairs as they were checked; the last ones are held out
                log.jsonl          one logged step a line
                checkpoint-<n>/    everything needed to go on from step n
                adapter/           the result of training, in PEFT's layout
                gguf/              the files for llama.cpp, model card and Modelfile
                merged/            the merged model for other programs
                verify/            what the trained model said of the held-out pairs
                verify.json        whether the files say the same
                eval/              questions and answers, benchmark by benchmark
                scores.json        their figures
                base/              the model before training, examined: a run folder without training
                report.html

Stages talk through these files and never through hidden state; a finished file appears by rename.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minipovid.common.errors import MinipovidError

if TYPE_CHECKING:
    from minipovid.recipe.schema import Recipe

RECIPE = "recipe.yaml"
PAIRS = "pairs.jsonl"
STAGE_PAIRS = "pairs.stage-{}.jsonl"  # of a stage with data of its own, by its index
LOG = "log.jsonl"
CHECKPOINT = "checkpoint-"  # and the number of its step
ADAPTER = "adapter"
GGUF = "gguf"
MERGED = "merged"
VERIFY = "verify"
VERDICT = "verify.json"
EVAL = "eval"
SCORES = "scores.json"
BASE = "base"
REPORT = "report.html"
PARTS = (RECIPE, LOG, EVAL, VERDICT, GGUF)  # a folder with any of them has something to report

ADAPTER_WEIGHTS, ADAPTER_SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # PEFT's names


def no_run(run: Path) -> MinipovidError:
    """Why this is no run folder, and what is to be named instead; whoever wants one raises it."""
    if not run.exists():
        return MinipovidError(f"There is no folder {run}; name a run folder, which `minipovid train` makes.")
    if not run.is_dir():
        beside = ", or to ask it the folder of this file and its mmproj" if run.suffix.lower() == ".gguf" else ""
        return MinipovidError(f"{run} is a file; name a run folder, which `minipovid train` makes{beside}.")
    if any(run.glob("*.gguf")):
        return MinipovidError(
            f"{run} is no run folder: it holds GGUF files and no {RECIPE}. `minipovid ask`, `chat`, `serve` and `eval` "
            "take such a folder; the other commands need the one that `minipovid train` made."
        )
    return MinipovidError(f"{run} is no run folder: it holds no {RECIPE}; name one that `minipovid train` made.")


def check_place(run: Path) -> None:
    """Raises MinipovidError where a run folder cannot be, for a file is there."""
    if run.exists() and not run.is_dir():
        raise no_run(run)


def recipe(run: Path) -> Recipe:
    """The run's resolved recipe. Raises MinipovidError where the folder is none of a run."""
    if not (run / RECIPE).is_file():
        raise no_run(run)
    from minipovid.recipe import read  # pydantic and YAML, which who wants a name alone need not load

    return read.read(run / RECIPE)


def adapter(run: Path) -> Path:
    """The folder of the trained adapter. Raises MinipovidError where training has not come to its end."""
    pickled = run / ADAPTER / "adapter_model.bin"
    if pickled.is_file() and not pickled.with_name(ADAPTER_WEIGHTS).is_file():
        raise MinipovidError(
            f"{pickled} is pickled; such files can run any program when they are opened and never are here. Save the "
            f"adapter as {ADAPTER_WEIGHTS} where it was trained (save_pretrained does so since PEFT 0.7)."
        )
    if not (run / ADAPTER / ADAPTER_WEIGHTS).is_file():
        raise MinipovidError(f"{run} holds no trained adapter; finish the training with `minipovid train` first.")
    return run / ADAPTER
