"""What commands print: tables, JSON, progress. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, alone on the last line of stdout.")


def bars(unit: str = "B", scaled: bool = True) -> Callable[[str, int, int], None]:
    """A progress bar per file that is written, on a terminal; called with (file name, bytes so far, bytes in all)."""
    from tqdm import tqdm

    by_name: dict[str, Any] = {}

    def show(name: str, done: int, total: int) -> None:
        if name not in by_name:
            quiet = not sys.stderr.isatty()
            by_name[name] = tqdm(total=total, desc=name, unit=unit, unit_scale=scaled, disable=quiet)
        by_name[name].update(done - by_name[name].n)

    return show


def print_result(result: Mapping[str, Any], as_json: bool) -> None:
    """A command's result: lists of rows and groups of groups as tables, all else as one line each."""
    if as_json:
        print_json(result)
        return
    for key, value in result.items():
        if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
            print_table([{key: name, **row} for name, row in value.items()])
        elif isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
            print_table(value)
        elif isinstance(value, Mapping):
            print_table([{key: name, "": cell(each)} for name, each in value.items()])
        else:
            click.echo(f"{key}: {cell(value)}")


def print_json(value: Mapping[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows under their headings, as wide as their longest entry; numbers stand to the right."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    cells = [[cell(row.get(head, "")) for head in heads] for row in rows]
    widths = [max(len(line[column]) for line in [heads, *cells]) for column in range(len(heads))]
    right = [all(isinstance(row.get(head), (int, float)) for row in rows) for head in heads]
    for line in [heads, *cells]:
        columns = zip(line, widths, right, strict=True)
        click.echo("  ".join(text.rjust(width) if r else text.ljust(width) for text, width, r in columns).rstrip())


def cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.4g}"
    return str(value)
