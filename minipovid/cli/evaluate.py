"""`minipovid eval`: benchmarks through whoever answers, and a table of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minipovid.cli.options import COUNT, PATH, RUN, runtime_options
from minipovid.cli.output import JSON, cell, print_json, print_table
from minipovid.common.errors import MinipovidError

if TYPE_CHECKING:
    from minipovid.evaluate import Result
    from minipovid.inference.remote import ChatModel


@click.command("eval")
@RUN
@click.argument("benchmarks", nargs=-1, required=True, metavar="BENCHMARK...")
@click.option(
    "--backend",
    metavar="NAME",
    help="Who answers: gguf (llama.cpp), hf (transformers), openai (a server), predictions (a file).  [default: gguf, "
    "or what --predictions or --model says]",
)
@runtime_options
@click.option(
    "--weights",
    type=click.Choice(["adapter", "merged", "base"]),
    help="hf: the trained model as it was trained, merged, or the model that it began with.  [default: adapter]",
)
@click.option("--model", metavar="NAME", help="openai: the model, as its server calls it.")
@click.option("--concurrency", type=COUNT, default=8, help="Requests at a time.")
@click.option("--predictions", type=PATH, metavar="FILE", help="predictions: the answers.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option of the backend, where there is no flag for it. May be given more than once.",
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0: greedy.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of what is drawn.")
@click.option("--judge", metavar="MODEL", help="The model that reads the answers, where a benchmark wants one.")
@click.option("--max-requests", type=COUNT, metavar="N", help="Of the judge: stop after so many.")
@click.option(
    "--images",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="The pictures' folder, of one benchmark or of all.  [default: where its file lies]",
)
@click.option("--mode", type=click.Choice(["official", "robust"]), help="How answers are read.  [default: official]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="NAME.KEY=VALUE",
    help="An option of a benchmark: pope.suffix='', chair.words=lemma. May be given more than once.",
)
@JSON
def evaluate(
    run: Path,
    benchmarks: tuple[str, ...],
    backend: str | None,
    quant: str | None,
    weights: Any,
    model: str | None,
    concurrency: int,
    predictions: Path | None,
    options: tuple[str, ...],
    temperature: float,
    seed: int,
    judge: str | None,
    max_requests: int | None,
    images: tuple[str, ...],
    mode: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **runtime: Any,
) -> None:
    """Examine RUN with one or more benchmarks.

    A BENCHMARK is NAME=PATH, a benchmark and its file or folder (NAME:LABEL=PATH where two have one name), or
    `tinyworld`. POPE and CHAIR also take your own pictures: JSON lines with image and objects. Scores come with 95 %
    intervals; answers and scores are written to RUN/eval and RUN/scores.json, and nothing is asked twice. A judge, and
    a server that answers, are named as for `pairs make`: MINIPOVID_TEACHER_BASE_URL and MINIPOVID_TEACHER_API_KEY, and
    MINIPOVID_MODEL_BASE_URL and MINIPOVID_MODEL_API_KEY, or OPENAI_BASE_URL and OPENAI_API_KEY.

    \b
      minipovid eval runs/tinyworld tinyworld
      minipovid eval runs/llava7b_qlora pope=POPE/output/coco --images coco/val2014 --quant q4_k_m
      minipovid eval runs/llava7b_qlora pope:mine=photos/pictures.jsonl --set mine.each=2 --backend hf
      minipovid eval runs/other pope=q.json --backend predictions --predictions answers.jsonl
    """
    from minipovid.evaluate import evaluate as run_evaluation
    from minipovid.evaluate import find
    from minipovid.export import refresh_card
    from minipovid.inference import backends
    from minipovid.inference.backends import Decoding
    from minipovid.recipe import read as recipes

    telling = {"quant": quant, "weights": weights, "model": model, "predictions": predictions}
    named = _backend(backend, telling)
    selected = find(benchmarks, recipes.settings(overrides), _folders(images), mode=mode)
    if predictions is not None and len(selected) > 1:
        raise MinipovidError("--predictions answers one benchmark; name one at a time.")
    flags = {**runtime, "concurrency": concurrency, **telling}
    own = {name: value for name, value in flags.items() if name in backends.option_names(named)}
    own |= recipes.settings(options, "--option", "NAME=VALUE")
    teacher = _judge(judge, concurrency, max_requests) if judge else None
    with backends.opened(named, run, own, Decoding(temperature, seed)) as answering:
        results = run_evaluation(run, selected, answering, teacher)
    refresh_card(run)
    if as_json:
        print_json({result.name: result.brief() for result in results})
    else:
        _print(results)


def _backend(named: str | None, telling: Mapping[str, object]) -> str:
    """The backend, as it is named or as an option of one of them says. Raises MinipovidError for another's option."""
    from minipovid.common import shelf
    from minipovid.inference.backends import option_names

    shelf_names = shelf.names("inference.backends")
    given = (flag for flag, value in telling.items() if value is not None)
    owners = {flag: [name for name in shelf_names if flag in option_names(name)] for flag in given}
    flag, meant = next(iter(owners.items()), ("", ["gguf"]))
    if not named and len(meant) > 1:
        raise MinipovidError(f"--{flag} is an option of {' and '.join(meant)}; say with --backend who answers.")
    backend = named or meant[0]
    for flag, those in owners.items():
        if backend not in those:
            whose = " and ".join(those)
            raise MinipovidError(f"--{flag} is an option of the {whose} backend, and {backend} answers here.")
    return backend


def _folders(images: Sequence[str]) -> Mapping[str, Path]:
    """By label or name; "" for all."""
    found: dict[str, Path] = {}
    for each in images:
        name, equals, folder = each.partition("=")
        found[name if equals else ""] = Path(folder if equals else each).expanduser()
    return found


def _judge(model: str, concurrency: int, max_requests: int | None) -> Callable[[], ChatModel]:
    @cache
    def teacher() -> ChatModel:
        from minipovid.inference.remote import Limits
        from minipovid.inference.remote.client import Teacher
        from minipovid.pairs.make import answers

        limits = Limits(requests=max_requests)
        return Teacher(model, cache=answers(), concurrency=concurrency, limits=limits, who="judge")

    return teacher


def _print(results: Sequence[Result]) -> None:
    rows = [
        {
            "benchmark": result.name,
            "figure": name,
            "value": cell(each.value),
            "95 %": "-" if isnan(each.low) else f"{each.low:.3g} to {each.high:.3g}",
        }
        for result in results
        for name, each in result.headline().items()
    ]
    print_table(rows)
    for result in results:
        unread = f", {result.unparsed:,} could not be read" if result.unparsed else ""
        failed = f", {result.judge_failed:,} that no judge replied about" if result.judge_failed else ""
        click.echo(f"{result.name}: {result.questions:,} answers{unread}{failed}; {result.protocol}")
        for note in result.notes:
            click.echo(f"  {note}")
