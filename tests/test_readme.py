"""The README: two lines that CI runs, what a newcomer sees, and five commands that do what it says."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from documents import PAGES, README, ROOT, block, links
from PIL import Image

from minipovid.cli import main
from minipovid.cli.demo import FIGURES, one_picture
from minipovid.tinyworld import text
from minipovid.tinyworld.scenes import render, unbiased_scene


@pytest.mark.parametrize("mark", ["ci: demo", "ci: tests"])
def test_the_two_set_up_lines_are_one_line_each(mark: str) -> None:
    assert "\n" not in block("README.md", mark)


def test_it_is_read_in_an_evening() -> None:
    assert len(README.splitlines()) <= 170


def test_nothing_is_left_to_be_filled_in() -> None:
    for page in PAGES.values():
        assert re.findall(r"^[A-Z_]{4,}$", page, re.MULTILINE) == []


@pytest.mark.parametrize("word", ["fine-tune", "dataset"])
def test_it_says_the_words_that_people_search_for(word: str) -> None:
    assert README.lower().count(word) == 1


def test_it_leads_to_every_page() -> None:
    pages = set(PAGES) - {"README.md"}
    assert len(pages) >= 8
    assert pages <= set(links("README.md"))


def test_its_picture_is_small() -> None:
    picture = ROOT / "docs" / "report.png"
    assert "docs/report.png" in links("README.md") and picture.stat().st_size < 150_000
    with Image.open(picture) as image:
        assert image.format == "PNG" and image.width >= 600


def test_its_lines_of_output_are_the_demos() -> None:
    """The names of the figures, in the demo's order; and what it tells of one picture."""
    head, *lines = block("README.md", "demo: figures").splitlines()
    assert head.split() == ["figure", "before", "after", "change", "95", "%", "p"]
    assert [line[: head.index("before")].strip() for line in lines] == list(FIGURES)
    picture = block("README.md", "demo: one picture").splitlines()
    assert [line[:13].strip() for line in picture] == ["in it", "before", "after", "all"]
    shown = inspect.getsource(one_picture)
    assert all(f'"{line[:13].strip()}": ' in shown for line in picture)


@pytest.mark.slow
def test_its_five_commands_lead_from_pictures_to_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the tiny world's model in the 7B's place, for a step of each stage; else word for word."""
    five = [shlex.split(line)[1:] for line in block("README.md", "five commands").splitlines()]
    assert [words[0] for words in five] == ["pairs", "pairs", "train", "export", "ask"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(40):
        scene = unbiased_scene(f"photo {number}")
        name = "harbour.jpg" if not number else f"{number:02}.png"
        render(scene).save(tmp_path / "photos" / name)
        (tmp_path / "photos" / name).with_suffix(".txt").write_text(text.describe(scene).text)
    for words in five:
        if words[0] == "train":
            words = ["train", "tinyworld", *words[2:], "--set", "train.max_steps=1"]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == 0, (words, result.output)
    assert (tmp_path / "mine" / "pairs.jsonl").read_text().count("\n") == 40
    assert result.stdout.strip()
