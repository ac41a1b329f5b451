"""`minipovid pairs`: the commands on small real files, with their exit codes and sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from minipovid.cli import main
from minipovid.pairs.make import makers
from minipovid.pairs.make.makers import rule

ANSWER = "A red cup stands to the left of a large dog on the table."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LLaVA file of three good answers, and pictures; no teacher in the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MINIPOVID_TEACHER_API_KEY", "MINIPOVID_TEACHER_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    rows = []
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        talk = [{"from": "human", "value": "<image>\nDescribe it."}, {"from": "gpt", "value": f"{ANSWER} {number}."}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    return tmp_path


def pairs(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["pairs", *map(str, arguments)], prog_name="minipovid")


def last(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_made_by_rule_then_checked_and_taken_to_trl(folder: Path) -> None:
    made = last(pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--json"))
    assert (made["rows"], made["pairs"], made["failures"], made["left"]) == (3, 3, 0, 0)
    again = pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--estimate", "--json")
    assert last(again)["finished"] == 3
    file = folder / "made" / "pairs.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(row["chosen"] != row["rejected"] and row["spans"] for row in rows)
    exported = pairs("export", file, "--to", folder / "trl.parquet", "--images", folder)
    assert exported.stdout == f"{folder / 'trl.parquet'}\n"
    imported = last(pairs("import", folder / "trl.parquet", "--to", folder / "back", "--json"))
    assert (imported["format"], imported["pairs"], imported["pictures"]) == ("trl", 3, 3)
    checked = pairs("check", folder / "back" / "pairs.jsonl", "--json")
    assert json.loads(checked.stdout.splitlines()[-1])


def test_a_teacher_must_be_named_and_reachable(folder: Path) -> None:
    where = [folder / "llava.json", "--to", folder / "made"]
    unnamed = pairs("make", *where)
    assert unnamed.exit_code == 2 and "name it with --model, or take --maker rule" in unnamed.stderr
    priceless = pairs("make", *where, "--model", "gpt", "--max-cost", "1")
    assert priceless.exit_code == 2 and "--max-cost needs --price" in priceless.stderr
    keyless = pairs("make", *where, "--model", "gpt")
    assert keyless.exit_code == 2 and "MINIPOVID_TEACHER" in keyless.stderr
    assert "Traceback" not in unnamed.stderr + priceless.stderr + keyless.stderr


def test_an_estimate_needs_no_server_and_no_key(folder: Path) -> None:
    wanted = ["--to", folder / "made", "--model", "gpt", "--estimate", "--json"]
    found = last(pairs("make", folder / "llava.json", *wanted))
    assert (found["rows"], found["requests"]) == (3, 3) and not (folder / "made").exists()


def test_pictures_are_looked_for_before_anybody_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None there: a sentence, and no server is asked for; one missing: its row fails, the others are made."""
    monkeypatch.setenv("MINIPOVID_TEACHER_BASE_URL", "http://127.0.0.1:9/v1")  # nobody answers there
    (folder / "elsewhere").mkdir()
    wanted = ["make", folder / "llava.json", "--to", folder / "made", "--images", folder / "elsewhere"]
    for further in (["--model", "gpt"], ["--maker", "rule"], ["--model", "gpt", "--estimate"]):
        refused = pairs(*wanted, *further)
        assert refused.exit_code == 2 and "No picture was found; name their folder with --images." in refused.stderr
    assert not (folder / "made").exists()
    (folder / "1.png").unlink()
    made = pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--json")
    assert (last(made)["pairs"], last(made)["failures"]) == (2, 1)
    assert last(made)["reasons"] == [{"rows": 1, "reason": f"There is no picture {folder}/1.png."}]
    assert f"1 of 3 rows became no pair; {folder}/made/failures.jsonl says why of each." in made.stderr


def test_the_commonest_reasons_are_said_and_no_pair_at_all_exits_1(folder: Path) -> None:
    """Reasons that differ only in what they quote are one; the first stands for them."""
    rows = json.loads((folder / "llava.json").read_text())
    for row, answer in zip(rows, ["Hmm.", "Oh.", " "], strict=True):
        row["conversations"][1]["value"] = answer
    (folder / "llava.json").write_text(json.dumps(rows))
    made = pairs("make", folder / "llava.json", "--to", folder / "made", "--maker", "rule", "--json")
    assert made.exit_code == 1
    first, second = json.loads(made.stdout)["reasons"]
    assert first["rows"] == 2 and "in 'Hmm.'" in first["reason"]
    assert second == {"rows": 1, "reason": "the answer is empty"}


