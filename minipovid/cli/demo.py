"""`minipovid demo`: recipe -> pairs -> training -> GGUF -> proof -> answers, measured, over the built-in tiny world.

Nothing here is special to the tiny world but its name: the same functions run a 7B model.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minipovid.cli.options import PATH
from minipovid.cli.output import JSON, print_result
from minipovid.recipe import run_folder

if TYPE_CHECKING:
    from minipovid.evaluate import Result
    from minipovid.pairs.check import CheckReport

# What is shown: (benchmark, figure).
FIGURES = {
    "false yes, adversarial": ("pope", "adversarial/false_yes"),
    "accuracy, adversarial": ("pope", "adversarial/accuracy"),
    "CHAIR_s": ("chair", "chair_s"),
    "CHAIR_i": ("chair", "chair_i"),
    "object recall": ("chair", "recall"),
    "words": ("chair", "words"),
}


@click.command()
@click.option("--out", type=PATH, default=Path("runs/demo"), help="The run.")
@JSON
@click.pass_context
def demo(ctx: click.Context, out: Path, as_json: bool) -> None:
    """Walk the whole road on the built-in tiny world.

    Train, export, ask, and a table of before and after; a few minutes on a CPU. Exits 1 where the result is no
    better than the model it began with.
    """
    result = walk(out)
    print_result(result, as_json)
    if result.get("ok") is False:
        ctx.exit(1)


def walk(out: Path) -> dict[str, Any]:
    """Make and check the pairs, train, export, prove the files, examine before and after, write the report.

    Returns the tables, a described picture and `ok`: whether the pairs are sound, every file answers as the trained
    model does, and both rates of hallucination fell by a third without loss of recall.
    """
    from minipovid.export import export, export_base
    from minipovid.pairs.check import check
    from minipovid.recipe import read as recipe
    from minipovid.recipe import schema
    from minipovid.report import report
    from minipovid.train.loop import train
    from minipovid.verify import verify

    began = time.monotonic()
    settings = recipe.read(recipe.find(schema.BUILTIN))
    _say("1/7  making pairs by rule of pictures with good answers, and checking them")
    pairs = check(settings.data.path, max_length=settings.data.max_length)
    _say("2/7  training (QLoRA, 4-bit, on this CPU or GPU)")
    run = train(settings, out)
    _say("3/7  merging and writing GGUF")
    files = export(run)
    base = run / run_folder.BASE
    export_base(settings.model.path, base / run_folder.GGUF, ["f16"])
    _say("4/7  proving the files: do they answer as the trained model does?")
    proof = verify(run)
    _say("5/7  examining both models in llama.cpp on held-out pictures")
    before, after = (examined(folder) for folder in (base, run))
    examined(run, "q4_k_m")
    _say("6/7  examining the trained model in transformers")
    examined(run, None, backend="hf")
    _say("7/7  choosing a picture that shows it, and writing the report")
    page = report([run]).page
    return {
        "pairs": summary(pairs),
        "figure": compared(before, after),
        "files proved": proof.table(),
        "one picture": one_picture(base, run, before["chair"], after["chair"]),
        "files": ", ".join(str(file) for file in files),
        "report": str(page),
        "seconds": round(time.monotonic() - began),
        "ok": pairs.ok and proof.ok and is_cured(shown(before), shown(after)),
    }


def summary(checked: CheckReport) -> list[dict[str, str]]:
    """What the check found, and what it warns of."""
    warned = [{"what": "warning", "found": sentence} for sentence in (*checked.problems, *checked.warnings)]
    return [*checked.table(), *warned]


def examined(folder: Path, quant: str | None = "f16", split: str = "eval", backend: str = "gguf") -> dict[str, Result]:
    """The model in a run folder, on the tiny world's held-out pictures; by benchmark."""
    from minipovid.evaluate import evaluate, find
    from minipovid.inference import backends
    from minipovid.recipe.schema import BUILTIN

    with backends.opened(backend, folder, {"quant": quant}) as answering:
        results = evaluate(folder, find([BUILTIN], split=split), answering)
    return {result.benchmark: result for result in results}


def shown(results: Mapping[str, Result]) -> dict[str, float]:
    """FIGURES of one model."""
    return {name: results[label].figures[figure].value for name, (label, figure) in FIGURES.items()}


def compared(before: Mapping[str, Result], after: Mapping[str, Result]) -> dict[str, dict[str, str]]:
    """FIGURES of both models, and the change with its interval and the paired test's p."""
    changes = {label: result.changes(after[label]) for label, result in before.items()}
    table = {}
    for name, (label, figure) in FIGURES.items():
        old, new = (results[label].figures[figure].value for results in (before, after))
        change = changes[label][figure]
        table[name] = {
            "before": f"{old:.3f}",
            "after": f"{new:.3f}",
            "change": f"{change.value:+.3f}",
            "95 %": f"{change.low:+.3f} to {change.high:+.3f}",
            "p": f"{change.p:.3f}",
        }
    return table


def is_cured(before: Mapping[str, float], after: Mapping[str, float]) -> bool:
    """Both rates down by at least a third, recall no lower."""
    fell = all(after[key] <= before[key] * 2 / 3 for key in ("false yes, adversarial", "CHAIR_i"))
    return fell and after["object recall"] >= before["object recall"]


def one_picture(base: Path, run: Path, before: Result, after: Result) -> dict[str, str]:
    """What both models say of a picture, and of how many pictures the trained one names fewer things that are absent.

    It is the first in which CHAIR finds something absent before and every word is true now, colours and places too;
    else one in which CHAIR finds nothing absent now; else the first, and the count says so.
    """
    from minipovid.evaluate import find, results
    from minipovid.images import load as images
    from minipovid.recipe.schema import BUILTIN
    from minipovid.tinyworld.scenes import unbiased_scene
    from minipovid.tinyworld.text import is_true

    rows = list(zip(results.rows(base, before), results.rows(run, after), strict=True))
    absent = [(len(old["wrong"]), len(new["wrong"])) for old, new in rows]
    better, worse = sum(new < old for old, new in absent), sum(new > old for old, new in absent)
    count = f"of {len(rows)} pictures: {better} better, {worse} worse, {len(rows) - better - worse} alike"
    cured = [pair for pair, (old, new) in zip(rows, absent, strict=True) if old and not new]
    if not cured:
        count += "; none was wrong before and is right now, so this is simply the first"
    selected = next(selected for selected in find([BUILTIN]) if selected.label == before.label)
    questions = {question.id: question for question in selected.exam.questions}
    scenes = {key: unbiased_scene(Path(question.image).stem) for key, question in questions.items()}
    faultless = [pair for pair in cured if is_true(pair[1]["answer"], scenes[pair[1]["id"]])]
    old, new = (faultless or cured or rows)[0]
    question = questions[old["id"]]
    return {
        "picture": str(images.inside(selected.root, question.image)),
        "in it": ", ".join(question.truth["objects"]),
        "before": old["answer"],
        "after": new["answer"],
        "all": count,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
