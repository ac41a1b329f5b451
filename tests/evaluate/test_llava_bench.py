"""LLaVA-Bench: pairs of marks read as the official script reads them, and sensibly; the ratio of their means."""

from __future__ import annotations

import json
import math
import random
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, llava_bench
from minipovid.inference.backends import Question

QUESTION = {"question_id": 0, "image": "001.jpg", "text": "What is this?", "category": "conv"}
CONTEXT = {"id": "001", "image": "001.jpg", "caption": "Sea."}
REFERENCE = {"question_id": 0, "text": "The sea.", "answer_id": "x"}


def written(folder: Path, **files: list[dict[str, Any]]) -> Path:
    whole = {"questions": [QUESTION], "context": [CONTEXT], "answers_gpt4": [REFERENCE], **files}
    for name, rows in whole.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def answer(judgement: str | None, category: str = "conv", image: str = "a.jpg") -> Answer:
    truth = {"category": category, "question": "What?", "context": "Sea.", "reference": "The sea."}
    return Answer(Question("0", image, "What?", truth, 9), "A lake.", judgement)


# --- the parser ---

# reply, official, robust; None: not read, which is -1 and -1 officially
PAIRS = [
    ("8 7", (8, 7), (8, 7)),
    ("8,7", (8, 7), (8, 7)),
    ("8.5 7", (8.5, 7), (8.5, 7)),
    ("8, 7", None, (8, 7)),
    ("8 7 ", None, (8, 7)),
    ("8  7", None, (8, 7)),
    ("\n8 7", None, (8, 7)),
    ("8/10 7/10", None, (8, 7)),
    ("8 7\nThe first is better by 1.", (8, 7), (8, 7)),
    ("**8 7**", None, (8, 7)),
    ("Assistant 1: 8\nAssistant 2: 7\nBecause.", None, (8, 7)),
    ("Assistant 1: 8, Assistant 2: 7", None, (8, 7)),
    ("<think>9 9</think>8 7", None, (8, 7)),
    ("eight seven", None, None),
    ("8 7 6", None, None),
    ("80 70", (80, 70), None),
    ("8", None, None),
    ("", None, None),
]


@pytest.mark.parametrize(("reply", "official", "robust"), PAIRS)
def test_two_marks_are_read(reply: str, official: Any, robust: Any) -> None:
    """The first eight are the facts' table."""
    assert llava_bench.official_marks(reply) == official
    assert llava_bench.robust_marks(reply) == robust
    assert llava_bench.Benchmark().understands(answer(""), reply) == (official is not None)


# --- the sums ---


def scores(mode: str, answers: list[Answer]) -> tuple[dict[str, float], list[str]]:
    benchmark = benchmarks.build("llava_bench", {"mode": mode})
    sheet = benchmark.grade(answers)
    return benchmark.figures(benchmarks.total(sheet.units)), [mark.verdict for mark in sheet.marks]


def test_the_published_summary() -> None:
    """(8, 7), (9, 6.5), (8, 5), (9, 8), (-1, -1): means 6.6 and 5.1, 51 / 66 = 77.3 %.

    Robust leaves the unread one out: means 8.5 and 6.625, 77.94 %.
    """
    replies = ["8 7", "9 6.5", "8 5", "9 8", "fine", None]
    found, verdicts = scores("official", [answer(reply) for reply in replies])
    assert found == {"score": 77.3, "reference": 66.0, "model": 51.0, "conv": 77.3}
    assert verdicts == ["8 : 7", "9 : 6.5", "8 : 5", "9 : 8", UNPARSED, FAILED]
    robust, _ = scores("robust", [answer(reply) for reply in replies])
    assert robust == pytest.approx({"score": 6.625 / 0.085, "reference": 85, "model": 66.25, "conv": 6.625 / 0.085})


def test_means_are_rounded_before_they_are_divided() -> None:
    """(1, 1), (1, 1), (1.5, 2): means 1.1667 and 1.3333; 1.333 / 1.167 is 114.2 %, and the true ratio 114.29."""
    answers = [answer("1 1"), answer("1 1"), answer("1.5 2")]
    assert scores("official", answers)[0] == {"score": 114.2, "reference": 11.7, "model": 13.3, "conv": 114.2}
    assert scores("robust", answers)[0]["score"] == pytest.approx(100 * 8 / 7)