def test_what_cannot_be_read_is_one_sentence(folder: Path) -> None:
    for command in (["import", folder / "none.json", "--to", folder / "x"], ["check", folder / "none.json"]):
        refused = pairs(*command)
        assert refused.exit_code == 2 and len(refused.stderr.strip().splitlines()) == 1


def test_an_option_of_the_makers_own_is_a_flag_or_name_and_value(folder: Path) -> None:
    """Both ways make the same pairs, other ones than without; what is left out is the maker's own default."""
    for to, options in (("plain", []), ("flag", ["--seed", "3"]), ("named", ["--option", "seed=3"])):
        last(pairs("make", folder / "llava.json", "--to", folder / to, "--maker", "rule", *options, "--json"))
    plain, flag, named = ((folder / to / "pairs.jsonl").read_bytes() for to in ("plain", "flag", "named"))
    assert plain != flag == named
    (folder / "told.txt").write_text("A cup and a heron.\n")
    for options in (["--count-on", folder / "told.txt"], ["--option", f"count-on={folder}/told.txt"]):
        last(pairs("make", folder / "llava.json", "--to", folder / "to", "--maker", "rule", *options, "--json"))
        told = json.loads((folder / "to" / "make.json").read_text())
        assert told["maker"]["table"] == rule.table(["A cup and a heron."]).digest()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed", "3", "--model", "m"], "The maker povid has no option seed (--seed); it has kind, picture."),
        (["--count-on", "x.txt"], "The maker povid has no option count_on (--count-on); it has kind, picture."),
        (["--maker", "rule", "--kind", "auto"], "The maker rule has no option kind (--kind); it has seed, count_on."),
        (["--maker", "rule", "--no-picture"], "The maker rule has no option picture (--picture); it has seed"),
        (["--maker", "rule", "--option", "strength=2"], "The maker rule has no option strength (--strength); it has"),
        (["--maker", "rule", "--option", "seed=x"], "--maker rule: seed is 'x', but it must be a whole number."),
        (["--maker", "rule", "--option", "seed=["], "--option seed: '[' is not a YAML value"),
        (["--maker", "rule", "--option", "seed"], "--option takes NAME=VALUE, for example seed=3; this is 'seed'."),
    ],
)
def test_what_the_maker_does_not_know_is_refused(folder: Path, options: list[str], sentence: str) -> None:
    refused = pairs("make", folder / "llava.json", "--to", folder / "made", *options)
    assert refused.exit_code == 2 and sentence in refused.stderr and "Traceback" not in refused.stderr
    assert not (folder / "made").exists()


SHOUTING = '''
"""A maker that a stranger wrote: the answer, louder."""
from dataclasses import dataclass
from minipovid.inference.remote import Usage
from minipovid.pairs.make.makers import Outcome
from minipovid.pairs.pair import Pair

@dataclass(frozen=True)
class Options:
    marks: int = 1

def maker(inputs, options):
    return Shouting(options)

@dataclass(frozen=True)
class Shouting:
    options: Options
    workers = 2

    def identity(self): return {"maker": "shouting v1", "marks": self.options.marks}
    def estimate(self, seed, picture): return Usage()
    def stop(self): pass
    def spent(self): return Usage()
    def cost(self, usage): return None
    def make(self, seed, picture):
        loud = seed.answer.upper() + "!" * self.options.marks
        return Outcome(Pair(seed.id, str(seed.image), seed.prompt, seed.answer, loud, {"rejected": "shouting v1"}))
'''


def test_a_new_maker_is_one_file_and_no_edit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "shelf").mkdir()
    (folder / "shelf" / "shouting.py").write_text(SHOUTING)
    monkeypatch.setattr(makers, "__path__", [*makers.__path__, str(folder / "shelf")])
    options = ["--maker", "shouting", "--option", "marks=3", "--json"]
    assert last(pairs("make", folder / "llava.json", "--to", folder / "made", *options))["pairs"] == 3
    rows = [json.loads(line) for line in (folder / "made" / "pairs.jsonl").read_text().splitlines()]
    assert [row["rejected"] for row in rows] == [f"{ANSWER.upper()} {number}.!!!" for number in range(3)]
    assert json.loads((folder / "made" / "make.json").read_text())["maker"] == {"maker": "shouting v1", "marks": 3}
