"""MMHal-Bench: the judge's ratings read as the official script reads them, and sensibly; what is counted of them."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, mmhal
from minipovid.images.embedded import Embedded
from minipovid.inference.backends import Question


def row(**other: Any) -> dict[str, Any]:
    held = {
        "question_type": "counting",
        "image_src": "https://example.org/8/boats_o.jpg",
        "image_content": ["Boat", "Tree"],
        "question": "How many boats are there?",
        "gt_answer": "There are two boats.",
    }
    return {**held, **other}


def written(folder: Path, rows: Any) -> Path:
    file = folder / "response_template.json"
    file.write_text(json.dumps(rows))
    return file


def answer(judgement: str | None, kind: str = "counting", image: str = "a.jpg") -> Answer:
    truth = {"type": kind, "content": "Boat, Tree", "question": "How many {}?", "answer": "Two."}
    return Answer(Question("0", image, "How many {}?", truth, 9), "I see {two}.", judgement)


# --- the parser ---

# reply, official, robust
RATINGS = [
    ("Rating: 5", 5, 5),
    ("**Rating: 5**", 5, 5),
    ("**Rating:** 5", None, 5),
    ("Rating : 5", None, 5),
    ("Rating:5", None, 5),
    ("RATING: 6", 6, 6),
    ("Rating: 5, or rather rating: 3", None, None),
    ("Rating: 5. Again, rating: 5", 5, 5),
    ("Rating: 10", 1, None),
    ("Rating: 2.5", 2, None),
    ("", None, None),
    ("Rating: 7", None, None),
    ("Rating is 4", None, 4),
    ("Rating: 3/6", 3, 3),
    ("<think>maybe rating: 2</think>\nRating: 0", None, 0),
    ("Rating = 1", None, 1),
    ("Its operating: 4", 4, None),
]


@pytest.mark.parametrize(("reply", "official", "robust"), RATINGS)
def test_a_rating_is_read(reply: str, official: int | None, robust: int | None) -> None:
    """The first eleven are the facts' table, where 0 stands for what was not found."""
    assert mmhal.official_rating(reply) == official
    assert mmhal.robust_rating(reply) == robust
    for mode, wanted in (("official", official), ("robust", robust)):
        assert mmhal.Benchmark(mode=mode).understands(answer(""), reply) == (wanted is not None)  # type: ignore[arg-type]


# --- the sums ---


def scores(mode: str, answers: list[Answer]) -> tuple[dict[str, float], list[str]]:
    benchmark = benchmarks.build("mmhal", {"mode": mode})
    sheet = benchmark.grade(answers)
    return benchmark.figures(benchmarks.total(sheet.units)), [mark.verdict for mark in sheet.marks]


def test_ratings_by_hand() -> None:
    """Ratings 6, 3, 2, unread, no reply.

    Official: (6 + 3 + 2 + 0) / 4 = 2.75; below three: 2 of 4; tells (3 + 0 + 2 + 0) / 12. Robust leaves the unread out:
    11/3, 1 of 3, 5/9. By type: attribute 6 and 3, other 2 (and 0).
    """
    kinds = ["attribute", "attribute", "other", "other", "other"]
    replies = ["Rating: 6", "Rating: 3", "Rating: 2", "no idea", None]
    answers = [answer(reply, kind) for reply, kind in zip(replies, kinds, strict=True)]
    verdicts = ["6", "3", "2", UNPARSED, FAILED]
    official = {"score": 2.75, "hallucination_rate": 0.5, "informativeness": 5 / 12}
    robust = {"score": 11 / 3, "hallucination_rate": 1 / 3, "informativeness": 5 / 9}
    assert scores("official", answers) == ({**official, "attribute/rating": 4.5, "other/rating": 1.0}, verdicts)
    found, said = scores("robust", answers)
    assert found == pytest.approx({**robust, "attribute/rating": 4.5, "other/rating": 2.0}) and said == verdicts


def test_what_is_right_invents_nothing() -> None:
    """From 3 on; what was not read is wrong officially, where it is rated 0, and nobody knows robustly."""
    answers = [answer(reply) for reply in ("Rating: 2", "Rating: 3", "well")]
    assert [mark.right for mark in mmhal.Benchmark().grade(answers).marks] == [False, True, False]
    assert [mark.right for mark in mmhal.Benchmark(mode="robust").grade(answers).marks] == [False, True, None]


def test_what_nobody_replied_about_counts_nowhere() -> None:
    found, verdicts = scores("official", [answer(None)] * 3)
    assert verdicts == [FAILED] * 3 and all(math.isnan(value) for value in found.values())
    sheet = mmhal.Benchmark().grade([answer(None)])
    assert sheet.units == {"a.jpg": {}} and sheet.marks[0].right is None


def twin(replies: list[str]) -> tuple[float, float, float]:
    """The official rules once more, by regular expression: which digits follow "rating: "."""
    ratings = []
    for reply in replies:
        digits = set(re.findall(r"rating: ([0-6])", reply.lower()))
        ratings.append(int(digits.pop()) if len(digits) == 1 else 0)
    informative = [(0, 1, 2, 0, 1, 2, 3)[rating] for rating in ratings]
    n = len(ratings)
    return sum(ratings) / n, len([r for r in ratings if r in (0, 1, 2)]) / n, sum(informative) / 3 / n