def test_categories_are_apart_and_nothing_is_nan() -> None:
    found, _ = scores("official", [answer("8 4"), answer("8 8", "complex"), answer(None, "detail")])
    assert found == {"score": 75.0, "reference": 80.0, "model": 60.0, "complex": 100.0, "conv": 50.0}
    nothing, verdicts = scores("official", [answer(None)])
    assert all(math.isnan(value) for value in nothing.values()) and verdicts == [FAILED]
    zero, _ = scores("official", [answer("0 5")])
    assert math.isnan(zero["score"]) and zero["model"] == 50.0


def twin(rows: list[tuple[str, str]], only: str | None) -> float:
    """In decimal numbers, by hand-made splitting."""
    first, second, n = Decimal(0), Decimal(0), 0
    for reply, category in rows:
        if only in (None, category):
            line, _, _ = reply.partition("\n")
            a, space, b = line.replace(",", " ").partition(" ")
            good = space and " " not in b and b and all(part.replace(".", "", 1).isdigit() for part in (a, b))
            first, second, n = first + Decimal(a if good else -1), second + Decimal(b if good else -1), n + 1
    means = [(total / n).quantize(Decimal("0.001"), ROUND_HALF_EVEN) for total in (first, second)]
    return float((means[1] / means[0] * 100).quantize(Decimal("0.1"), ROUND_HALF_EVEN))


@pytest.mark.parametrize("seed", range(20))
def test_a_twin_comes_to_the_same(seed: int) -> None:
    draw = random.Random(seed)
    shapes = ["{} {}", "{},{}", "{}, {}", "{} {} ", "{} {}\nGood.", "{}", "{} {} {}"]
    rows = [
        (draw.choice(shapes).format(*(draw.choice([7, 8, 8.5, 9, 9.5]) for _ in range(3))), category)
        for category in ("conv", "detail", "complex")
        for _ in range(20)
    ]
    rows += [("9 8", "conv"), ("9 8", "detail"), ("9 8", "complex")] * 5
    answers = [answer(reply, category, f"{at % 24}.jpg") for at, (reply, category) in enumerate(rows)]
    found, _ = scores("official", answers)
    wanted = {name: twin(rows, None if name == "score" else name) for name in ("score", "conv", "detail", "complex")}
    # A tie may fall either way between binary and decimal numbers.
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=0.11)
    assert sum(found[name] == wanted[name] for name in wanted) >= 3


# --- the questions and the judge's ---


def test_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for path in (written(tmp_path), tmp_path / "questions.jsonl"):
        exam = llava_bench.Benchmark().read(path)
        (question,) = exam.questions
        assert (question.id, question.image, question.prompt) == ("0", "images/001.jpg", "What is this?")
        assert [each.name for each in exam.files] == ["questions.jsonl", "context.jsonl", "answers_gpt4.jsonl"]
    assert exam.notes[0] == "questions.jsonl has 1 questions, and LLaVA-Bench 60."
    assert "own wording" in exam.notes[1] and "not official" in exam.notes[1]


def test_the_official_script_spells_the_description(tmp_path: Path) -> None:
    """It joins a list of sentences by line feeds; the published file has texts, so that the letters are joined."""
    contexts = {
        ("official", "Sea."): "S\ne\na\n.",
        ("robust", "Sea."): "Sea.",
        ("official", "list"): "A boat.\nThe sea.",
        ("robust", "list"): "A boat.\nThe sea.",
    }
    for (mode, caption), wanted in contexts.items():
        held = ["A boat.", "The sea."] if caption == "list" else caption
        written(tmp_path, context=[{**CONTEXT, "caption": held}])
        exam = llava_bench.Benchmark(mode=mode).read(tmp_path)  # type: ignore[arg-type]
        assert exam.questions[0].truth["context"] == wanted


def test_reference_answers_belong_by_line_or_by_id(tmp_path: Path) -> None:
    questions = [QUESTION, {**QUESTION, "question_id": 1}]
    swapped = [{**REFERENCE, "question_id": 1, "text": "one"}, {**REFERENCE, "question_id": 0, "text": "zero"}]
    written(tmp_path, questions=questions, answers_gpt4=swapped)
    for mode, wanted in (("official", ["one", "zero"]), ("robust", ["zero", "one"])):
        exam = llava_bench.Benchmark(mode=mode).read(tmp_path)  # type: ignore[arg-type]
        assert [each.truth["reference"] for each in exam.questions] == wanted


