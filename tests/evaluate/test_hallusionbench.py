"""HallusionBench: the facts' aggregate and verdicts, the script's own numbers over the real file, bad files."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, Grades, hallusionbench, total
from minipovid.inference.backends import Question

DATA = Path(__file__).parents[3] / "shared" / "data" / "hallusionbench"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real HallusionBench.json (shared/data) is not here")
REPLIES = {"0": "Incorrect.", "1": "Correct", "2": "unclear", "": None}  # by the script's verdict; "": no reply came


def row(category: str, figure: int, number: int, visual_input: int, **more: Any) -> dict[str, Any]:
    name = None if visual_input == 0 else f"./{category}/table/0_{figure}.png"
    ids = {"set_id": "0", "figure_id": str(figure), "question_id": str(number), "visual_input": str(visual_input)}
    told = {"question": "Is it?", "gt_answer": "1", "gt_answer_details": "It is.", "filename": name}
    return {"category": category, "subcategory": "table", **ids, **told, **more}


def write(folder: Path, rows: Sequence[Any]) -> Path:
    file = folder / "HallusionBench.json"
    file.write_text(json.dumps(rows))
    return file


def graded(questions: Sequence[Question], texts: Sequence[str], codes: Sequence[str], **options: Any) -> Grades:
    """`texts` are answers, `codes` the judge's verdicts as the script writes them."""
    answers = [Answer(*each, REPLIES[code]) for *each, code in zip(questions, texts, codes, strict=True)]
    return benchmarks.build("hallusionbench", options).grade(answers)


def figures(
    questions: Sequence[Question], texts: Sequence[str], codes: Sequence[str], **options: Any
) -> dict[str, float]:
    sheet = graded(questions, texts, codes, **options)
    return benchmarks.build("hallusionbench", options).figures(total(sheet.units))


def judged(questions: Sequence[Question], codes: Sequence[str], mode: str = "official") -> dict[str, float]:
    return figures(questions, [""] * len(codes), codes, scorer="judge", mode=mode)


# --- by hand ---

SIX = [
    *(row("VS", figure, 0, figure) for figure in range(3)),
    *(row("VD", 0, question, 1) for question in range(2)),
    row("VD", 1, 0, 2),
]


def test_the_facts_aggregate(tmp_path: Path) -> None:
    """VS, one question: unclear without a picture (right), right, unclear about the edited one (wrong); VD: two right
    about the picture, one of them wrong about the edited picture.

    aAcc 4/6. Pictures: VS 1 right, VS 2 not, VD 0 right, VD 1 not: 2/4. Questions: VS no, VD q0 no, VD q1 yes: 1/3.
    Easy: all three. Hard: VS q0 and VD q0, neither. All truths are yes, so 4 of 6 "said yes", and no mistake did.
    """
    questions = benchmarks.build("hallusionbench", {}).read(write(tmp_path, SIX)).questions
    found = judged(questions, "212110")
    assert found == {
        "a_acc": 4 / 6,
        "f_acc": 2 / 4,
        "q_acc": 1 / 3,
        "easy": 3 / 3,
        "hard": 0 / 2,
        "f_inconsistent": 0.0,
        "f_wrong": 2 / 4,
        "pct_diff": 4 / 6 - 1,
        "fp_ratio": 0.0,
        **{"vd_a_acc": 2 / 3, "vd_f_acc": 1 / 2, "vd_q_acc": 1 / 2},
        **{"vs_a_acc": 2 / 3, "vs_f_acc": 1 / 2, "vs_q_acc": 0.0},
    }


def test_what_no_judge_replied_about_counts_nowhere(tmp_path: Path) -> None:
    """As above, but nobody judged the first answer: 3 of 5 right; VS q0 leaves questions and easy; pictures stay."""
    questions = benchmarks.build("hallusionbench", {}).read(write(tmp_path, SIX)).questions
    sheet = graded(questions, [""] * 6, ["", *"12110"], scorer="judge")
    assert (sheet.marks[0].verdict, sheet.marks[0].right) == (FAILED, None)
    found = judged(questions, ["", *"12110"])
    assert (found["a_acc"], found["q_acc"], found["easy"], found["f_acc"]) == (3 / 5, 1 / 2, 2 / 2, 2 / 4)
    nobody = graded(questions, [""] * 6, [""] * 6, scorer="judge")
    assert nobody.units == {"VS_table_0": {}, "VD_table_0": {}}
    assert all(math.isnan(value) for value in judged(questions, [""] * 6).values())


