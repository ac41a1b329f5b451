"""ScienceQA: the facts' table of answers and totals, LLaVA's prompt, made-up problems, bad files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, scienceqa, total
from minipovid.evaluate.reading.replies import chosen
from minipovid.inference.backends import Question

FOUR = {"A": "cat", "B": "dog", "C": "a red car", "D": "tree"}
SUFFIX = "\nAnswer with the option's letter from the given choices directly."

# benchmarks.md, section 10: the answer, how the official script reads it, and how it is read robustly.
TABLE = [
    *[("B", "B", "B"), ("A. foo", "A", "A"), ("A.", None, "A"), ("A. ", "A", "A"), ("The answer is A.", "A", "A")],
    *[("The answer is A", None, "A"), ("The answer is A. The answer is A.", None, "A"), ("a", None, "A")],
    *[("(B)", None, "B"), ("B)", None, "B"), ("", None, None), ("FAILED", None, None), ("E", "E", None)],
    *[("The answer is Z.", "Z", None), ("The answer is A!", "A", "A"), ("F", None, None), ("B\n", None, "B")],
    *[("B.dog", None, "B"), ("So: The answer is C. It is red.", "C", "C"), (" A", None, "A"), ("b.", None, "B")],
]


def problem(**more: Any) -> dict[str, Any]:
    told = {
        "question": "Which one?",
        "choices": ["cat", "dog"],
        "answer": 1,
        "hint": "",
        "image": None,
        "split": "test",
    }
    return {**told, **more}


def write(folder: Path, problems: Mapping[str, Any], splits: Any = None) -> Path:
    (folder / "problems.json").write_text(json.dumps(problems, indent=1))
    (folder / "pid_splits.json").write_text(json.dumps(splits or {"test": [*problems], "val": []}))
    return folder


def figures(questions: Sequence[Question], texts: Sequence[str], **options: Any) -> dict[str, float]:
    benchmark = benchmarks.build("scienceqa", {"images_only": False, **options})
    sheet = benchmark.grade([Answer(*each) for each in zip(questions, texts, strict=True)])
    return benchmark.figures(total(sheet.units))


@pytest.mark.parametrize(("answer", "official", "robust"), TABLE)
def test_how_answers_are_read(answer: str, official: str | None, robust: str | None) -> None:
    assert scienceqa.official_letter(answer) == official
    assert chosen(answer, FOUR) == robust


def test_a_letter_beyond_the_choices_is_wrong(tmp_path: Path) -> None:
    (question,) = (
        benchmarks.build("scienceqa", {"images_only": False}).read(write(tmp_path, {"7": problem()})).questions
    )
    for text, mode, verdict, right in [
        *[("C", "official", "C", False), ("C", "robust", UNPARSED, False)],
        *[("B", "official", "B", True), ("b", "official", UNPARSED, False), ("b", "robust", "B", True)],
    ]:
        (mark,) = benchmarks.build("scienceqa", {"mode": mode}).grade([Answer(question, text)]).marks
        assert mark == ("7", verdict, right, ()), (text, mode)


def test_the_facts_totals(tmp_path: Path) -> None:
    """Gold B A A A A; only the third has no picture. Right: B, A. foo, The answer is A.; wrong: a, and C of two.

    3/5 overall, 2/4 about pictures. Where the last is not answered at all, the script has 3/5 and 2/3: it counts as
    wrong overall and not as a picture. An Exam has an answer to every question, so that is a matter of the sums alone.
    """
    problems = {str(i): problem(answer=int(i == 0), image=None if i == 2 else "image.png") for i in range(5)}
    benchmark = benchmarks.build("scienceqa", {"images_only": False})
    questions = benchmark.read(write(tmp_path, problems)).questions
    found = figures(questions, ["B", "A. foo", "The answer is A.", "a", "C"])
    assert found == {"accuracy": 3 / 5, "img_accuracy": 2 / 4}
    sums = {"answers": 5.0, "right": 3.0, "img answers": 3.0, "img right": 2.0}
    assert benchmark.figures(sums) == {"accuracy": 3 / 5, "img_accuracy": 2 / 3}
    assert benchmarks.build("scienceqa", {}).figures(sums) == {"img_accuracy": 2 / 3}
    assert all(math.isnan(value) for value in benchmark.figures({}).values())


def test_the_prompt_is_llava_s(tmp_path: Path) -> None:
    """With a hint, and without; the split named by pid_splits.json, the picture by the problem's own."""
    problems = {
        "3": problem(hint="Read this. ", choices=["a", "b", "c"], image="image.png", split="val"),
        "9": problem(),
        "11": problem(image="choice.png"),
    }
    (tmp_path / "images" / "val").mkdir(parents=True)
    folder = write(tmp_path, problems, {"minival": ["3"], "test": [9, 11]})
    (question,) = benchmarks.build("scienceqa", {"split": "minival"}).read(folder).questions
    assert question.prompt == "Context: Read this.\nWhich one?\nA. a\nB. b\nC. c" + SUFFIX
    assert (question.image, question.max_tokens) == ("images/val/3/image.png", 1024)
    exam = benchmarks.build("scienceqa", {}).read(folder)
    assert [(each.id, each.image) for each in exam.questions] == [("11", "11/choice.png")]
    assert exam.notes == ["ScienceQA's split test: 1 questions, those about a picture."]
    (tmp_path / "test").mkdir()
    exam = benchmarks.build("scienceqa", {"images_only": False, "suffix": ""}).read(folder)
    assert [(each.id, each.image) for each in exam.questions] == [("9", ""), ("11", "test/11/choice.png")]
    assert exam.questions[0].prompt == "Which one?\nA. cat\nB. dog"
    assert exam.files == [folder / "problems.json", folder / "pid_splits.json"]


