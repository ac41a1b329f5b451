"""README.md and docs/ against the program: every command line, link, path and key, and the tables of names."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from documents import PAGES, ROOT, anchors, block, links, minipovid_lines, prose, quoted, shell_lines, table

from minipovid.cli import main
from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.pairs import formats
from minipovid.recipe import read as recipes
from minipovid.recipe import run_folder, schema
from minipovid.train import plan
from minipovid.train.plan.cards import CARDS

every_page = pytest.mark.parametrize("page", PAGES)
COPIES = {"my.yaml": "llava7b_qlora"}  # what a reader's own recipe is a copy of


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `minipovid ...` names, and the words behind it."""
    command: click.Command = main
    while isinstance(command, click.Group) and words[1:]:
        inner = command.get_command(click.Context(command), words[1])
        if inner is None:
            raise LookupError(" ".join(words))
        command, words = inner, words[1:]
    return command, words[1:]


def options(command: click.Command) -> set[str]:
    """A command's own, and what each command below it has."""
    own = {"--help", *(name for each in command.params for name in (*each.opts, *each.secondary_opts))}
    return own.union(*map(options, command.commands.values())) if isinstance(command, click.Group) else own


def keys(section: type, prefix: str = "") -> set[str]:
    """Every dotted key of a recipe's section."""
    names: set[str] = set()
    for name, info in section.model_fields.items():  # type: ignore[attr-defined]
        names.add(prefix + name)
        for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, schema.BaseModel):
                names |= keys(inner, f"{prefix}{name}.")
    return names


def named(page: str, mark: str) -> list[str]:
    """The names in a table's first column."""
    return [row[0].strip("`") for row in table(page, mark)]


