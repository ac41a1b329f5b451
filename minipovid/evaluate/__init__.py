"""Benchmarks through a backend: questions -> answers -> scores, with intervals.

    with backends.opened("gguf", run) as backend:
        results = evaluate(run, find(["tinyworld"]), backend)
    results[0].figures["adversarial/false_yes"]     # Interval(value=0.11, low=0.08, high=0.15)

What is written stands in results.py, how it is asked in ask.py, what a spec may be in selection.py. The same command
asks nothing twice: killed, or run again with another reading of the answers (`--mode robust`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid import __version__
from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone
from minipovid.evaluate import statistics
from minipovid.evaluate.ask import ask
from minipovid.evaluate.benchmarks import Answer, Benchmark, Judging
from minipovid.evaluate.judge import judged
from minipovid.evaluate.results import Result as Result
from minipovid.evaluate.results import count, figures_of, graded, write
from minipovid.evaluate.selection import Selected as Selected
from minipovid.evaluate.selection import find as find
from minipovid.images.embedded import Store
from minipovid.inference.backends import Backend
from minipovid.inference.thoughts import spoken
from minipovid.recipe import run_folder

if TYPE_CHECKING:
    from minipovid.inference.remote import ChatModel


def evaluate(
    run: Path, selected: Sequence[Selected], backend: Backend, judge: Callable[[], ChatModel] | None = None
) -> list[Result]:
    """Examine whoever answers; answers and scores land in the run folder, each benchmark's when it is done.

    `judge` makes the model that reads the answers, for benchmarks that want one. Raises MinipovidError, before anything
    is asked, for files that are not a benchmark's, missing pictures and a missing judge.
    """
    run_folder.check_place(run)
    store = Store(run / run_folder.EVAL / "images")
    pictures: list[Mapping[str, Path]] = []
    for each in selected:  # all that can be wrong is wrong before hours are spent
        pictures.append(each.pictures(store))
        backend.check(each.exam.questions)
        wanted = _judging(each.benchmark)
        if wanted is not None and judge is None:
            raise MinipovidError(f"{each.label} needs a judge: name a model with --judge (officially {wanted.judge}).")
    with alone(run / run_folder.EVAL):
        return [_examined(run, *both, backend, judge) for both in zip(selected, pictures, strict=True)]


def _judging(benchmark: Benchmark) -> Judging | None:
    """The benchmark, if a judge reads its answers."""
    return benchmark if isinstance(benchmark, Judging) and benchmark.judge else None


def _examined(
    run: Path, selected: Selected, pictures: Mapping[str, Path], backend: Backend, judge: Callable[[], ChatModel] | None
) -> Result:
    folder, label = run / run_folder.EVAL, f"{selected.label} by {backend.name}"
    heard = ask(selected.exam.questions, pictures, backend, folder, label)
    answers = [replace(answer, text=spoken(answer.text)) for answer in heard]  # what a model thinks is no answer
    by: dict[str, Any] = {}
    wanted = _judging(selected.benchmark)
    if judge is not None and wanted is not None:
        answers, by = judged(wanted, answers, judge(), selected.label)
    return _result(run, selected, backend, answers, by)


def _options(benchmark: Benchmark, files: Sequence[Path]) -> dict[str, Any]:
    """All options; those that name a file are left out, for the file's content is a part of the data."""
    options: dict[str, Any] = asdict(benchmark)  # type: ignore[call-overload]
    return {
        name: value
        for name, value in options.items()
        if not (isinstance(value, str) and value and Path(value).expanduser() in files)
    }


def _result(
    run: Path, selected: Selected, backend: Backend, answers: Sequence[Answer], judged_by: dict[str, Any]
) -> Result:
    benchmark = selected.benchmark
    grades = graded(benchmark, answers)
    identity = {
        "benchmark": selected.name,
        "version": getattr(benchmark, "version", 1),  # a benchmark raises it when it reads answers otherwise
        "options": _options(benchmark, selected.exam.files),
        "data": selected.data,
        "judge": {"model": judged_by["model"], "prompts": __version__} if judged_by else None,
        "decoding": dict(backend.decoding),
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:8]
    mode = f"{benchmark.mode}/" if hasattr(benchmark, "mode") else ""
    result = Result(
        label=selected.label,
        benchmark=selected.name,
        options=dict(selected.options),
        backend=backend.name,
        protocol=f"{selected.name}/{mode}{digest}",
        identity={**identity, "answered_by": dict(backend.identity()), "judged_by": judged_by},
        pictures=str(selected.root.resolve()),
        **count(grades.marks),
        notes=list(selected.exam.notes),
        figures=statistics.intervals(grades.units, figures_of(benchmark)),
        units=grades.units,
    )
    write(run, result, answers, grades.marks)
    return result