def slow(problems: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> dict[str, float]:
    """The official script's behaviour once more, character by character."""

    def place(text: str) -> int:
        letter = ""
        if len(text) == 1 or (len(text) > 2 and text[1] == "." and text[2] == " "):
            letter = text[0] if text[0] in "ABCDE" else ""
        if not letter:
            start, found = 0, []
            while (at := text.find("The answer is ", start)) >= 0:
                after = text[at + 14 : at + 16]
                if len(after) == 2 and "A" <= after[0] <= "Z" and after[1] != "\n":
                    found.append(after[0])
                start = at + 1
            letter = found[0] if len(found) == 1 else ""
        return "ABCDE".find(letter) if letter else -1

    hits = [place(text) == each["answer"] for each, text in zip(problems, texts, strict=True)]
    seen = [hit for each, hit in zip(problems, hits, strict=True) if each["image"]]
    return {"accuracy": sum(hits) / len(hits), "img_accuracy": sum(seen) / len(seen)}


def said(kind: str, each: Mapping[str, Any], rng: random.Random) -> str:
    right, letters = "ABCDE"[each["answer"]], "ABCDE"[: len(each["choices"])]
    wrong = next(letter for letter in letters if letter != right)
    forms = [
        "{}",
        "{}. it",
        "{}.",
        "({})",
        "The answer is {}.",
        "The answer is {}",
        "The answer is {}. The answer is A.",
    ]
    noisy = rng.choice([*forms, "", "I", "{}\n", "The answer is {}\n", "The answer is x. The answer is {}!"])
    return {"right": right, "wrong": wrong, "first": "A", "sentence": f"The answer is {right}."}.get(
        kind, noisy.format(rng.choice("ABCDEF"))
    )


@pytest.mark.parametrize("kind", ["right", "wrong", "first", "sentence", "noisy"])
def test_a_slow_twin_agrees(tmp_path: Path, kind: str) -> None:
    """300 made-up problems of two to five choices, half about a picture."""
    rng = random.Random(5)
    problems = [
        problem(choices=list("vwxyz"[:count]), answer=rng.randrange(count), image=rng.choice([None, "image.png"]))
        for count in rng.choices([2, 3, 4, 5], k=300)
    ]
    folder = write(tmp_path, {str(number): each for number, each in enumerate(problems)})
    questions = benchmarks.build("scienceqa", {"images_only": False}).read(folder).questions
    texts = [said(kind, each, rng) for each in problems]
    found = figures(questions, texts)
    assert found == slow(problems, texts)
    assert {"right": found["accuracy"] == 1, "wrong": found["accuracy"] == 0}.get(kind, 0 < found["accuracy"] <= 1)


# --- bad files ---

NEEDS = (
    "a ScienceQA problem; it needs question, choices (2 to 5), answer (the right one's place), hint, image and split."
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"choices": ["cat"]},
        {"choices": list("abcdef")},
        {"choices": "ab"},
        {"answer": 2},
        {"answer": -1},
        {"answer": "B"},
        {"question": None},
        {"hint": None},
    ],
)
def test_bad_problems_are_one_sentence(tmp_path: Path, wrong: dict[str, Any]) -> None:
    folder = write(tmp_path, {"1": problem(), "2": problem(**wrong)})
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("scienceqa", {}).read(folder)
    assert str(error.value) == f"{folder / 'problems.json'}: 2 is not {NEEDS}"


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    def told(folder: Path, **options: Any) -> str:
        with pytest.raises(MinipovidError) as error:
            benchmarks.build("scienceqa", options).read(folder)
        return str(error.value)

    take = "take problems.json, pid_splits.json and images of github.com/lupantech/ScienceQA, data/scienceqa."
    assert told(tmp_path) == f"There is no {tmp_path / 'problems.json'}; {take}"
    folder = write(tmp_path, {"1": problem()}, {"test": ["1", "2"], "val": ["1", "1"]})
    assert told(folder) == f"{tmp_path / 'problems.json'}: 2 is not {NEEDS}"
    assert told(folder, split="val") == f"{tmp_path / 'pid_splits.json'}: val holds problem 1 twice; keep one."
    assert told(folder, split="dev") == f"{tmp_path / 'pid_splits.json'} has no split 'dev'; it has test, val."
    file = folder / "problems.json"
    assert told(file) == f"{file} is not a folder; ScienceQA is the folder with problems.json and pid_splits.json."
    file.write_text("[]")
    assert told(folder) == f"{file} is not ScienceQA's; {take}"
    file.write_text("{")
    assert told(folder).startswith(f"{file} cannot be read: Expecting property name")
