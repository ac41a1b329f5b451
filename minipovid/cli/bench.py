"""`minipovid bench`: how fast this machine trains, in one line."""

from __future__ import annotations

from functools import partial

import click

from minipovid.cli.output import JSON, print_json


@click.command()
@click.argument("recipe", required=False)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help="How long to measure.  [default: 60 on a GPU, 10 on a CPU]",
)
@JSON
def bench(recipe: str | None, seconds: float | None, as_json: bool) -> None:
    """Measure how fast this machine trains.

    One line to paste into an issue: the machine, seconds per step, pairs per second and memory, beside what `minipovid
    plan` predicts. RECIPE is by default llava7b_qlora, on a smaller card llava7b_8gb, without a card tinyworld. Its
    model's weights are drawn at random: nothing is downloaded, and a 7B model takes 13 GiB of disk meanwhile.
    """
    from minipovid.train import bench as benchmark

    found = benchmark.bench(recipe, seconds, partial(click.echo, err=True))
    if as_json:
        print_json(found.as_dict())
    else:
        click.echo(found.line)
