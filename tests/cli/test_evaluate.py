"""`minipovid eval` on the command line: the table, the JSON line, the files, and one sentence for bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from minipovid.cli import main
from minipovid.inference import backends


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four questions about two pictures, truth no yes yes no, and answers: no yes no yes, the last one unreadable."""
    rows = [("b.png", "no", "No"), ("a.png", "yes", "Yes"), ("b.png", "yes", "No"), ("a.png", "no", "A dog")]
    with (tmp_path / "q.jsonl").open("w") as questions, (tmp_path / "a.jsonl").open("w") as answers:
        for number, (image, label, said) in enumerate(rows):
            question = {"question_id": number, "image": image, "text": f"q{number}", "label": label}
            questions.write(json.dumps(question) + "\n")
            answers.write(json.dumps({"question_id": number, "text": said}) + "\n")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def test_a_table_and_the_files(folder: Path) -> None:
    """Officially "A dog" is a yes: accuracy 2/4, precision 1/2, recall 1/2; robustly it is nothing, and wrong."""
    asked = ["eval", folder / "run", f"pope={folder / 'q.jsonl'}", "--backend", "predictions"]
    asked += ["--predictions", folder / "a.jsonl"]
    printed = run(*asked)
    assert printed.exit_code == 0
    lines = printed.stdout.split("\n")
    assert lines[0].split() == ["benchmark", "figure", "value", "95", "%"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["pope.predictions", "accuracy", "0.5"],
        ["pope.predictions", "f1", "0.5"],
        ["pope.predictions", "false_yes", "0.5"],
        ["pope.predictions", "words", "1.25"],
    ]
    assert lines[5].startswith("pope.predictions: 4 answers; pope/official/")
    assert lines[6] == "  q.jsonl is none of the published COCO files of POPE (4 questions)."
    robust = run(*asked, "--mode", "robust")
    assert "pope-robust.predictions: 4 answers, 1 could not be read; pope/robust/" in robust.stdout
    told = json.loads(run(*asked, "--json").stdout.split("\n")[-2])
    assert told["pope.predictions"]["figures"]["accuracy"][0] == 0.5
    scores = json.loads((folder / "run" / "scores.json").read_text())
    assert list(scores) == ["pope-robust.predictions", "pope.predictions"]
    assert scores["pope.predictions"] == told["pope.predictions"]


def test_an_option_says_who_answers(folder: Path) -> None:
    """--predictions alone is enough; an option of somebody else is refused."""
    asked = ["eval", folder / "run", f"pope={folder / 'q.jsonl'}", "--predictions", folder / "a.jsonl"]
    assert "pope.predictions: 4 answers" in run(*asked).stdout
    refused = run(*asked, "--backend", "gguf")
    assert refused.exit_code == 2
    assert refused.stderr == "--predictions is an option of the predictions backend, and gguf answers here.\n"


def test_an_option_without_a_flag(folder: Path) -> None:
    """--option does what the flag of that name does, and reaches the backend alone."""
    asked = ["eval", folder / "run", f"pope={folder / 'q.jsonl'}", "--backend", "predictions", "--option"]
    assert "pope.predictions: 4 answers" in run(*asked, f"predictions={folder / 'a.jsonl'}").stdout
    refused = run(*asked, "lora=mine.gguf")
    sentence = "predictions: lora is no option of the predictions backend; it has predictions, answers_column.\n"
    assert (refused.exit_code, refused.stderr) == (2, sentence)
    assert run(*asked, "predictions=3").stderr.startswith("predictions: predictions is 3: ")
    assert run(*asked, "mine").stderr == "--option takes NAME=VALUE; this is 'mine'.\n"


NEW = '''"""Whoever shouts."""
from dataclasses import dataclass
import not_installed

@dataclass(frozen=True)
class Options:
    quant: str = "loud"
    volume: int = 1

class Shouting:
    name, concurrency, decoding = "shouting", 1, {}
    def __init__(self, volume):
        self.volume = volume
    def identity(self):
        return {"volume": self.volume}
    def check(self, questions): ...
    def answers(self, questions, picture):
        yield from ("YES" + self.volume * "!" for _ in questions)
    def close(self): ...

def open(run, options, decoding):
    return Shouting(options.volume)
'''


def test_a_new_backend_is_one_new_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are known from the day it is born, without importing it; a flag that two have names neither."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "shouting.py").write_text(NEW)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path / "shelf")])
    asked = ["eval", folder / "run", f"pope={folder / 'q.jsonl'}"]
    assert run(*asked, "--quant", "q4_k_m").stderr == (
        "--quant is an option of gguf and shouting; say with --backend who answers.\n"
    )
    asked += ["--backend", "shouting", "--option", "volume=3"]
    refused = run(*asked, "--weights", "base")
    assert refused.stderr == "--weights is an option of the hf backend, and shouting answers here.\n"
    assert "minipovid.inference.backends.shouting" not in sys.modules
    (tmp_path / "shelf" / "shouting.py").write_text(NEW.replace("import not_installed\n", ""))
    assert "pope.shouting: 4 answers" in run(*asked, "--quant", "loud").stdout
    assert '"YES!!!"' in (folder / "run" / "eval" / "pope.shouting.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["pope={0}/q.jsonl"], "{0}/run holds no GGUF files; write the files with `minipovid export {0}/run`."),
        (
            ["pope={0}/q.jsonl", "--backend", "llama"],
            "There is no 'llama' among the backends. Known: gguf, hf, openai, predictions.",
        ),
        (
            ["pope={0}/q.jsonl", "--backend", "openai"],
            "This backend asks a server: name the model with --model, ",
        ),
        (["pope={0}/q.jsonl", "--set", "pope.each=many"], "pope: each is 'many', but it must be a whole number."),
        (["pope={0}/q.jsonl", "--set", "each=1"], "--set each: an option has two names, each.KEY=VALUE."),
        (
            ["pope={0}/q.jsonl", "pope:b={0}/q.jsonl", "--backend", "predictions", "--predictions", "{0}/a.jsonl"],
            "--predictions answers one benchmark; name one at a time.",
        ),
        (
            ["pope={0}/q.jsonl", "--images", "{0}/nowhere", "--backend", "predictions", "--predictions", "{0}/a.jsonl"],
            "2 of 2 pictures are not in {0}/nowhere, b.png among them; name their folder with --images.",
        ),
    ],
)
def test_bad_input_is_one_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    (folder / "run").mkdir()
    result = run("eval", folder / "run", *(each.format(folder) for each in arguments))
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence.format(folder)) and result.stderr.count("\n") == 1
    assert not (folder / "run" / "scores.json").exists()