@pytest.mark.parametrize(
    ("reply", "official", "robust"),
    [
        ("Correct", "correct", "correct"),
        ("Incorrect.", "incorrect", "incorrect"),
        ("not correct", "correct", "incorrect"),
        ("unclear", "unclear", "unclear"),
        ("**correct**", "correct", "correct"),
        ("", "unclear", None),
        ("I would say so.", "unclear", None),
        ("Correct? No: incorrect.", "incorrect", None),
        ("It isn’t quite correct", "correct", "incorrect"),
        ("It contradicts the correct answer: incorrect", "incorrect", "incorrect"),
    ],
)
def test_verdicts(reply: str, official: str, robust: str | None) -> None:
    assert hallusionbench.official_verdict(reply) == official
    assert hallusionbench.robust_verdict(reply) == robust


def test_an_unread_reply_is_unclear_officially_and_left_out_robustly(tmp_path: Path) -> None:
    """Two answers, one without a picture: unclear is right there; robustly nothing is left to divide by."""
    questions = benchmarks.build("hallusionbench", {}).read(write(tmp_path, SIX[:2])).questions
    for mode, a_acc, verdict in (("official", 1 / 2, "unclear"), ("robust", None, UNPARSED)):
        benchmark = benchmarks.build("hallusionbench", {"scorer": "judge", "mode": mode})
        sheet = benchmark.grade([Answer(question, "Yes", "Hm.") for question in questions])
        assert [mark.verdict for mark in sheet.marks] == [verdict, verdict]
        found = benchmark.figures(total(sheet.units))["a_acc"]
        assert math.isnan(found) if a_acc is None else found == a_acc
        assert benchmark.understands(Answer(questions[0], ""), "Hm.") is (mode == "official")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Yes.", "yes"),
        ("No, they are not.", "no"),
        ("Yes, but I cannot tell how many.", "yes"),
        ("The two lines are not the same length.", "no"),
        ("I cannot determine that from the question.", "unclear"),
        ("It can't be answered without the chart.", "unclear"),
        ("I don't know", "unclear"),
        ("I am unsure.", "unclear"),
        ("There is not enough information.", "unclear"),
        ("The table does not have this number.", "no"),
        ("Switzerland", UNPARSED),
        ("", UNPARSED),
    ],
)
def test_the_rule(answer: str, said: str) -> None:
    assert hallusionbench.rule(answer) == said


def test_the_rule_s_unclear_and_unread_answers(tmp_path: Path) -> None:
    """The first question has no picture, the second has one; the truth is yes.

    Who does not know is right about the first; what cannot be read is that too officially, and robustly wrong.
    """
    questions = benchmarks.build("hallusionbench", {}).read(write(tmp_path, SIX[:2])).questions
    for text, mode, right in [
        ("I don't know.", "official", [True, False]),
        ("I don't know.", "robust", [True, False]),
        ("Hm.", "official", [True, False]),
        ("Hm.", "robust", [False, False]),
        ("Yes", "robust", [True, True]),
        ("No", "official", [False, False]),
    ]:
        sheet = graded(questions, [text] * 2, "11", mode=mode)
        assert [mark.right for mark in sheet.marks] == right, (text, mode)


# --- what the judge is asked ---