def floors_test() -> ModuleType:
    """tests/test_floors.py, which knows the rooms."""
    spec = importlib.util.spec_from_file_location("floors", ROOT / "tests" / "test_floors.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Command lines ---


@every_page
def test_every_command_line_parses(page: str) -> None:
    """Subcommand, options and number of arguments; nothing is run. The keys that it sets are keys of its recipe."""
    for words in minipovid_lines(page):
        command, rest = command_of(words)
        parent = click.Context(main, **main.context_settings)  # click keeps the first help option that it makes
        params = command.make_context(words[1], rest, parent=parent).params
        if command.name in ("train", "plan"):
            name = COPIES.get(params["recipe"], params["recipe"])
            recipes.read(recipes.find(name), params["overrides"])


def test_they_are_many() -> None:
    assert sum(len(minipovid_lines(page)) for page in PAGES) >= 30
    assert len(minipovid_lines("README.md")) >= 6
    assert sum(len([code for code in quoted(page) if code.startswith("minipovid ")]) for page in PAGES) >= 15


@every_page
def test_every_command_in_a_sentence_exists(page: str) -> None:
    """`minipovid pairs show FILE`: the command, and the options that stand with it."""
    for code in quoted(page):
        words = code.split()
        if words[0] == "minipovid" and words[1:] and words[1] != "COMMAND":
            command, rest = command_of(words)
            assert {word for word in rest if word.startswith("--")} <= options(command), code


@every_page
def test_every_option_in_a_sentence_is_some_commands(page: str) -> None:
    for code in quoted(page):
        if code.startswith("--"):
            assert code.split()[0] in options(main), code


@every_page
def test_every_other_program_of_ours_takes_its_options(page: str) -> None:
    """`python perf/step.py --device cpu`."""
    for words in shell_lines(page):
        if words[0] == "python" and words[1].endswith(".py"):
            source = (ROOT / words[1]).read_text(encoding="utf-8")
            for word in words[2:]:
                assert not word.startswith("--") or f'add_argument("{word}"' in source, words


def test_the_help_is_what_the_program_prints() -> None:
    printed = CliRunner().invoke(main, ["--help"], prog_name="minipovid").output.strip()
    assert block("docs/commands.md", "help").strip() == printed


# --- Links, paths, keys ---


@every_page
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        there = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert there.is_file(), target
        if anchor:
            assert anchor in anchors(there.relative_to(ROOT).as_posix()), target


@every_page
def test_every_path_into_the_repository_exists(page: str) -> None:
    """NAME stands for whatever the reader calls it."""
    paths = re.findall(r"(?<![\w/])(?:minipovid|tests|perf|recipes)/[\w./-]*\w", prose(page))
    for path in paths:
        assert "NAME" in path or (ROOT / path).exists(), path
    assert page != "docs/house.md" or len(paths) >= 25


@every_page
def test_every_key_is_one_of_the_recipes_or_a_benchmarks(page: str) -> None:
    """`data.held_out`, `loss.anchor`, `chair.words`, `noise.cache_gib`."""
    losses = {name: shelf.load("train.losses", name).Loss for name in shelf.names("train.losses")}
    marks = {name: shelf.load("evaluate.benchmarks", name).Benchmark for name in shelf.names("evaluate.benchmarks")}
    fields = [("loss", each) for each in losses.values()] + list(marks.items())
    known = keys(schema.Recipe) | {
        f"{head}.{field.name}" for head, each in fields for field in dataclasses.fields(each)
    }
    heads = {key.split(".")[0] for key in known if "." in key}
    for code in quoted(page):
        key = re.match(r"([a-z_]+\.[a-z_.]+)(?:: .*)?$", code)
        if key and key[1].split(".")[0] in heads and not key[1].endswith((".py", ".yaml", ".json", ".jsonl", ".html")):
            assert key[1] in known or key[1] == "loss.name", code


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (test_every_command_line_parses, "```sh\nminipovid trian tinyworld\n```"),
        (test_every_command_line_parses, "```sh\nminipovid train tinyworld --outt x\n```"),
        (
            test_every_command_line_parses,
            "```sh\naccelerate launch -m minipovid train tinyworld --set lora.rank=3\n```",
        ),
        (test_every_command_line_parses, "```sh\npip install . && minipovid train llava7b\n```"),
        (test_every_command_in_a_sentence_exists, "Run `minipovid\npairs make2 FILE`."),
        (test_every_command_in_a_sentence_exists, "Run `minipovid ask RUN --judge NAME`."),
        (test_every_option_in_a_sentence_is_some_commands, "With `--quants q8_0`."),
        (test_every_other_program_of_ours_takes_its_options, "```sh\npython perf/step.py --gpu\n```"),
        (test_every_link_leads_somewhere, "See [there](nowhere.md)."),
        (test_every_link_leads_somewhere, "See [there](pairs.md#a-teacher2)."),
        (test_every_path_into_the_repository_exists, "See `minipovid/losses/dpo.py`."),
        (test_every_key_is_one_of_the_recipes_or_a_benchmarks, "Set `data.max_len: 3`."),
        (test_every_key_is_one_of_the_recipes_or_a_benchmarks, "Set `pope.eech`."),
    ],
)
def test_a_planted_fault_is_caught(check: Callable[[str], None], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PAGES, "docs/planted.md", text)
    with pytest.raises((AssertionError, LookupError, click.UsageError, MinipovidError)):
        check("docs/planted.md")


# --- Tables that repeat what the code knows ---


def test_the_benchmarks() -> None:
    """Every benchmark, and no other; a judge where the module asks one."""
    readers = {row[0].strip("`"): row[2] for row in table("docs/evaluate.md", "benchmarks")}
    assert sorted(readers) == shelf.names("evaluate.benchmarks")
    judged = {name for name in readers if hasattr(shelf.load("evaluate.benchmarks", name).Benchmark, "ask")}
    assert judged == {name for name, reader in readers.items() if "judge" in reader}


def test_the_formats() -> None:
    """Every format, and whether it holds pairs, good answers or either."""
    holds = {row[0].strip("`"): row[2] for row in table("docs/pairs.md", "formats")}
    assert list(holds) == shelf.names("pairs.formats")
    assert [name for name, what in holds.items() if "pairs" in what] == formats.formats("read")
    assert [name for name, what in holds.items() if "good answers" in what] == formats.formats("seeds")


