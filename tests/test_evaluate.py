"""Questions go picture by picture to a backend and come back in order; answers and scores land in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minipovid import demo, evaluate
from minipovid.errors import MinipovidError
from minipovid.types import Question


class Scripted:
    """A backend that says yes of the first picture and no of the others, and remembers the order."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def answer(self, image: Path, prompt: str, max_tokens: int = 256) -> str:
        self.asked.append((image.name, prompt))
        return "Yes." if image.name == "a.png" else "No."

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.fixture
def exam_file(tmp_path: Path) -> Path:
    rows = [("b.png", "q1", "no"), ("a.png", "q2", "yes"), ("b.png", "q3", "yes"), ("a.png", "q4", "no")]
    lines = [
        json.dumps({"question_id": number, "image": image, "text": text, "label": label})
        for number, (image, text, label) in enumerate(rows)
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path / "questions.jsonl"


def test_each_picture_once_and_answers_in_order(exam_file: Path) -> None:
    backend = Scripted()
    questions = evaluate.shelf.load("benchmarks", "pope").questions(exam_file)
    answers = evaluate.ask(questions, exam_file.parent, backend, "x")
    assert [image for image, _ in backend.asked] == ["a.png", "a.png", "b.png", "b.png"]
    assert [answer.question.prompt for answer in answers] == ["q1", "q2", "q3", "q4"]
    assert [answer.text for answer in answers] == ["No.", "Yes.", "No.", "Yes."]


def test_equal_ids_do_not_mix_answers_up(exam_file: Path) -> None:
    """Two questions of one id, as a careless file may have, keep their own answers."""
    questions = [Question("1", name, "?", {}, 5) for name in ("b.png", "a.png")]
    answers = evaluate.ask(questions, exam_file.parent, Scripted(), "x")
    assert [answer.text for answer in answers] == ["No.", "Yes."]


def test_evaluate_writes_answers_and_scores(exam_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth no yes yes no, said no yes no yes: accuracy 1/2, false yes 1/2; earlier scores are kept."""
    monkeypatch.setattr(evaluate.Runtime, "open", lambda *_: Scripted())
    run = tmp_path / "run"
    run.mkdir()
    (run / "scores.json").write_text('{"old.gguf": {"accuracy": 1.0}}')
    scores = evaluate.evaluate(run, [f"pope={exam_file}"])
    assert scores["questions.gguf"]["accuracy"] == scores["questions.gguf"]["false_yes"] == 0.5
    assert json.loads((run / "scores.json").read_text()) == {"old.gguf": {"accuracy": 1.0}} | scores
    lines = (run / "eval" / "questions.gguf.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {"id": "1", "image": "a.png", "prompt": "q2", "answer": "Yes."}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("pope", "'pope' names no benchmark; write NAME=FILE, such as pope=questions.json, or tinyworld."),
        ("pope=nowhere.json", "There is no question file nowhere.json."),
    ],
)
def test_bad_specs(spec: str, sentence: str) -> None:
    with pytest.raises(MinipovidError) as error:
        evaluate.find(spec)
    assert str(error.value) == sentence


def test_tinyworld_is_four_exams() -> None:
    exams = evaluate.find("tinyworld")
    assert [exam.name for exam in exams] == ["pope_adversarial", "pope_popular", "pope_random", "chair"]
    for exam in exams:
        questions = evaluate.shelf.load("benchmarks", exam.benchmark).questions(exam.file)
        assert len(questions) == (200 if exam.name == "chair" else 600)
        assert (exam.root / questions[0].image).is_file()


@pytest.mark.parametrize(
    ("false_yes", "chair_i", "recall", "cured"),
    [(0.19, 0.05, 0.8, True), (0.21, 0.05, 0.8, False), (0.19, 0.07, 0.8, False), (0.19, 0.05, 0.79, False)],
)
def test_cured_is_a_third_less_without_loss_of_recall(
    false_yes: float, chair_i: float, recall: float, cured: bool
) -> None:
    before = {"false yes, adversarial": 0.3, "CHAIR_i": 0.09, "object recall": 0.8}
    after = {"false yes, adversarial": false_yes, "CHAIR_i": chair_i, "object recall": recall}
    assert demo.is_cured(before, after) is cured
