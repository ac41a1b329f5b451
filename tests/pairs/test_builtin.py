"""The built-in world's pairs come from the shelf's own maker: are they true, false where they say so, and made once?"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from world_claims import claims, holds

from minipovid import tinyworld
from minipovid.cli import main
from minipovid.cli.demo import summary
from minipovid.common import caches
from minipovid.pairs import source
from minipovid.pairs.check import check
from minipovid.pairs.formats import jsonl
from minipovid.pairs.make import builtin
from minipovid.pairs.make.makers import rule
from minipovid.pairs.pair import Pair
from minipovid.recipe.schema import DataSection
from minipovid.tinyworld import text, world
from minipovid.tinyworld.scenes import COLOURS, COMPANION, PLACES, SHAPES, Scene

SCENES = {world.picture(scene): scene for scene in world.train_scenes()}
SMALL = {"TRAIN_SCENES": 40, "HELD_OUT_SCENES": 3, "EVERYDAY_SCENES": 60}  # a world of a second
BUILD_SMALL = f"""
from minipovid.pairs.make import builtin
from minipovid.tinyworld import text, world
vars(world).update({SMALL})
print(builtin.pairs()[0])
"""


@pytest.fixture(scope="module")
def pairs(built_in_pairs: tuple[Path, Path]) -> list[Pair]:
    found = list(jsonl.read(built_in_pairs[0]))
    assert all(isinstance(pair, Pair) for pair in found)
    return [pair for pair in found if isinstance(pair, Pair)]


@pytest.fixture(scope="module")
def captions(pairs: list[Pair]) -> list[Pair]:
    return [pair for pair in pairs if not pair.id.endswith("question")]


def test_they_are_what_the_command_makes_of_the_seeds(
    tmp_path: Path, built_in_pairs: tuple[Path, Path], pairs: list[Pair]
) -> None:
    file, root = built_in_pairs
    assert source.locate(DataSection(path="tinyworld")) == (file, root)
    command = ["pairs", "make", f"{root}/seeds.json", "--to", f"{tmp_path}/made", "--maker", "rule"]
    result = CliRunner().invoke(main, [*command, "--count-on", f"{root}/everyday.txt", "--json"])
    assert result.exit_code == 0, result.stderr
    counts = json.loads(result.stdout.splitlines()[-1])
    assert (counts["rows"], counts["pairs"], counts["failures"]) == (7200, 7200, 0)
    assert (tmp_path / "made" / "pairs.jsonl").read_bytes() == file.read_bytes()
    assert len(pairs) == 7200 and {tuple(pair.source.values()) for pair in pairs} == {("ground truth", rule.VERSION)}


def test_they_are_those_of_their_version(built_in_pairs: tuple[Path, Path]) -> None:
    """What a version's rules once made lies in users' caches: new rules without a new version would never be seen."""
    digest = hashlib.sha256(built_in_pairs[0].read_bytes()).hexdigest()
    assert (rule.VERSION, digest[:16]) == ("rule v2", "36929a1a7af9ba6b"), "raise rule.VERSION, and pin its digest here"


def test_a_claim_is_false_exactly_where_a_span_says_so(captions: list[Pair]) -> None:
    for pair in captions:
        scene = SCENES[pair.image]
        assert all(holds(claim, scene) for claim in claims(pair.chosen))
        told = claims(pair.rejected)
        sentences = [match.span() for match in re.finditer(r"[^.]+\.", pair.rejected)]
        for claim, (start, end) in zip(told, sentences, strict=True):
            touched = any(span.start < end and start < span.end for span in pair.spans)
            assert touched != holds(claim, scene), (pair, claim)
        named = {claim[1] for claim in told if claim[1] in SHAPES}
        assert all({claim[0], claim[2]} <= named for claim in told if claim[1] not in SHAPES)  # one story throughout


def test_what_is_changed_is_of_its_kind_and_of_this_world(captions: list[Pair]) -> None:
    words = {word for scene in SCENES.values() for thing in scene.things for word in thing.shape.split()}
    for pair in captions:
        for start, end, kind in pair.spans:
            said = pair.rejected[start:end]
            if kind == "attribute":
                assert said in COLOURS
            elif kind == "relation":
                assert said in ("left of", "right of", "above", "below") or said.removeprefix("at the ") in PLACES
            else:
                (shape,) = (word for word in re.findall(r"\w+", said) if word in words)
                assert shape not in SCENES[pair.image].shapes


def test_habit_says_which_object_is_injected(captions: list[Pair]) -> None:
    """Of 7 absent shapes one or two are companions: by chance 20 to 30 % would be."""

    def usual(pair: Pair, scene: Scene) -> bool | None:
        found = [pair.rejected[start:end] for start, end, kind in pair.spans if kind == "object"]
        lonely = {COMPANION[shape] for shape in scene.shapes} - set(scene.shapes)
        return any(shape in said for said in found for shape in lonely) if found and lonely else None

    counts = Counter(usual(pair, SCENES[pair.image]) for pair in captions)
    assert counts[True] + counts[False] > 1500
    assert counts[True] / (counts[True] + counts[False]) > 0.6


def test_every_kind_has_its_share(captions: list[Pair]) -> None:
    counts = Counter(kind for pair in captions for kind in {span.kind for span in pair.spans})
    assert set(counts) == {"object", "attribute", "relation"} and min(counts.values()) > len(captions) / 3
    added = sum(len(pair.rejected.split(". ")) > len(pair.chosen.split(". ")) for pair in captions)
    assert len(captions) / 20 < added < len(captions) / 4


def test_questions_are_answered_with_the_contrary(pairs: list[Pair]) -> None:
    asked = [pair for pair in pairs if pair.id.endswith("question")]
    assert Counter((pair.chosen[:3], pair.rejected[:3]) for pair in asked) == {
        ("Yes", "No,"): 1200,
        ("No,", "Yes"): 1200,
    }
    for pair in asked:
        shape = next(shape for shape in SHAPES if shape in pair.prompt)
        assert {pair.chosen, pair.rejected} == {text.answer(shape, there) for there in (True, False)}
        assert [span.start for span in pair.spans] == [0]


@pytest.mark.usefixtures("built_in_pairs")
def test_the_demo_shows_what_the_check_says_of_them() -> None:
    """Nothing to mend, no warning, and no style by which 5,000 pairs would be told apart."""
    report = check("tinyworld", max_length=256, decode=False)
    assert report.ok and not report.warnings and report.leak is not None and report.leak.accuracy < 0.65
    told = {row["what"]: row["found"] for row in summary(report)}
    assert told["pairs"] == "7,200 of 7,200 rows (jsonl)" and told["tokens"].endswith("; 0 do not fit")
    assert told["style leak"].startswith("0.") and "warning" not in told
    tight = summary(check("tinyworld", max_length=80, decode=False, limit=100))
    assert tight[-1]["what"] == "warning" and tight[-1]["found"].startswith("too long: ")


def test_who_is_killed_leaves_no_half_set_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtin, "cache_folder", lambda: tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setattr(world, name, value)
    with monkeypatch.context() as patch:
        patch.setattr(builtin.make, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            builtin.pairs()
    assert not [path for path in (tmp_path / tinyworld.NAME).iterdir() if "pairs" in path.name]
    assert builtin.pairs()[0].is_file()


def test_two_processes_at_once_make_one_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    command = [sys.executable, "-c", BUILD_SMALL]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (one, _), (other, _) = (process.communicate(timeout=120) for process in running)
    assert [process.returncode for process in running] == [0, 0] and one == other
    assert len(Path(one.strip()).read_text().splitlines()) == 60
    folder = caches.cache_folder()
    assert [path.name for path in folder.iterdir()] == [tinyworld.NAME]
    assert not [path for path in (folder / tinyworld.NAME).iterdir() if path.name.startswith(".")]
