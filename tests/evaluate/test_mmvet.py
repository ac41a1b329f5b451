"""MM-Vet: the judge's marks read as the official script reads them, and sensibly; retries, and means by capability."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, mmvet
from minipovid.inference.backends import Question

ITEM = {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]}
NAN = float("nan")


def written(folder: Path, items: Any) -> Path:
    file = folder / "mm-vet.json"
    file.write_text(items if isinstance(items, str) else json.dumps(items))
    return file


def answer(judgement: str | None, *capabilities: str, image: str = "a.png") -> Answer:
    truth = {"question": "What is x?", "answer": "-1<AND>-5", "capabilities": capabilities}
    return Answer(Question("v1_0", image, "What is x?", truth, 9), "x = 3", judgement)


# --- the parser ---

# reply, official, robust; None: another try
MARKS = [
    ("0.5", 0.5, 0.5),
    ("0.5\n", 0.5, 0.5),
    ("1.0 |", 1.0, 1.0),
    ("", None, None),
    (" 0.5", None, 0.5),
    ("1.5", None, None),
    ("nan", NAN, None),
    ("**0.5**", None, 0.5),
    ("Score: 0.7", None, 0.7),
    ("0.5/1.0", None, 0.5),
    ("-0.5", None, None),
    ("1", 1.0, 1.0),
    ("0.5 or 0.6", 0.5, None),
    ("0.3|", None, 0.3),
    (".4", 0.4, 0.4),
    ("inf", None, None),
]


@pytest.mark.parametrize(("reply", "official", "robust"), MARKS)
def test_a_mark_is_read(reply: str, official: float | None, robust: float | None) -> None:
    """The first seven are the facts' table."""
    assert mmvet.official_mark(reply) == pytest.approx(official, nan_ok=True)
    assert mmvet.robust_mark(reply) == robust


def test_a_judge_that_is_not_understood_is_asked_five_times() -> None:
    """Again with a line more, then hotter. The official script's sixth reply is never read, so it is not asked for."""
    benchmark = mmvet.Benchmark()
    asked = [benchmark.ask(answer(None), attempt) for attempt in range(6)]
    requests = [each for each in asked if each is not None]
    assert len(requests) == 5 and asked[5] is None
    assert [each.temperature for each in requests] == [0.0, 0.0, 0.5, 1.0, 1.5]
    assert {each.max_tokens for each in requests} == {3}
    first, *again = [each.turns[0][1] for each in requests]
    assert first.endswith("\n\nWhat is x? | -1 <AND> -5 | x = 3 | ") and requests[0].turns[0][0] == "user"
    assert set(again) == {first + mmvet.AGAIN}


def test_the_official_text_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "shots.txt").write_text("Q | T | A | C\n")
    file = written(tmp_path, {f"v1_{at}": ITEM for at in range(218)})
    benchmark = mmvet.Benchmark(prompt=str(tmp_path / "shots.txt"), again="\nDigit: ")
    requests = [benchmark.ask(answer(None), attempt) for attempt in (0, 1)]
    line = "What is x? | -1 <AND> -5 | x = 3 | "
    assert [each.turns[0][1] for each in requests if each] == [
        f"Q | T | A | C\n\n{line}{end}" for end in ("", "\nDigit: ")
    ]
    exam = benchmark.read(file)
    assert exam.notes == ["MM-Vet, 218 questions, one run of the judge (the paper has the mean of five)."]
    assert exam.files == [file, tmp_path / "shots.txt"]
    assert "own wording" in mmvet.Benchmark(prompt=str(tmp_path / "shots.txt")).read(file).notes[1]


# --- the sums ---


def scores(mode: str, answers: list[Answer]) -> tuple[dict[str, float], list[str]]:
    benchmark = benchmarks.build("mmvet", {"mode": mode})
    sheet = benchmark.grade(answers)
    return benchmark.figures(benchmarks.total(sheet.units)), [mark.verdict for mark in sheet.marks]


def test_marks_by_hand() -> None:
    """1.0 (ocr, math), 0.5 (ocr), unread (rec), no reply (rec).

    Official: total (1 + 0.5 + 0) / 3, ocr 1.5 / 2, math 1, rec 0 / 1. Robust: total 1.5 / 2, and rec of nothing.
    """
    answers = [answer("1.0", "ocr", "math"), answer("0.5", "ocr"), answer("well", "rec"), answer(None, "rec")]
    verdicts = ["1", "0.5", UNPARSED, FAILED]
    assert scores("official", answers) == ({"total": 0.5, "math": 1.0, "ocr": 0.75, "rec": 0.0}, verdicts)
    assert scores("robust", answers) == ({"total": 0.75, "math": 1.0, "ocr": 0.75}, verdicts)


