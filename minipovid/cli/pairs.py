"""`minipovid pairs`: preference pairs made, brought in, taken out, checked and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from minipovid.cli.options import COUNT, PATH
from minipovid.cli.output import JSON, print_json, print_result, print_table

if TYPE_CHECKING:
    from minipovid.inference.remote.client import Teacher

_FILE = click.argument("file", type=PATH)
_IMAGES = click.option("--images", type=PATH, metavar="FOLDER", help="The pictures' folder.  [default: the file's]")
_FORMAT = click.option(
    "--format", metavar="NAME", help="On the pairs shelf: povid, trl, rlaif_v, ...  [default: as recognised]"
)


@click.group()
def pairs() -> None:
    """Make, import, check, show and export preference pairs."""


@pairs.command()
@_FILE
@click.option("--to", type=PATH, required=True, metavar="FOLDER", help="Where the pairs go.")
@click.option("--maker", default="povid", metavar="NAME", help="povid asks a teacher model, rule needs none.")
@click.option("--model", metavar="NAME", help="The teacher model, as its server calls it.")
@_FORMAT
@_IMAGES
@click.option(
    "--kind",
    type=click.Choice(["auto", "description", "reasoning"]),
    default="auto",
    help="What the answers are; auto: as each looks.",
)
@click.option("--picture/--no-picture", default=True, help="Does the teacher see the picture?")
@click.option("--concurrency", type=COUNT, default=8, help="Requests at a time.")
@click.option("--max-requests", type=COUNT, metavar="N", help="Stop after so many requests.")
@click.option("--max-tokens", type=COUNT, metavar="N", help="Stop after so many tokens.")
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="X", help="Stop at this cost; needs --price.")
@click.option(
    "--price",
    type=click.FloatRange(min=0),
    nargs=2,
    metavar="PROMPT ANSWER",
    help="What a million tokens cost you, of prompts and of answers.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of what the rules draw.")
@click.option(
    "--count-on",
    type=click.Path(),
    metavar="FILE",
    help="Answers on which the rules count what goes together: a .txt with one a line, or data like FILE.  "
    "[default: FILE's own]",
)
@click.option(
    "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of the maker's own; may be repeated."
)
@click.option("--estimate", is_flag=True, help="Only say what it would take; nothing is sent.")
@JSON
@click.pass_context
def make(
    ctx: click.Context,
    file: Path,
    to: Path,
    maker: str,
    format: str | None,
    images: Path | None,
    options: tuple[str, ...],
    estimate: bool,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make a dispreferred answer for every good one in FILE.

    FILE holds pictures, prompts and good answers: LLaVA's JSON, a CSV, a folder of pictures with captions, or pairs in
    any format. The teacher speaks OpenAI's API: its address and key are read from the environment
    (MINIPOVID_TEACHER_BASE_URL and MINIPOVID_TEACHER_API_KEY, or OPENAI_BASE_URL and OPENAI_API_KEY). What is finished
    is kept: the same command goes on, and asks nothing twice. Exits 1 where no pair was made.

    \b
      minipovid pairs make llava.json --images photos --to pairs --model gpt-4o --estimate
      minipovid pairs make llava.json --images photos --to pairs --maker rule
    """
    from minipovid.pairs import formats as shelf
    from minipovid.pairs import make as making
    from minipovid.pairs.make.makers import MakerInputs
    from minipovid.recipe import read as recipes

    def seeds() -> Any:
        return shelf.seeds(file, format)

    further = {
        key.replace("-", "_"): value
        for key, value in recipes.settings(options, "--option", "NAME=VALUE, for example seed=3").items()
    }
    own = {key: flags.pop(key) for key in ("kind", "picture", "seed", "count_on")}
    # Each of these is one maker's own and others refuse it, so a default that nobody asked for stays out.
    given = {key: own[key] for key in own if ctx.get_parameter_source(key) is not ParameterSource.DEFAULT}
    by = making.maker(maker, MakerInputs(seeds, lambda: _teacher(asked=not estimate, **flags)), given | further)
    root = images or (file if file.is_dir() else file.parent)
    if estimate:
        print_result(making.estimate(seeds, by, to, root=root)._asdict(), as_json)
        return
    counts = making.make(seeds, by, to, root=root)
    if counts.failures:
        part = f"{counts.failures:,} of {counts.rows:,} rows became no pair"
        click.echo(f"{part}; {to / making.FAILURES} says why of each.", err=True)
    print_result(counts.as_dict(), as_json)
    if not counts.pairs:
        ctx.exit(1)


