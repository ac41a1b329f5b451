"""Whose answer is each row? Files as other programs write them, against small benchmarks whose right answers are known.

Every file here says the same: the truth, but for the question MISTAKEN. Read wrongly (the question for the answer, the
label for the answer, by place where rows say otherwise) it would say something else.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.inference.backends import GREEDY, Question, predictions

SUFFIX = "\nAnswer the question using a single word or phrase."
PICTURES = ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000000073.jpg")
# id, picture, question, label; two questions have the same words, and three of each picture.
POPE = [
    (1, 0, "Is there a car in the image?", "yes"),
    (2, 0, "Is there a dog in the image?", "no"),
    (3, 0, "Is there a person in the image?", "no"),
    (4, 1, "Is there a car in the image?", "no"),
    (5, 1, "Is there a person in the image?", "yes"),
    (6, 1, "Is there a bus in the image?", "yes"),
]
MISTAKEN = 2
SAID = {name: "yes" if name == MISTAKEN else label for name, _, _, label in POPE}
Rows = list[dict[str, Any]]


def pope(folder: Path) -> Sequence[Question]:
    rows = [{"question_id": n, "image": PICTURES[at], "text": text, "label": label} for n, at, text, label in POPE]
    (folder / "coco_pope_mine.json").write_text(lines(rows))
    return benchmarks.build("pope", {}).read(folder / "coco_pope_mine.json").questions


def lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: Rows, delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def found(folder: Path, text: str, questions: Sequence[Question], name: str = "a.jsonl", **options: Any) -> list[str]:
    (folder / name).write_text(text, encoding="utf-8")
    backend = predictions.open(folder, predictions.Options(folder / name, **options), GREEDY)
    backend.check(questions)
    return list(backend.answers(questions, None))


def refused(folder: Path, text: str, questions: Sequence[Question], name: str = "a.jsonl", **options: Any) -> str:
    with pytest.raises(MinipovidError) as error:
        found(folder, text, questions, name, **options)
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence.replace(f"{folder}/", "")


def rows(row: Callable[[int, str, str, str], dict[str, Any]], *, backwards: bool = True) -> Rows:
    """A row for each question, made of id, picture, question and what was said; backwards: no place is right."""
    made = [row(name, PICTURES[at], text, SAID[name]) for name, at, text, _ in POPE]
    return made[::-1] if backwards else made


LABEL = {text: label for _, _, text, label in POPE}
DIALECTS: dict[str, str] = {
    "ids": lines(rows(lambda n, p, q, a: {"question_id": n, "answer": a})),
    "LLaVA": lines(rows(lambda n, p, q, a: {"question_id": n, "prompt": q + SUFFIX, "text": a, "answer_id": "x7"})),
    "question in text": lines(rows(lambda n, p, q, a: {"question_id": n, "image": p, "text": q, "answer": a})),
    "question in text, prompted": lines(
        rows(lambda n, p, q, a: {"question_id": n, "text": "<image>\n" + q + SUFFIX, "answer": a})
    ),
    "another suffix": lines(
        rows(lambda n, p, q, a: {"image": p, "text": q + " Please answer yes or no.", "answer": a})
    ),
    "a template round it": lines(
        rows(lambda n, p, q, a: {"question_id": n, "prompt": f"USER: <image>\n{q} ASSISTANT:", "text": a})
    ),
    "picture and question": lines(rows(lambda n, p, q, a: {"image": p, "question": q, "answer": a})),
    "a path of a picture": lines(rows(lambda n, p, q, a: {"img_path": f"/data/coco/{p}", "query": q, "response": a})),
    "COCO's number": lines(rows(lambda n, p, q, a: {"image_id": int(p[-6:-4]), "question": q, "answer": a})),
    "another split's name": lines(
        rows(lambda n, p, q, a: {"image": f"{int(p[-6:-4]):012}.jpg", "question": q, "answer": a})
    ),
    "VLMEvalKit": table(
        rows(lambda n, p, q, a: {"index": n, "question": q, "answer": "no", "category": "x", "prediction": a}), "\t"
    ),
    "VLMEvalKit, its own numbers": lines(
        rows(lambda n, p, q, a: {"index": n - 1, "image": p, "question": q, "answer": "no", "prediction": a})
    ),
    "lmms-eval": lines(
        rows(
            lambda n, p, q, a: {
                "doc_id": n - 1,
                "doc": {"id": str(n - 1), "question_id": str(n), "question": q, "answer": "no", "image_source": p[:-4]},
                "target": SAID[n] if n != MISTAKEN else "no",
                "resps": [[a]],
                "filtered_resps": [a],
            }
        )
    ),
    "lmms-eval, without its doc": lines(
        rows(lambda n, p, q, a: {"doc_id": n - 1, "input": q + SUFFIX, "resps": [[a]], "filtered_resps": [a]})
    ),
    "official POPE": lines(rows(lambda n, p, q, a: {"question": q, "answer": a}, backwards=False)),
    "nothing but answers": lines(rows(lambda n, p, q, a: {"answer": a}, backwards=False)),
    "floats": json.dumps(rows(lambda n, p, q, a: {"question_id": float(n), "answer": a})),
    "floats in a table": table(rows(lambda n, p, q, a: {"question_id": float(n), "answer": a})),
    "zeros in front": lines(rows(lambda n, p, q, a: {"question_id": f"{n:05}", "answer": a})),
    "an id of an unknown name": lines(rows(lambda n, p, q, a: {"qid": n, "answer": a})),
    "a mapping": json.dumps({str(n): a for n, a in reversed(SAID.items())}),
    "a mapping to rows": json.dumps({str(n): {"response": a} for n, a in reversed(SAID.items())}),
    "within an object": json.dumps(
        {"model": "m", "results": rows(lambda n, p, q, a: {"question_id": n, "answer": a})}, indent=1
    ),
    "thoughts": lines(
        rows(lambda n, p, q, a: {"question_id": n, "prediction": a, "reasoning": "No.", "score": 1, "answer": "no"})
    ),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_says_the_same(dialect: str, tmp_path: Path) -> None:
    text = DIALECTS[dialect]
    name = "a.tsv" if "\t" in text else "a.csv" if text[0] not in "[{" else "a.json"
    assert found(tmp_path, text, pope(tmp_path), name) == list(SAID.values())


def test_what_is_taken_by_place_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found(tmp_path, DIALECTS["ids"], pope(tmp_path))
        assert not caplog.text
        found(tmp_path, DIALECTS["nothing but answers"], pope(tmp_path))
    assert "no row says which question it answers; its 6 rows are taken in the order of the questions." in caplog.text


def with_row(place: int, **cells: Any) -> str:
    """Rows with id, picture, question and answer, one of them changed."""
    made = rows(lambda n, p, q, a: {"question_id": n, "image": p, "question": q, "answer": a}, backwards=False)
    made[place] |= cells
    return lines(made)


REFUSED: dict[str, tuple[str, str]] = {
    "another picture": (
        with_row(2, image=PICTURES[1]),
        f"a.jsonl: row 3 has question_id 3 and image '{PICTURES[1]}', and no question has both; take the answers to "
        "these very questions, or leave out the column that is wrong.",
    ),
    "a picture of elsewhere": (
        with_row(2, image="000.jpg"),
        "a.jsonl: row 3 has question_id 3 and image '000.jpg', and no question has both; take the answers to these "
        "very questions, or leave out the column that is wrong.",
    ),
    "another question": (
        with_row(2, question="Is there a bus in the image?"),
        "a.jsonl: row 3 has question_id 3 and question 'Is there a bus in the image?', and no question has both; take "
        "the answers to these very questions, or leave out the column that is wrong.",
    ),
    "a question of elsewhere": (
        with_row(2, question="Is there a yak in the image?"),
        "a.jsonl: row 3 has question_id 3 and question 'Is there a yak in the image?', and no question has both; take "
        "the answers to these very questions, or leave out the column that is wrong.",
    ),
    "an id twice": (
        with_row(2, question_id=2, question="Is there a dog in the image?"),
        "a.jsonl: row 3 answers 2 again; keep one of the two.",
    ),
    "null": (
        with_row(2, answer=None),
        'a.jsonl: row 3 has no answer, its answer is null; ask that question again (an answer without a word is "").',
    ),
    "not a number": (
        with_row(2, answer=float("nan")),
        'a.jsonl: row 3 has no answer, its answer is nan; ask that question again (an answer without a word is "").',
    ),
    "two answers": (
        with_row(2, answer=["yes", "no"]),
        "a.jsonl: row 3 has no answer, its answer is ['yes', 'no'], which is no text; write what the model said, once, "
        "in quotes.",
    ),
    "true": (
        with_row(2, answer=True),
        "a.jsonl: row 3 has no answer, its answer is True, which is no text; write what the model said, once, in "
        "quotes.",
    ),
    "nothing but empty answers": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "answer": ""})),
        "a.jsonl has no answer: its answer is empty in every row; ask those questions again.",
    ),
    "thoughts alone": (
        with_row(2, answer="<think>A dog? No, "),
        "a.jsonl: row 3 has no answer, its answer holds thoughts alone; give that model more tokens.",
    ),
    "another label": (
        lines(rows(lambda n, p, q, a: {"answer": a, "label": LABEL[q]})),
        "a.jsonl: row 2 has label 'yes', and question 2, which it would answer, 'no'; these are the answers to other "
        "questions, or in another order.",
    ),
    "a picture alone": (
        lines(rows(lambda n, p, q, a: {"image": p, "answer": a}, backwards=False)),
        f"a.jsonl: row 1 has image '{PICTURES[0]}', which 3 questions have; give each row the id of its question, or "
        "both picture and question.",
    ),
    "a question alone, in another order": (
        lines(rows(lambda n, p, q, a: {"question": q, "answer": a})),
        "a.jsonl: row 2 has question 'Is there a person in the image?', which 2 questions have; give each row the id "
        "of its question, or both picture and question.",
    ),
    "two columns": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "prediction": a, "response": f"{a}."})),
        "a.jsonl has several columns that may be the answers, prediction and response; say which one is with --option "
        "answers_column=NAME.",
    ),
    "two columns that say little": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "text": a, "answer": f"{a}."})),
        "a.jsonl has several columns that may be the answers, text and answer; say which one is with --option "
        "answers_column=NAME.",
    ),
    "two columns, one of them less clear": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "response": a, "caption": f"{a}."})),
        "a.jsonl has several columns that may be the answers, response and caption; say which one is with --option "
        "answers_column=NAME.",
    ),
    "a response, and what may be right": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "response": a, "answer": LABEL[q]})),
        "a.jsonl has several columns that may be the answers, response and answer; say which one is with --option "
        "answers_column=NAME.",
    ),
    "a prediction among others": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "prediction": a, "text": f"{a}.", "answer": "no"})),
        "a.jsonl has several columns that may be the answers, prediction and text; say which one is with --option "
        "answers_column=NAME.",
    ),
    "a list that became text": (
        table(rows(lambda n, p, q, a: {"question_id": n, "filtered_resps": json.dumps([a])})),
        "a.csv: row 2 has no answer, its filtered_resps is '[\"yes\"]', a list that became text; save the rows as JSON "
        "lines or parquet.",
    ),
    "a question of elsewhere, where others have none": (
        lines([{"answer": a} | ({"question": "Who is it?"} if n == 3 else {}) for n, a in SAID.items()]),
        "a.jsonl: row 3 has question 'Who is it?', and no question has that; take the answers to these very questions, "
        "or leave out the column that is wrong.",
    ),
    "a question where others have none": (
        lines([{"answer": a} | ({"question": POPE[2][2]} if n == 3 else {}) for n, a in SAID.items()]),
        "a.jsonl: 5 rows have no id, and others have; give each its id.",
    ),
    "a picture of elsewhere, where others have none": (
        lines(
            [
                {"index": n, "question": POPE[n - 1][2], "answer": a} | ({"image": "other.jpg"} if n == 2 else {})
                for n, a in SAID.items()
            ]
        ),
        "a.jsonl: row 2 has index 2 and image 'other.jpg', and no question has both; take the answers to these very "
        "questions, or leave out the column that is wrong.",
    ),
    "an id of elsewhere": (
        lines(
            [
                {"id": 99 if n == 2 else n, "image": PICTURES[at], "question": text, "answer": SAID[n]}
                for n, at, text, _ in POPE
            ]
        ),
        f"a.jsonl: row 2 has id 99 and image '{PICTURES[0]}', and no question has both; take the answers to these very "
        "questions, or leave out the column that is wrong.",
    ),
    "an id that is none": (
        with_row(2, question_id=True),
        "a.jsonl: row 3 has question_id True and image '"
        + PICTURES[0]
        + "', and no question has both; take the answers "
        "to these very questions, or leave out the column that is wrong.",
    ),
    "an id alone of elsewhere": (
        lines([{"id": 99 if n == 2 else n, "answer": SAID[n]} for n in SAID]),
        "a.jsonl: row 2 has id 99, and no question has that; take the answers to these very questions, or leave out "
        "the column that is wrong.",
    ),
    "questions and labels": (
        lines(rows(lambda n, p, q, a: {"question_id": n, "image": p, "text": q, "label": a})),
        "a.jsonl has no column of answers among question_id, image, text, label; text holds the questions; say which "
        "one is with --option answers_column=NAME.",
    ),
    "texts": (
        json.dumps(list(SAID.values())),
        "a.jsonl: row 1 is 'yes', and no object; write each answer with what it answers, "
        '{"question_id": 1, "answer": "Yes"}.',
    ),
    "a key twice": (
        '{"1": "yes", "2": "no", "1": "no"}',
        "a.jsonl: row 1 cannot be read: 1 stands there twice, with 'yes' and 'no'; keep one of them.",
    ),
    "a null in a mapping": (
        json.dumps({**{str(n): a for n, a in SAID.items()}, "2": None}),
        'a.jsonl: row 2 has no answer, its answer is null; ask that question again (an answer without a word is "").',
    ),
    "no rows": ("[]", "a.jsonl holds no answer."),
    "a wrapper of nothing": (
        '{"model": "m", "accuracy": 0.5}',
        "a.jsonl is one object, and its model, accuracy hold no answers; write a list of rows, each with what it "
        'answers, {"question_id": 1, "answer": "Yes"}.',
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_clear_is_one_sentence(fault: str, tmp_path: Path) -> None:
    text, sentence = REFUSED[fault]
    assert refused(tmp_path, text, pope(tmp_path), sentence.split()[0].rstrip(":")) == sentence


def test_the_user_says_which_column(tmp_path: Path) -> None:
    questions, text = pope(tmp_path), REFUSED["two columns"][0]
    assert found(tmp_path, text, questions, answers_column="prediction") == list(SAID.values())
    assert found(tmp_path, text, questions, answers_column="response") == [f"{said}." for said in SAID.values()]
    sentence = refused(tmp_path, text, questions, answers_column="said")
    assert sentence == "a.jsonl has no column 'said'; its columns are question_id, prediction, response."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 100_000, "a.json is not a JSON list: "),
        (b'{"a":' * 100_000, "a.json: row 1 cannot be read: the line is not JSON: "),
        (b"yes\nno\n", "a.json is neither parquet nor JSON nor a .csv table; "),
        (
            b"PK\x03\x04 and a spreadsheet",
            "The answers a.json cannot be read: it is a spreadsheet or another zip archive; save it as CSV.",
        ),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "The answers a.json cannot be read: it is a spreadsheet of the old kind; save it as CSV.",
        ),
        (
            b"\x80\x04\x95 a list",
            "The answers a.json cannot be read: it is pickled, and to read that may run any program; save it as JSON.",
        ),
        (b'{"question_id": 1, "answer"', "a.json: row 1 cannot be read: the line is not JSON: "),
    ],
    ids=["deep list", "deep object", "bare lines", "xlsx", "xls", "pickle", "cut"],
)
def test_a_file_of_another_kind_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    questions = pope(tmp_path)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MinipovidError) as error:
        predictions.open(tmp_path, predictions.Options(tmp_path / "a.json"), GREEDY).check(questions)
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(sentence)


# --- other benchmarks ---


def test_captions_go_to_their_pictures(tmp_path: Path) -> None:
    """One question about every picture; ids are rows', pictures' names and numbers are in another order."""
    pictures = [{"image": f"photos/{name}.jpg", "objects": ["dog"]} for name in (3, 1, 2)]
    (tmp_path / "pictures.jsonl").write_text(lines(pictures))
    (tmp_path / "objects.txt").write_text("dog\ncat\n")
    questions = benchmarks.build("chair", {}).read(tmp_path / "pictures.jsonl").questions
    wanted = ["Caption 3.", "Caption 1.", "Caption 2."]
    forms: list[Callable[[int], dict[str, Any]]] = [
        lambda n: {"image_id": n, "caption": f"Caption {n}."},
        lambda n: {"image_id": f"{n}.jpg", "caption": f"Caption {n}."},
        lambda n: {"image": f"/home/me/photos/{n}.jpg", "prompt": "Say it.", "caption": f"Caption {n}."},
        lambda n: {"question": "Describe it.", "file_name": str(n), "text": f"Caption {n}."},
        lambda n: {"picture of": f"{n}.jpg", "response": f"Caption {n}."},
        lambda n: {"id": f"{n}.jpg", "response": f"Caption {n}."},
    ]
    for form in forms:
        assert found(tmp_path, lines([form(n) for n in (1, 2, 3)]), questions) == wanted
    original = {
        "overall": {"CIDEr": 0.1},
        "imgToEval": {str(n): {"image_id": n, "caption": f"Caption {n}."} for n in (1, 2, 3)},
    }
    assert found(tmp_path, json.dumps(original), questions) == wanted


def test_one_question_about_every_picture_is_the_question_in_whatever_column(tmp_path: Path) -> None:
    """Its words tell no picture from another; other words in one row alone are a question that nobody asks."""
    (tmp_path / "pictures.jsonl").write_text(lines([{"image": f"{n}.jpg", "objects": ["dog"]} for n in (1, 2, 3)]))
    (tmp_path / "objects.txt").write_text("dog\ncat\n")
    questions = benchmarks.build("chair", {}).read(tmp_path / "pictures.jsonl").questions
    prompt = questions[0].prompt

    def row(n: int, text: str, **more: str) -> dict[str, Any]:
        return {"image": f"{n}.jpg", "text": text, "answer": f"Caption {n}.", **more}

    said = [row(n, prompt) for n in (3, 2, 1)]
    assert found(tmp_path, lines(said), questions) == ["Caption 1.", "Caption 2.", "Caption 3."]
    echoed = [row(n, f"{prompt} A dog.") for n in (3, 2, 1)]
    assert "several columns that may be the answers, text and answer" in refused(tmp_path, lines(echoed), questions)
    assert "text and answer" in refused(tmp_path, lines([*said[:2], row(1, "A dog.")]), questions)
    for other in ({"question": prompt}, {}):
        strange = [row(3, prompt, **other), row(2, prompt, question="Who is it?"), row(1, prompt, **other)]
        sentence = refused(tmp_path, lines(strange), questions)
        assert sentence.startswith("a.jsonl: row 2 has image '2.jpg' and question 'Who is it?', and no question has")
    by_place = [{"question": asked, "answer": "x"} for asked in (prompt, "What is it?", prompt)]
    assert refused(tmp_path, lines(by_place), questions).startswith("a.jsonl: row 2 has question 'What")


def test_the_files_of_one_benchmark_share_their_ids(tmp_path: Path) -> None:
    """POPE's folder: question 1 is asked in each of two files, in the same words of the same picture."""
    for rule, label in (("random", "yes"), ("popular", "no")):
        row = {"question_id": 1, "image": PICTURES[0], "text": "Is there a car in the image?", "label": label}
        (tmp_path / f"coco_pope_{rule}.json").write_text(lines([{**row, "category": rule}]))
    questions = benchmarks.build("pope", {}).read(tmp_path).questions
    said = [
        {"question_id": 1, "category": rule, "image": PICTURES[0], "answer": rule} for rule in ("random", "popular")
    ]
    assert found(tmp_path, lines(said), questions) == [question.truth["category"] for question in questions]
    sentence = refused(tmp_path, lines([{**row, "category": None} for row in said]), questions)
    assert "row 1 has question_id 1 and image" in sentence and "which 2 questions have" in sentence