def test_nan_spoils_the_official_sums() -> None:
    found, _ = scores("official", [answer("nan", "ocr"), answer("1.0", "rec")])
    assert math.isnan(found["total"]) and math.isnan(found["ocr"]) and found["rec"] == 1.0
    assert scores("robust", [answer("nan", "ocr"), answer("1.0", "rec")])[0] == {"total": 1.0, "rec": 1.0}


def test_what_nobody_replied_about_counts_nowhere() -> None:
    found, verdicts = scores("official", [answer(None, "ocr")] * 2)
    assert math.isnan(found["total"]) and verdicts == [FAILED] * 2
    assert mmvet.Benchmark().grade([answer(None, "ocr")]).units == {"a.png": {}}


def twin(items: list[tuple[str, list[str]]]) -> dict[str, float]:
    """Lists of marks by capability; a reply's mark by trying every tenth."""
    lists: dict[str, list[float]] = {"total": []}
    for reply, capabilities in items:
        head = reply[: reply.index(" ")] if " " in reply else reply
        mark = next((tenth / 10 for tenth in range(11) if head.strip() in (f"{tenth / 10}", f"{tenth / 10:.2f}")), 0.0)
        for name in ["total", *capabilities]:
            lists.setdefault(name, []).append(mark)
    return {name: sum(marks) / len(marks) for name, marks in lists.items()}


@pytest.mark.parametrize("seed", range(10))
def test_a_twin_comes_to_the_same(seed: int) -> None:
    draw = random.Random(seed)
    replies = ["0.5", "0.50 |", "1.0", "0.0\n", " 0.4", "1.4", "0.7 because", "none", "", "0.1 0.2"]
    capabilities = ["rec", "ocr", "know", "gen", "spat", "math"]
    items = [(draw.choice(replies), draw.sample(capabilities, draw.randint(1, 4))) for _ in range(218)]
    answers = [answer(reply, *needs, image=f"{at}.png") for at, (reply, needs) in enumerate(items)]
    assert scores("official", answers)[0] == pytest.approx(twin(items))


# --- the questions ---


def test_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = written(tmp_path, {"v1_0": ITEM, "v1_1": {**ITEM, "imagename": "b.jpg", "capability": ["rec", "rec"]}})
    exam = mmvet.Benchmark(suffix=" Think.").read(tmp_path)
    first, second = exam.questions
    assert (first.id, first.image, first.prompt, first.max_tokens) == (
        "v1_0",
        "images/v1_0.png",
        "What is x? Think.",
        1024,
    )
    assert first.truth == {"question": "What is x?", "answer": "-1<AND>-5", "capabilities": ["math", "ocr"]}
    assert second.truth["capabilities"] == ["rec"] and exam.files == [file]
    assert exam.notes[0] == "mm-vet.json has 2 questions, and MM-Vet 218."
    assert "own wording" in exam.notes[1] and "not official" in exam.notes[1]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1]", 'is not MM-Vet\'s mm-vet.json: it should be one object, {"v1_0": {...}, ...}.'),
        ('{"v1_0": ', "is not MM-Vet's mm-vet.json: Expecting value: line 1 column 10 (char 9)."),
        ({"v1_0": {"question": "?"}}, ": v1_0 is not a question of MM-Vet; it needs imagename, question, answer and"),
        ({"v1_0": 3}, ": v1_0 is not a question of MM-Vet; it needs imagename, question, answer and"),
        ({"v1_0": {**ITEM, "answer": 5}}, ": v1_0 is not a question of MM-Vet; it needs imagename, question, answer"),
        (
            f'{{"v1_0": {json.dumps(ITEM)}, "v1_0": {json.dumps(ITEM)}}}',
            "has the question v1_0 twice; remove one.",
        ),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(MinipovidError) as caught:
        mmvet.Benchmark().read(file)
    assert str(caught.value).startswith(str(file)) and sentence in str(caught.value)


def test_a_folder_without_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as caught:
        mmvet.Benchmark().read(tmp_path)
    assert str(caught.value) == f"{tmp_path} holds no mm-vet.json; take {mmvet.Benchmark.source}."