def _teacher(
    asked: bool,
    model: str | None,
    concurrency: int,
    max_requests: int | None,
    max_tokens: int | None,
    max_cost: float | None,
    price: tuple[float, float] | None,
) -> Teacher:
    """Raises UsageError for options that do not fit, MinipovidError where the environment names no server."""
    from minipovid.inference.remote import Limits, Prices
    from minipovid.inference.remote.client import Teacher
    from minipovid.inference.remote.server import Server
    from minipovid.pairs.make import answers

    if model is None:
        raise click.UsageError("This maker asks a teacher: name it with --model, or take --maker rule.")
    if max_cost is not None and price is None:
        raise click.UsageError("--max-cost needs --price, for no price list is built in.")
    return Teacher(
        model,
        Server.from_environment(needed=asked),
        cache=answers(),
        concurrency=concurrency,
        limits=Limits(requests=max_requests, tokens=max_tokens, money=max_cost),
        prices=Prices(*price) if price else None,
    )


@pairs.command("import")
@_FILE
@click.option("--to", type=PATH, required=True, metavar="FOLDER", help="Where the pairs go.")
@_FORMAT
@_IMAGES
@click.option("--limit", type=COUNT, metavar="N", help="Only the first rows.")
@JSON
def import_(file: Path, to: Path, format: str | None, images: Path | None, limit: int | None, as_json: bool) -> None:
    """Bring anyone's pairs into a folder of their own, pictures included.

    POVID, TRL, RLAIF-V, RLHF-V, VLFeedback, LLaMA-Factory, ms-swift, CSV; JSON, JSON lines or parquet. Training reads
    these formats by itself as well (data.format); what could not be read is named in FOLDER/import.json.

    \b
      minipovid pairs import RLAIF-V-Dataset_000.parquet --to rlaif
      minipovid train llava7b_qlora --set data.path=rlaif/pairs.jsonl --set data.format=jsonl --out runs/rlaif
    """
    from minipovid.pairs.convert import import_pairs

    print_result(import_pairs(file, to, format, images, limit)._asdict(), as_json)


@pairs.command("export")
@_FILE
@click.option("--to", type=PATH, required=True, metavar="FILE", help="*.jsonl or *.parquet.")
@_IMAGES
def export_(file: Path, to: Path, images: Path | None) -> None:
    """Write pairs in TRL's columns.

    As JSON lines with paths, or as parquet with the pictures inside; `datasets` reads both. Prints the file.

    \b
      minipovid pairs export pairs/pairs.jsonl --to pairs.parquet
    """
    from minipovid.pairs.convert import export_trl

    export_trl(file, to, images)
    click.echo(to)


@pairs.command()
@_FILE
@_FORMAT
@_IMAGES
@click.option("--model", metavar="MODEL", help="Count tokens as this model does: a Hub id, a folder, or tinyworld.")
@click.option("--max-length", type=COUNT, metavar="N", help="Tokens that a row may have.")
@JSON
@click.pass_context
def check(
    ctx: click.Context,
    file: Path,
    format: str | None,
    images: Path | None,
    model: str | None,
    max_length: int | None,
    as_json: bool,
) -> None:
    """Say how good the pairs are, before a night is spent on them.

    Duplicates, missing pictures, lengths, how much differs and in what, and whether the style alone gives the
    dispreferred answer away. FILE may be a run folder. Exits 1 where rows must be mended.

    \b
      minipovid pairs check mine.jsonl --images photos
    """
    from minipovid.pairs.check import check as run_check

    report = run_check(str(file), format=format, images=images, model=model, max_length=max_length)
    if as_json:
        print_json(report.as_dict())
    else:
        for table in (report.table(), report.defects()):
            if table:
                print_table(table)
        for line in (*report.problems, *report.warnings):
            click.echo(line)
    if not report.ok:
        ctx.exit(1)


@pairs.command()
@_FILE
@_FORMAT
@_IMAGES
@click.option("--port", type=click.IntRange(0, 65535), default=8090, help="0 takes any free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--apply", "to", type=PATH, metavar="TO", help="Do not show: write the reviewed pairs to this .jsonl file."
)
@click.option("--decided-only", is_flag=True, help="With --apply: leave out what nobody has looked at.")
@JSON
def show(
    file: Path,
    format: str | None,
    images: Path | None,
    port: int,
    open_browser: bool,
    to: Path | None,
    decided_only: bool,
    as_json: bool,
) -> None:
    """Look at the pairs in the browser, and accept, reject, edit or swap them by keyboard.

    The page is served to this machine alone. Decisions are kept beside FILE at once, in FILE.decisions.jsonl.

    \b
      minipovid pairs show mine.jsonl --images photos
      minipovid pairs show mine.jsonl --images photos --apply reviewed.jsonl
    """
    from minipovid.pairs import review

    if to is not None:
        print_result(review.apply(file, to, format=format, images=images, decided_only=decided_only)._asdict(), as_json)
        return
    review.review(file, format=format, images=images, port=port, open_browser=open_browser, announce=click.echo)