@pytest.mark.parametrize("seed", range(20))
def test_a_twin_comes_to_the_same(seed: int) -> None:
    draw = random.Random(seed)
    parts = ["Rating: ", "rating:", "RATING: ", "**", "3", "6", "0", "10", "2.5", "\n", " ", "fine ", "Rating: 5"]
    replies = ["".join(draw.choices(parts, k=draw.randint(0, 6))) for _ in range(96)]
    found, _ = scores("official", [answer(reply, image=f"{at}.jpg") for at, reply in enumerate(replies)])
    assert [found[name] for name in ("score", "hallucination_rate", "informativeness")] == pytest.approx(twin(replies))


# --- the questions and the judge's ---


def test_the_file_is_read(tmp_path: Path) -> None:
    """The type is that of the row's place officially, and robustly what the row says."""
    rows = [row(), row(image_src="http://x/y/b.png?z=1", question_type="holistic")]
    (tmp_path / "images").mkdir()
    file = written(tmp_path, rows)
    exam = mmhal.Benchmark().read(tmp_path)
    first, second = exam.questions
    assert (first.id, first.image, first.prompt) == ("0", "images/boats_o.jpg", "How many boats are there?")
    assert (second.image, second.max_tokens, exam.files) == ("images/b.png", 1024, [file])
    assert [each.truth["type"] for each in exam.questions] == ["attribute", "adversarial"]
    robust = mmhal.Benchmark(mode="robust", suffix=" Be brief.").read(file)
    assert [each.truth["type"] for each in robust.questions] == ["counting", "holistic"]
    assert robust.questions[0].prompt == "How many boats are there? Be brief."
    assert exam.notes[0] == "response_template.json has 2 questions, and MMHal-Bench 96."
    assert "own wording" in exam.notes[1] and "not official" in exam.notes[1]


def test_the_whole_benchmark_says_so(tmp_path: Path) -> None:
    assert mmhal.Benchmark().read(written(tmp_path, [row()] * 96)).notes[0] == "MMHal-Bench, 96 questions."


def test_a_picture_may_lie_in_the_file(tmp_path: Path) -> None:
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "PNG")
    file = tmp_path / "mmhal-bench_with_image.jsonl"
    file.write_text(json.dumps(row(image=base64.b64encode(held.getvalue()).decode())))
    image = mmhal.Benchmark().read(file).questions[0].image
    assert isinstance(image, Embedded) and image.data == held.getvalue()


def test_the_judge_is_asked_once(tmp_path: Path) -> None:
    """Braces in an answer stay what they are."""
    benchmark = mmhal.Benchmark()
    request = benchmark.ask(answer(None), 0)
    assert request is not None and benchmark.ask(answer(None), 1) is None
    ((role, text),) = request.turns
    assert (role, request.temperature, request.max_tokens) == ("user", 0.0, 1024)
    assert text.endswith(
        "In the picture: Boat, Tree\nQuestion: How many {}?\nA person answered: Two.\n"
        "The assistant answered: I see {two}.\n"
    )
    assert text.count("## Case") == 5
    (tmp_path / "own.txt").write_text("A {} B {} C {} D {} {E}")
    asked = mmhal.Benchmark(prompt=str(tmp_path / "own.txt")).ask(answer(None), 0)
    assert asked is not None and asked.turns[0][1] == "A Boat, Tree B How many {}? C Two. D I see {two}. {E}"


def test_an_official_template_is_told_apart(tmp_path: Path) -> None:
    file = written(tmp_path, [row()] * 96)
    (tmp_path / "own.txt").write_text("{}{}{}{}")
    exam = mmhal.Benchmark(prompt=str(tmp_path / "own.txt")).read(file)
    assert exam.notes == ["MMHal-Bench, 96 questions."] and exam.files == [file, tmp_path / "own.txt"]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row(), row(gt_answer=None)], "row 2 is not a question of MMHal-Bench; it needs question, gt_answer, "),
        ([{"image_src": "a"}], "row 1 is not a question of MMHal-Bench; it needs question, gt_answer, "),
        ([row(image_src=3)], "row 1 is not a question of MMHal-Bench; it needs question, gt_answer, "),
        ([row(), "x"], "row 2 is not a question of MMHal-Bench; it needs question, gt_answer, "),
        ([row(image="data:image/png;base64,AAAA")], "(image holds 3 bytes that are no picture (b'\\x00\\x00\\x00'))."),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, rows: Any, sentence: str) -> None:
    file = written(tmp_path, rows)
    with pytest.raises(MinipovidError) as caught:
        mmhal.Benchmark().read(file)
    assert str(caught.value).startswith(str(file)) and sentence in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as caught:
        mmhal.Benchmark().read(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no response_template.json or mmhal-bench_answer_template.json or "
        f"mmhal-bench_with_image.jsonl; take {mmhal.Benchmark.source}."
    )
    written(tmp_path, [row()])
    (tmp_path / "p.txt").write_text("{} only")
    with pytest.raises(MinipovidError) as caught:
        mmhal.Benchmark(prompt=str(tmp_path / "p.txt")).read(tmp_path)
    assert str(caught.value) == (
        f"The judge's prompt {tmp_path}/p.txt needs {{}} 4 times, for what is in the picture, the question, the "
        "correct answer, the answer to rate."
    )
    with pytest.raises(MinipovidError, match="The judge's prompt /none cannot be read: "):
        mmhal.Benchmark(prompt="/none").read(tmp_path)
    with pytest.raises(MinipovidError, match="mmhal: .*prompts"):
        benchmarks.build("mmhal", {"prompts": "x"})