def test_the_judge_reads_the_sections() -> None:
    benchmark = llava_bench.Benchmark()
    request = benchmark.ask(answer(None), 0)
    assert request is not None and benchmark.ask(answer(None), 1) is None
    assert (request.temperature, request.max_tokens) == (0.2, 1024)
    assert request.turns == [
        ("system", llava_bench.SYSTEM),
        (
            "user",
            "[Context]\nSea.\n\n[Question]\nWhat?\n\n"
            "[Assistant 1]\nThe sea.\n\n[End of Assistant 1]\n\n"
            "[Assistant 2]\nA lake.\n\n[End of Assistant 2]\n\n"
            f"[System]\n{llava_bench.RULE}\n\n",
        ),
    ]


def test_the_official_rule_can_be_given(tmp_path: Path) -> None:
    rules = {
        f"llava_bench_{each}": {"role": "Bot", "prompt": f"Mark {each}."} for each in ("conv", "detail", "complex")
    }
    (tmp_path / "rule.json").write_text(json.dumps(rules, indent=1))
    benchmark = llava_bench.Benchmark(rule=str(tmp_path / "rule.json"), system="Check.")
    request = benchmark.ask(answer(None, "detail"), 0)
    assert request is not None and request.turns[0] == ("system", "Check.")
    assert "[Bot 1]\nThe sea.\n\n[End of Bot 1]" in request.turns[1][1]
    assert request.turns[1][1].endswith("[System]\nMark detail.\n\n")
    many = [{**QUESTION, "question_id": at} for at in range(60)]
    exam = benchmark.read(written(tmp_path, questions=many, answers_gpt4=[REFERENCE] * 60))
    assert exam.notes == ["LLaVA-Bench (in the wild), 60 questions."] and exam.files[-1] == tmp_path / "rule.json"


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"questions": [{"question_id": 0}]}, "questions.jsonl: row 1 is not a question of LLaVA-Bench; it needs "),
        ({"questions": [{**QUESTION, "category": "x"}]}, "question 0 is not a question of LLaVA-Bench; it needs "),
        ({"questions": [{**QUESTION, "image": ["a"]}]}, "row 1 is not a question of LLaVA-Bench; it needs "),
        ({"context": [{"image": "001.jpg"}]}, "context.jsonl: row 1 is not a description of LLaVA-Bench; it needs "),
        ({"context": []}, None),
        ({"context": [{**CONTEXT, "image": "2.jpg"}]}, "the picture 001.jpg of question 0 is not described in context"),
        ({"answers_gpt4": [{"text": "a"}]}, "answers_gpt4.jsonl: row 1 is not a reference answer of LLaVA-Bench; it "),
        (
            {"answers_gpt4": [REFERENCE] * 2},
            "answers_gpt4.jsonl has 2 answers to 1 questions, and they belong together line by line; take the file",
        ),
        (
            {"questions": [QUESTION] * 2, "answers_gpt4": [REFERENCE] * 2},
            "questions.jsonl has the question_id 0 twice; remove one.",
        ),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, files: dict[str, Any], sentence: str | None) -> None:
    written(tmp_path, **files)
    with pytest.raises(MinipovidError) as caught:
        llava_bench.Benchmark().read(tmp_path)
    assert sentence is None or sentence in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="holds no questions.jsonl; take the folder huggingface.co/"):
        llava_bench.Benchmark().read(tmp_path)
    written(tmp_path)
    (tmp_path / "context.jsonl").unlink()
    with pytest.raises(MinipovidError) as caught:
        llava_bench.Benchmark().read(tmp_path)
    assert str(caught.value) == (
        f"There is no {tmp_path}/context.jsonl; LLaVA-Bench needs it beside questions.jsonl: take "
        f"{llava_bench.Benchmark.source}."
    )
    written(tmp_path, answers_gpt4=[{**REFERENCE, "question_id": 7}])
    with pytest.raises(MinipovidError, match="answers_gpt4.jsonl has no answer to question 0; take the file that"):
        llava_bench.Benchmark(mode="robust").read(tmp_path)
    (tmp_path / "rule.json").write_text('{"llava_bench_conv": {}}')
    with pytest.raises(MinipovidError, match="rule.json is not LLaVA's rule.json; it needs llava_bench_conv, llava_"):
        llava_bench.Benchmark(rule=str(tmp_path / "rule.json")).read(tmp_path)