def test_the_judge_s_request(tmp_path: Path) -> None:
    (question, *_) = benchmarks.build("hallusionbench", {}).read(write(tmp_path, SIX)).questions
    benchmark: Any = benchmarks.build("hallusionbench", {"scorer": "judge"})
    request = benchmark.ask(Answer(question, "Surely {}."), 0)
    ((role, text),) = request.turns
    assert (role, request.temperature) == ("user", 0.0)
    assert text.endswith("Question: Is it?\nCorrect answer: It is.\nGiven answer: Surely {}.\nOne word:")
    assert benchmark.ask(Answer(question, "Surely."), 1) is None
    by_rule: Any = benchmarks.build("hallusionbench", {})
    assert (benchmark.judge, by_rule.judge) == ("gpt-4", "")
    assert by_rule.ask(Answer(question, "Surely."), 0) is None


def test_a_prompt_of_one_s_own(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{} | {} | {}")
    benchmark: Any = benchmarks.build("hallusionbench", {"scorer": "judge", "prompt": str(prompt)})
    exam = benchmark.read(write(tmp_path, SIX))
    assert benchmark.ask(Answer(exam.questions[0], "So."), 0).turns == [("user", "Is it? | It is. | So.")]
    assert exam.files[1:] == [prompt]
    prompt.write_text("{}")
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("hallusionbench", {"scorer": "judge", "prompt": str(prompt)}).read(tmp_path)
    told = "3 times, for the question, the correct answer, the answer to read."
    assert str(error.value) == f"The judge's prompt {prompt} needs {{}} {told}"


# --- the real file ---

# Made by the authors' own utils.py over the real file, with these verdicts. (right, of how many)
SCRIPT: dict[str, dict[str, Any]] = {
    "right": {
        **{"a_acc": (1129, 1129), "q_acc": (455, 455), "f_acc": (346, 346), "easy": (455, 455), "hard": (430, 430)},
        **{"vd_a_acc": (591, 591), "vd_q_acc": (277, 277), "vd_f_acc": (230, 230), "f_inconsistent": (0, 346)},
        **{"vs_a_acc": (538, 538), "vs_q_acc": (178, 178), "vs_f_acc": (116, 116), "f_wrong": (0, 346)},
        **{"pct_diff": 0.0, "fp_ratio": math.nan},  # it divides by zero
    },
    "wrong": {
        **{"a_acc": (0, 1129), "q_acc": (0, 455), "f_acc": (0, 346), "easy": (0, 455), "hard": (0, 430)},
        **{"vd_a_acc": (0, 591), "vd_q_acc": (0, 277), "vd_f_acc": (0, 230), "f_inconsistent": (0, 346)},
        **{"vs_a_acc": (0, 538), "vs_q_acc": (0, 178), "vs_f_acc": (0, 116), "f_wrong": (346, 346)},
        **{"pct_diff": 0.14260407440212575, "fp_ratio": 0.5713020372010629},
    },
    "yes": {
        **{"a_acc": (484, 1129), "q_acc": (18, 455), "f_acc": (25, 346), "easy": (211, 455), "hard": (147, 430)},
        **{"vd_a_acc": (249, 591), "vd_q_acc": (6, 277), "vd_f_acc": (12, 230), "f_inconsistent": (279, 346)},
        **{"vs_a_acc": (235, 538), "vs_q_acc": (12, 178), "vs_f_acc": (13, 116), "f_wrong": (42, 346)},
        **{"pct_diff": 0.5713020372010629, "fp_ratio": 1.0},
    },
    "no": {
        **{"a_acc": (645, 1129), "q_acc": (88, 455), "f_acc": (42, 346), "easy": (242, 455), "hard": (250, 430)},
        **{"vd_a_acc": (342, 591), "vd_q_acc": (43, 277), "vd_f_acc": (24, 230), "f_inconsistent": (279, 346)},
        **{"vs_a_acc": (303, 538), "vs_q_acc": (45, 178), "vs_f_acc": (18, 116), "f_wrong": (25, 346)},
        **{"pct_diff": -0.4286979627989371, "fp_ratio": 0.0},
    },
    "unclear": {
        **{"a_acc": (178, 1129), "q_acc": (0, 455), "f_acc": (0, 346), "easy": (8, 455), "hard": (0, 430)},
        **{"vd_a_acc": (0, 591), "vd_q_acc": (0, 277), "vd_f_acc": (0, 230), "f_inconsistent": (0, 346)},
        **{"vs_a_acc": (178, 538), "vs_q_acc": (0, 178), "vs_f_acc": (0, 116), "f_wrong": (346, 346)},
        **{"pct_diff": 0.13197519929140833, "fp_ratio": 0.5783385909568874},
    },
    "noisy": {
        **{"a_acc": (597, 1129), "q_acc": (105, 455), "f_acc": (61, 346), "easy": (208, 455), "hard": (191, 430)},
        **{"vd_a_acc": (296, 591), "vd_q_acc": (72, 277), "vd_f_acc": (47, 230), "f_inconsistent": (226, 346)},
        **{"vs_a_acc": (301, 538), "vs_q_acc": (33, 178), "vs_f_acc": (14, 116), "f_wrong": (59, 346)},
        **{"pct_diff": 0.09034543844109832, "fp_ratio": 0.5958646616541353},
    },
}


def real() -> tuple[list[dict[str, Any]], Sequence[Question]]:
    rows = json.loads((DATA / "HallusionBench.json").read_text(encoding="utf-8"))
    return rows, benchmarks.build("hallusionbench", {}).read(DATA).questions


def verdicts(kind: str, rows: Sequence[dict[str, Any]], seed: int = 7) -> list[str]:
    """The script's verdict on each row."""
    rng = random.Random(seed)
    of: dict[str, Callable[[str], str]] = {
        "right": lambda truth: "1",
        "wrong": lambda truth: "0",
        "yes": lambda truth: truth,
        "no": lambda truth: str(1 - int(truth)),
        "unclear": lambda truth: "2",
        "noisy": lambda truth: rng.choice("0112"),
    }
    return [of[kind](row["gt_answer"]) for row in rows]


def in_words(code: str, truth: str) -> str:
    """An answer that deserves the verdict."""
    said = truth == "1" if code == "1" else truth != "1"
    return "I cannot tell." if code == "2" else "Yes, it is." if said else "No."


@needs_data
@pytest.mark.parametrize("scorer", ["judge", "rule"])
@pytest.mark.parametrize("kind", SCRIPT)
def test_the_script_s_own_numbers(kind: str, scorer: str) -> None:
    rows, questions = real()
    codes = verdicts(kind, rows)
    texts = [in_words(code, row["gt_answer"]) for code, row in zip(codes, rows, strict=True)]
    found = figures(questions, texts, codes, scorer=scorer)
    wanted = {name: value[0] / value[1] if isinstance(value, tuple) else value for name, value in SCRIPT[kind].items()}
    assert found == pytest.approx(wanted, abs=0, rel=0, nan_ok=True)


def slow(rows: Sequence[dict[str, Any]], codes: Sequence[str]) -> dict[str, float]:
    """The figures once more, group by group, from the definitions alone."""
    at = range(len(rows))

    def bare(i: int) -> bool:
        return rows[i]["category"] == "VS" and rows[i]["figure_id"] == "0"

    right = [codes[i] == "1" or (codes[i] == "2" and bare(i)) for i in at]

    def groups(last: str, of: Sequence[int]) -> list[list[bool]]:
        names = {i: "/".join(rows[i][key] for key in ("category", "subcategory", "set_id", last)) for i in of}
        return [[right[i] for i in of if names[i] == name] for name in sorted(set(names.values()))]

    def accuracy(found: list[list[bool]]) -> float:
        return sum(map(all, found)) / len(found)

    pictures = groups("figure_id", [i for i in at if not bare(i)])
    return {
        "a_acc": sum(right) / len(right),
        "q_acc": accuracy(groups("question_id", at)),
        "easy": accuracy(groups("question_id", [i for i in at if rows[i]["visual_input"] != "2"])),
        "hard": accuracy(groups("question_id", [i for i in at if rows[i]["visual_input"] == "2"])),
        "f_acc": accuracy(pictures),
        "f_wrong": sum(not any(each) for each in pictures) / len(pictures),
    }


@needs_data
@pytest.mark.parametrize("seed", [1, 2])
def test_a_slow_twin_agrees(seed: int) -> None:
    rows, questions = real()
    codes = verdicts("noisy", rows, seed)
    found, wanted = judged(questions, codes), slow(rows, codes)
    assert {name: found[name] for name in wanted} == wanted


@needs_data
def test_the_real_file() -> None:
    exam = benchmarks.build("hallusionbench", {}).read(DATA / "HallusionBench.json")
    assert len({question.id for question in exam.questions}) == 1129
    assert exam.notes[0] == (
        "HallusionBench as published in November 2023: 1,129 questions, 178 of them about no picture."
    )
    assert exam.notes[1].startswith("Answers are read by rule, yes or no, so the score is not official")
    first, last = exam.questions[0], exam.questions[-1]
    assert (first.image, first.id) == ("", "VS_chart_0_0_0")
    assert (last.image, last.id) == ("VD/video/19_2.png", "VD_video_19_2_3")
    assert len({question.image for question in exam.questions}) == 347  # 346 pictures and none


@needs_data
def test_no_group_reaches_beyond_its_unit() -> None:
    """167 sets; a group's name, by the script's own keys, leads to one unit. So the units' sums make the figures."""
    rows, questions = real()
    sheet = graded(questions, [""] * len(rows), verdicts("right", rows), scorer="judge")
    assert len(sheet.units) == 167
    for last in ("figure_id", "question_id"):
        units: dict[tuple[str, ...], set[str]] = {}
        for row, mark in zip(rows, sheet.marks, strict=True):
            key = tuple(row[name] for name in ("category", "subcategory", "set_id", last))
            units.setdefault(key, set()).add(mark.unit)
        assert {len(found) for found in units.values()} == {1}
    pictures: dict[str, set[str]] = {}
    for question, mark in zip(questions, sheet.marks, strict=True):
        pictures.setdefault(question.image, set()).add(mark.unit)
    assert all(len(found) == 1 for image, found in pictures.items() if image)


# --- bad files ---

NEEDS = (
    "a question of HallusionBench; it needs category (VD or VS), subcategory, set_id, figure_id, question_id, "
    "visual_input (0, 1 or 2), question, gt_answer (0 or 1), gt_answer_details and filename."
)


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ("words", f"row 2 is not {NEEDS}"),
        ({"question": "Is it?"}, f"row 2 is not {NEEDS}"),
        (row("VX", 0, 1, 1), f"row 2 is not {NEEDS}"),
        (row("VD", 0, 1, 3), f"row 2 is not {NEEDS}"),
        (row("VD", 0, 1, 1, gt_answer="yes"), f"row 2 is not {NEEDS}"),
        (row("VD", 0, 1, 1, question=7), f"row 2 is not {NEEDS}"),
        (row("VD", 0, 1, 1, filename=7), f"row 2 is not {NEEDS}"),
        (row("VD", 0, 0, 1), "row 2 is VD_table_0_0_0, as an earlier row is; keep one of them."),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path: Path, second: Any, why: str) -> None:
    file = write(tmp_path, [row("VD", 0, 0, 1), second])
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("hallusionbench", {}).read(file)
    assert str(error.value) == f"{file}: {why}"


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("hallusionbench", {}).read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds no HallusionBench.json; take HallusionBench.json and hallusion_bench.zip of "
        "github.com/tianyi-lab/HallusionBench."
    )


def test_numbers_instead_of_texts_and_another_file_s_note(tmp_path: Path) -> None:
    ids = {"set_id": 0, "figure_id": 0, "question_id": 0, "visual_input": 1, "gt_answer": 1}
    exam = benchmarks.build("hallusionbench", {"suffix": " Say yes or no."}).read(
        write(tmp_path, [{**row("VD", 0, 0, 1), **ids}])
    )
    assert exam.questions[0].prompt == "Is it? Say yes or no."
    assert exam.notes[0] == "HallusionBench.json is not the published file: 1 questions, 0 of them about no picture."
