"""`minipovid train`, `plan` and `recipes`: what reads a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from minipovid.cli.options import PATH
from minipovid.cli.output import JSON, print_json, print_table
from minipovid.common.errors import MinipovidError


def _recipe_argument(command: Callable[..., None]) -> Callable[..., None]:
    """RECIPE and --set, alike in every command that reads a recipe."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the recipe, for example train.learning_rate=1e-6; `loss.beta=0.2` sets it in every "
        "stage. May be given more than once.",
    )(command)
    return click.argument("recipe")(command)


@click.command()
@_recipe_argument
@click.option("--out", type=PATH, help="The run folder.  [default: runs/<name of the recipe>]")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train RECIPE, or go on where it stopped.

    Prints the run folder. Where that holds a checkpoint of the same recipe, training resumes from it.

    \b
      minipovid train tinyworld
      minipovid train my.yaml --set train.learning_rate=1e-6 --set loss.beta=0.2 --out runs/beta02
    """
    from minipovid.recipe import read as recipes

    settings = recipes.read(recipes.find(recipe), overrides)
    from minipovid.train.loop import train as run_training

    click.echo(run_training(settings, out or Path("runs") / settings.name, progress=True))


@click.command()
@_recipe_argument
@click.option(
    "--vram",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="The card's memory: say whether it fits, and what to change where it does not (then exit 1).",
)
@JSON
@click.pass_context
def plan(ctx: click.Context, recipe: str, overrides: tuple[str, ...], vram: float | None, as_json: bool) -> None:
    """Predict what RECIPE will need.

    Memory, disk and time, before anything is downloaded.

    \b
      minipovid plan llava7b_qlora --vram 24
      minipovid plan my.yaml --set lora.r=16 --vram 8
    """
    from minipovid.recipe import read as recipes

    settings = recipes.read(recipes.find(recipe), overrides)
    from minipovid.train import plan as planning

    forecast = planning.predict(settings, vram)
    verdict = planning.verdict(forecast, settings, vram) if vram is not None else None
    if as_json:
        print_json(forecast.as_dict() | ({} if verdict is None else verdict._asdict()))
    else:
        click.echo(forecast.table())
        if verdict is not None:
            click.echo(verdict.sentence)
    if verdict is not None and not verdict.fits:
        ctx.exit(1)


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List, show or copy the shipped recipes."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_recipes)


@recipes.command("list")
@JSON
def list_recipes(as_json: bool = False) -> None:
    """Every shipped recipe and what it is.

    A name says <method>-<family>-<size>; three are older than that.
    """
    from minipovid.recipe.read import chain, shipped

    titles = {name: path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for name, path in shipped().items()}
    if as_json:
        print_json(titles)
        return
    rows = []
    for name, title in titles.items():
        bases = [path.stem for path, _ in chain(shipped()[name])[1:2]]
        rows.append({"recipe": name, "extends": ", ".join(bases), "what it is": title})
    print_table(rows)


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe with its comments.

    \b
      minipovid recipes show llava7b_qlora
    """
    from minipovid.common.text_files import read
    from minipovid.recipe.read import find

    click.echo(read(find(name), "recipe"), nl=False)


@recipes.command()
@click.argument("name")
@click.argument("to", type=PATH, required=False)
def copy(name: str, to: Path | None) -> None:
    """Copy a recipe here (or to the path TO), to edit it.

    \b
      minipovid recipes copy llava7b_qlora my.yaml
    """
    from minipovid.recipe.read import find

    source = find(name)
    target = to / source.name if to is not None and to.is_dir() else to or Path(source.name)
    if target.exists():
        raise MinipovidError(f"{target} already exists; name another file: `minipovid recipes copy {name} other.yaml`.")
    if not target.parent.is_dir():
        raise MinipovidError(f"There is no folder {target.parent} to copy the recipe to.")
    target.write_bytes(source.read_bytes())
    click.echo(target)
