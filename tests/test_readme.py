"""The README against the program: its help block, its commands, and the two lines that CI runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from minipovid.cli import main
from minipovid.common import shelf
from minipovid.recipe import read as recipe

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block_after(marker: str) -> str:
    """The fenced block that follows an HTML comment."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w*\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no block after <!-- {marker} -->"
    return found.group(1)


def test_the_help_is_what_the_program_prints() -> None:
    printed = CliRunner().invoke(main, ["--help"], prog_name="minipovid").output.strip()
    assert block_after("help").strip() == printed


def test_nothing_is_left_to_be_filled_in() -> None:
    assert re.findall(r"^[A-Z_]{4,}$", README, re.MULTILINE) == []


@pytest.mark.parametrize("line", ["ci: demo", "ci: tests"])
def test_the_two_set_up_lines_are_one_line_each(line: str) -> None:
    assert "\n" not in block_after(line)


def commands() -> list[list[str]]:
    """Every line of a fenced block that begins with minipovid."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("minipovid ")]


def test_every_command_in_it_parses() -> None:
    """Subcommand, options and number of arguments; nothing is run."""
    assert len(commands()) >= 6
    for words in commands():
        command: click.Command = main
        while isinstance(command, click.Group):
            context = click.Context(command)
            command = command.get_command(context, words[1])  # type: ignore[assignment]
            assert command is not None, words
            words = words[1:]
        parent = click.Context(main, **main.context_settings)  # click keeps the first help option that it makes
        command.make_context(words[0], list(words[1:]), parent=parent)


def test_the_recipes_in_it_exist() -> None:
    named = {words[2] for words in commands() if words[1] in ("train", "plan")}
    assert len(named) >= 2
    for name in named:
        recipe.read(recipe.find(name))


def test_its_table_of_benchmarks_is_the_shelf() -> None:
    """Every benchmark, and no other; a judge where the module asks one."""
    rows = re.search(r"<!-- benchmarks -->\n(.*?)\n\n", README, re.DOTALL)
    assert rows
    cells = [line.split(" | ") for line in rows[1].splitlines()[2:]]
    told = {name.strip("|` "): read_by for name, _, read_by, *_ in cells}
    assert sorted(told) == shelf.names("evaluate.benchmarks")
    judged = {name for name in told if hasattr(shelf.load("evaluate.benchmarks", name).Benchmark, "ask")}
    assert judged == {name for name, read_by in told.items() if "judge" in read_by}
