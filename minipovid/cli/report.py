"""`minipovid report`: runs as a page, and as a table on the terminal or in Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from minipovid.cli.options import PATH
from minipovid.cli.output import JSON, print_json, print_table
from minipovid.common.errors import MinipovidError


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The page.  [default: report.html in the last RUN]",
)
@click.option("--markdown", is_flag=True, help="Print the result as Markdown, for a model card.")
@JSON
def report(runs: tuple[Path, ...], out: Path | None, markdown: bool, as_json: bool) -> None:
    """Show what RUN came to.

    Writes one page that needs no network: verdict, scores with 95 % intervals, training curves, noised pictures,
    answers before and after, quantisation, the recipe. Several runs are compared with the first one; a single run with
    the model that it began with, where RUN/base or `eval --weights base` has its scores.

    \b
      minipovid report runs/demo
      minipovid report runs/before runs/after --out compared.html
      minipovid report runs/demo --markdown >> README.md
    """
    from minipovid.report import report as write

    if markdown and as_json:
        raise MinipovidError("--markdown and --json are two ways to print the result; give one of them.")
    result = write(runs, out)
    if as_json:
        print_json(result.as_dict())
        return
    if markdown:
        click.echo(result.markdown())
        return
    click.echo(result.verdict.headline)
    for finding in result.verdict.findings:
        click.echo(f"  {finding.text}")
    if result.rows:
        print_table(result.rows)
    for remark in result.remarks:
        click.echo(remark)
    click.echo(f"page: {result.page}")
