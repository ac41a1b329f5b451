"""Every method on the tiny world, over seeds: does it cure hallucination, and what does it cost?

    python perf/methods.py --seeds 3 --out runs/methods            # on the held-out evaluation scenes
    python perf/methods.py --seeds 1 --split dev --set train.learning_rate=1e-4

Each run trains as `minipovid train recipes/tinyworld.yaml` does, with other stages and another seed, is exported to F16
and answers in llama.cpp. The table gives mean and 95 % interval over seeds (Student's t); figures are never tuned on
`eval`. The last line is one JSON object. Finished runs are kept, so a stopped table goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

from minipovid.cli import demo
from minipovid.common.files import finished
from minipovid.export import export, export_base
from minipovid.recipe import read as recipe
from minipovid.recipe import schema
from minipovid.train import checkpoint
from minipovid.train.loop import train

DPO = {"name": "dpo"}
# name -> the loss of each stage, and whether the recipe's anchor is added to it
METHODS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "dpo": ([DPO, DPO], False),
    "povid proper": ([DPO, {"name": "povid", "variant": "proper"}], False),
    "povid paper": ([DPO, {"name": "povid", "variant": "paper"}], False),
    "povid code": ([DPO, {"name": "povid", "variant": "code"}], False),
    "mdpo": ([{"name": "mdpo"}, {"name": "mdpo"}], False),
    "dpo + anchor": ([DPO, DPO], True),
    "povid proper + anchor": ([DPO, {"name": "povid", "variant": "proper"}], True),
}
T95 = {1: math.inf, 2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t by number of seeds


def measure(folder: Path, split: str) -> dict[str, float]:
    """The demo's figures for the GGUF pair in `folder`, on one split."""
    return demo.shown(demo.examined(folder, split=split))


def one_run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train, export and measure one method with one seed; log-probabilities are those of the last logged steps.

    What was measured is kept in the run folder, so that a table that was stopped goes on.
    """
    run = arguments.out / f"{name.replace(' + ', '_').replace(' ', '_')}-{seed}"
    kept = run / f"figures-{arguments.split}.json"
    if kept.is_file():
        return json.loads(kept.read_text())  # type: ignore[no-any-return]
    base = recipe.read(recipe.find(schema.BUILTIN), tuple(arguments.set))
    losses, anchored = METHODS[name]
    stages = []
    for stage, loss in zip(base.stages, losses, strict=True):
        anchor = {"anchor": stage.loss["anchor"]} if anchored else {}
        stages.append(stage.model_copy(update={"loss": {**loss, "beta": stage.loss["beta"], **anchor}}))
    keep_all = base.train.model_copy(update={"save_total_limit": 1000})
    settings = base.model_copy(update={"stages": stages, "seed": seed, "train": keep_all})
    if not run.exists():
        borrow_first_stage(run, settings)
    train(settings, run, progress=False)
    export(run, ["f16"])
    steps = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [line for line in steps if "step" in line][-5:]
    logps = {key: statistics.mean(line[key] for line in last) for key in ("logps/chosen", "logps/rejected")}
    figures = measure(run, arguments.split) | logps
    with finished(kept) as draft:
        draft.write_text(json.dumps(figures))
    return figures


def borrow_first_stage(run: Path, settings: schema.Recipe) -> None:
    """Begin at the end of another run's first stage where that is this one's, too: resuming is exact, to the byte."""
    for other in sorted(run.parent.glob(f"*-{settings.seed}")):
        if not (other / "adapter").is_dir():
            continue
        theirs = recipe.read(other / "recipe.yaml")
        if theirs.model_copy(update={"stages": []}) == settings.model_copy(update={"stages": []}) and (
            theirs.stages[0] == settings.stages[0]
        ):
            found = (checkpoint.read(path) for path in sorted(other.glob("checkpoint-*")))
            first = next(each.folder for each in found if (each.position.stage, each.position.step) == (1, 0))
            with finished(run) as draft:
                shutil.copytree(first, draft / first.name)
                for name in ("pairs.jsonl", "log.jsonl"):
                    shutil.copy(other / name, draft)
                recipe.write(settings, draft / "recipe.yaml")
            return


def spread(values: list[float]) -> str:
    """mean +- half of the 95 % interval over seeds."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {T95[len(values)] * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", choices=["eval", "dev"], default="eval")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    export_base(schema.BUILTIN, arguments.out / "base" / "gguf", ["f16"])
    figures = {"base": [measure(arguments.out / "base", arguments.split)]}
    for name in arguments.methods:
        figures[name] = [one_run(name, seed, arguments) for seed in range(1, arguments.seeds + 1)]
        print(name, {key: spread([run[key] for run in figures[name]]) for key in figures[name][0]}, flush=True)
    columns = list(figures[arguments.methods[0]][0])
    print("| method | " + " | ".join(columns) + " |\n|---" * 1 + "|---" * len(columns) + "|")
    for name, runs in figures.items():
        cells = [spread([run[key] for run in runs]) if key in runs[0] else "" for key in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