EXAMPLES = Path(__file__).parents[1] / "evaluate" / "examples"


def example(name: str) -> Sequence[Question]:
    told = json.loads((EXAMPLES / name / "example.json").read_text())
    return benchmarks.build(name, told["options"][0]).read(EXAMPLES / name / told["read"]).questions


def test_hallusionbench_keeps_its_own_rows(tmp_path: Path) -> None:
    """The authors' file of answers is the benchmark's with `model_prediction`: no row has one id of its own."""
    questions = example("hallusionbench")
    asked = json.loads((EXAMPLES / "hallusionbench" / "HallusionBench.json").read_text())
    said = [{**row, "model_prediction": f"Said {at}."} for at, row in enumerate(asked)]
    assert found(tmp_path, json.dumps(said[::-1]), questions) == [row["model_prediction"] for row in said]


def test_mmhal_keeps_its_own_rows(tmp_path: Path) -> None:
    """Its template of answers, filled in: no id, and a picture's id that is in no file's name."""
    asked = json.loads((EXAMPLES / "mmhal" / "response_template.json").read_text())
    asked = [{**row, "image_id": f"x{at}f", "question": f"How many of {at}?"} for at, row in enumerate(asked)]
    (tmp_path / "response_template.json").write_text(json.dumps(asked))
    questions = benchmarks.build("mmhal", {}).read(tmp_path / "response_template.json").questions
    said = [{**row, "model_answer": f"Said {at}."} for at, row in enumerate(asked)]
    assert found(tmp_path, json.dumps(said[::-1]), questions) == [row["model_answer"] for row in said]


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.iterdir()))
def test_every_benchmark_is_answered_in_the_common_forms(name: str, tmp_path: Path) -> None:
    """By id, by a mapping, by id with the benchmark's question beside, and what another question's id says refused."""
    questions = example(name)
    said = {question.id: f"Said of {question.id}." for question in questions}
    prompts = {question.id: question.truth.get("question", question.prompt) for question in questions}
    wanted, names = list(said.values()), list(said)[::-1]
    assert found(tmp_path, json.dumps({name: said[name] for name in names}), questions) == wanted
    for key in ("question_id", "id", "index"):
        asked = [{key: name, "question": prompts[name], "prediction": said[name], "answer": "A"} for name in names]
        assert found(tmp_path, lines(asked), questions) == wanted
    if len({*prompts.values()}) == len(prompts) > 1:
        by_words = [{"question": prompts[name], "prediction": said[name]} for name in names]
        assert found(tmp_path, lines(by_words), questions) == wanted
        turned = [
            {"id": one, "question": prompts[two], "response": "x"} for one, two in zip(names, names[::-1], strict=True)
        ]
        assert "and no question has both" in refused(tmp_path, lines(turned), questions)