@pytest.mark.parametrize(
    ("page", "mark", "where"),
    [
        ("docs/pairs.md", "makers", "pairs.make.makers"),
        ("docs/evaluate.md", "backends", "inference.backends"),
        ("docs/methods.md", "losses", "train.losses"),
        ("docs/methods.md", "views", "images.views"),
    ],
)
def test_what_stands_on_a_shelf(page: str, mark: str, where: str) -> None:
    assert named(page, mark) == shelf.names(where)


def test_the_losses_keys() -> None:
    """Each with its default, in the order of the fields."""
    for name, _, settings in table("docs/methods.md", "losses"):
        fields = dataclasses.fields(shelf.load("train.losses", name.strip("`")).Loss)
        defaults = [each.default if isinstance(each.default, str) else f"{each.default:g}" for each in fields]
        assert settings == ", ".join(f"`{each.name}` {value}" for each, value in zip(fields, defaults, strict=True))


def test_the_models() -> None:
    """A family's page and README speak of each family."""
    for name in shelf.names("models.families"):
        for page in ("README.md", "docs/train.md"):
            assert re.search(name, PAGES[page], re.IGNORECASE), (page, name)


def test_the_cards() -> None:
    """The cards that plan knows, and what it predicts for both recipes there."""
    words = {"yes": "fits", "tight": "tight", "no": "does not fit"}
    names = ("llava7b_8gb", "llava7b_qlora")
    forecasts = [plan.predict(recipes.read(recipes.find(name))).cards for name in names]
    assert table("README.md", "cards") == [
        [card.name, f"{card.gib:g}", *(f"{on.peak_gib:.1f}, {words[on.word]}" for on in both)]
        for card, both in zip(CARDS, zip(*forecasts, strict=True), strict=True)
    ]


def test_the_least_memory_and_the_hours() -> None:
    """As docs/train.md has them, and the recipe's comment its hours: of POVID's pairs, three epochs and one."""
    page = " ".join(PAGES["docs/train.md"].split())
    for name in ("llava7b_8gb", "llava7b_qlora"):
        forecast = plan.predict(recipes.read(recipes.find(name)))
        assert re.search(rf"`{name}` (?:needs )?{forecast.peak_gib:.1f} GiB", page), name
        sentence = re.split(rf"`{name}` (?:would take )?about ", page)[1].partition(" `")[0]
        hours = {each.card.name: each.seconds_per_pair * 17_184 * 4 / 3600 for each in forecast.cards}
        printed = re.findall(r"(\d+)(?: hours)? on an (RTX \d+)", sentence)
        comment = recipes.find(name).read_text(encoding="utf-8").partition("\nname:")[0].replace("\n#", "")
        printed += re.findall(r"(\d+)(?: hours)? on an (RTX \d+)", comment)
        assert len(printed) >= 2 and printed == [(f"{hours[card]:.0f}", card) for _, card in printed]


def test_the_run_folder() -> None:
    """Every name that run_folder gives, PEFT's own left out."""
    rows = " ".join(row[0] for row in table("docs/train.md", "run folder"))
    parts = [
        value
        for name, value in vars(run_folder).items()
        if name.isupper() and isinstance(value, str) and not name.startswith("ADAPTER_")
    ]
    assert len(parts) >= 12
    for part in parts:
        assert f"`{part.split('{')[0]}" in rows, part


def test_the_programs_that_measure() -> None:
    """Every file of perf/ that is run by itself has its command or its row in docs/speed.md."""
    programs = {path.name for path in (ROOT / "perf").glob("*.py") if "\nif __name__ ==" in path.read_text("utf-8")}
    assert len(programs) >= 8
    assert programs <= {name for name in programs if f"perf/{name}" in PAGES["docs/speed.md"]}


def test_the_rooms_and_the_shelves() -> None:
    floors = floors_test()
    rooms = {row[1].strip("`"): int(row[0]) for row in table("docs/house.md", "rooms")}
    assert rooms == floors.FLOORS and list(rooms.values()) == sorted(rooms.values(), reverse=True)
    shelves = {f"minipovid.{name.replace('/', '.')}" for name in named("docs/house.md", "shelves")}
    assert shelves == floors.shelves()
    page = PAGES["docs/house.md"]
    for name in named("docs/house.md", "shelves"):
        assert f"`minipovid/{name}/NAME.py`" in page, f"docs/house.md does not say how to add to {name}"
