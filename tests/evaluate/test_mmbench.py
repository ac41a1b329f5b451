"""MMBench: the facts' table of answers, CircularEval by hand and by a slow twin, embedded pictures, bad files."""

from __future__ import annotations

import base64
import csv
import io
import random
import string
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Exam, mmbench, total
from minipovid.evaluate.reading.replies import chosen
from minipovid.images.embedded import Embedded
from minipovid.inference.backends import Question

FOUR = {"A": "cat", "B": "dog", "C": "a red car", "D": "tree"}
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "split", "image")
SUFFIX = "\nAnswer with the option's letter from the given choices directly."


def picture(colour: int = 0) -> str:
    """A small PNG as base64."""
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def row(index: int, answer: str = "B", **more: str) -> dict[str, str]:
    told = {"index": str(index), "question": "Which?", "answer": answer, "image": picture(), "split": "dev"}
    return {**dict.fromkeys(COLUMNS, ""), **FOUR, **told, "category": "objects", "l2-category": "coarse", **more}


def write(folder: Path, rows: Sequence[dict[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    file = folder / "mmbench_dev_20230712.tsv"
    with file.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return file


def read(folder: Path, rows: Sequence[dict[str, str]], **options: Any) -> Exam:
    return benchmarks.build("mmbench", options).read(write(folder, rows))


def figures(questions: Sequence[Question], texts: Sequence[str], mode: str = "official") -> dict[str, float]:
    benchmark = benchmarks.build("mmbench", {"mode": mode})
    return benchmark.figures(
        total(benchmark.grade([Answer(*each) for each in zip(questions, texts, strict=True)]).units)
    )


# benchmarks.md, section 10, and what VLMEvalKit's own can_infer made of the rest; then how it is read robustly.
TABLE = [
    *[("(B)", "B", "B"), ("The answer is B", "B", "B"), ("A dog", "A", "B"), ("It is a dog.", "B", "B")],
    *[("Option B is right because it is red", None, "B"), ("A or B", None, None), ("b", None, "B"), ("cat", "A", "A")],
    *[("B)", "B", "B"), ("(b)", None, "B"), ("", None, None), ("Z", None, None), ("Z, or a dog", None, None)],
    *[("The answer is dog", "D", "B"), ("The answer is a dog.", "A", "B"), ("The answer is **C**", "C", "C")],
    *[("The correct answer is B because the animal barks at us", "B", "B"), ("B B", "B", "B"), ("E", None, None)],
    *[("B is what I see, and B I say", None, "B"), ("A cat and a dog", None, None), ("DOG", "B", "B")],
    *[
        ("a dog".ljust(38, "."), "B", "B"),
        ("a dog".ljust(39, "."), None, "B"),
        ("I see a red car", "C", "C"),
        ("**B**. dog", "B", "B"),
    ],
    *[("I think the answer is b.", "B", "B"), ("A because it meows", "A", "A"), ("catalogue", "A", None)],
]


@pytest.mark.parametrize(("answer", "official", "robust"), TABLE)
def test_how_answers_are_read(answer: str, official: str | None, robust: str | None) -> None:
    assert mmbench.official_choice(answer, FOUR) == official
    assert chosen(answer, FOUR) == robust


def test_of_options_within_one_another_the_longest_counts() -> None:
    options = {"A": "red", "B": "red car", "C": "blue"}
    assert chosen("It is a red car.", options) == "B"
    assert chosen("It is red.", options) == "A"
    assert chosen("A red car, not the blue one", options) is None
    assert mmbench.official_choice("a red car", options) is None  # it holds two


def test_circular_eval_by_hand(tmp_path: Path) -> None:
    """Question 1 in three orders, all right; 2 in two, one wrong; 3 in one, right; 4 in one, not read.

    CircularEval 2/4; every order by itself 5/7. coarse: 1 and 2, 1/2; fine: 3 and 4, 1/2. objects: 1, 2 and 3, 2/3.
    """
    fine = {"l2-category": "fine"}
    rows = [
        *[row(1), row(2), row(3, **fine), row(4, category="colours", **fine)],
        *[row(1_000_001, "A"), row(2_000_001, "D"), row(1_000_002, "A")],
    ]
    exam = read(tmp_path, rows)
    texts = ["B", "B", "(B)", "Hm.", "A", "D.", "C"]
    assert figures(exam.questions, texts) == {
        "accuracy": 2 / 4,
        "vanilla_accuracy": 5 / 7,
        "l2/coarse": 1 / 2,
        "l2/fine": 1 / 2,
        "category/objects": 2 / 3,
        "category/colours": 0.0,
    }
    sheet = benchmarks.build("mmbench", {}).grade([Answer(*each) for each in zip(exam.questions, texts, strict=True)])
    assert [mark.unit for mark in sheet.marks] == list("1234112")
    assert [mark.right for mark in sheet.marks] == [True, True, True, False, True, True, False]
    assert sheet.marks[3].verdict == UNPARSED
    assert exam.notes == [
        "mmbench_dev_20230712.tsv, which is not one of VLMEvalKit's files: "
        "4 questions, in all orders of their options 7.",
        "An answer that is no option is wrong: no judge is asked what it means.",
    ]


def test_the_prompt_is_llava_s(tmp_path: Path) -> None:
    """A hint stands first; options end at the first that is missing, as pandas and LLaVA see it."""
    rows = [
        row(1, hint="Look.", C="nan"),
        row(2, hint="nan", question='Say "two",\nplease', D="None"),
        row(3, hint="None", C="", D="left"),
    ]
    (one, two, three) = read(tmp_path, rows).questions
    assert one.prompt == "Look.\nWhich?\nA. cat\nB. dog" + SUFFIX
    assert two.prompt == 'Say "two",\nplease\nA. cat\nB. dog\nC. a red car' + SUFFIX
    assert three.prompt == "Which?\nA. cat\nB. dog" + SUFFIX
    assert (one.id, one.max_tokens, one.truth["options"]) == ("1", 1024, {"A": "cat", "B": "dog"})
    assert read(tmp_path, rows, suffix="", max_tokens=3).questions[0].prompt.endswith("B. dog")


def test_pictures_lie_within_the_table_or_in_another_row(tmp_path: Path) -> None:
    """Two pictures in five rows: each is held once, whoever names it and in whatever order."""
    rows = [
        *[row(1_000_001, image="1"), row(1, image=picture(1)), row(2, image=picture(2))],
        *[row(2_000_001, image="1"), row(1_000_002, image=picture(2))],
    ]
    questions = read(tmp_path, rows).questions
    images = [question.image for question in questions]
    assert [isinstance(image, Embedded) for image in images] == [True] * 5
    assert len({id(image) for image in images}) == 2
    assert images[0] is images[1] is images[3]
    assert images[2] is images[4]
    assert isinstance(images[2], Embedded)
    assert images[2].data == base64.b64decode(picture(2))


def test_memory_is_that_of_the_pictures_that_differ(tmp_path: Path) -> None:
    """40 rotations of ten pictures of 200 KB, 11 MB of table: 2 MB of pictures are held, and little else."""
    size = 200_000
    head = base64.b64decode(picture())[:16]
    images = [base64.b64encode(head + random.Random(i).randbytes(size)).decode() for i in range(10)]
    rows = [row(turn * mmbench.TURN + i, image=images[i]) for turn in range(4) for i in range(10)]
    file = write(tmp_path, rows)
    tracemalloc.start()
    exam = benchmarks.build("mmbench", {}).read(file)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(exam.questions) == 40
    assert 10 * size < held < 11 * size
    assert peak < 10 * size + 6_000_000  # a row, its base64, a block of the file


# --- a slow twin ---


def slow(rows: Sequence[dict[str, str]], texts: Sequence[str]) -> dict[str, float]:
    """Once more from VLMEvalKit's behaviour: read each, then every question from its first row on."""

    def letter(text: str, options: dict[str, str]) -> str:
        cleaned = "".join(" " if sign in ".()[],:;!*#{}" else sign for sign in text)
        places = {each: i for i, each in reversed(list(enumerate(cleaned.split())))}  # where each word is first
        there = [each for each in options if each in places]
        if len(there) == 1 and places[there[0]] >= len(cleaned.split()) - 4:
            return there[0]
        if not there and "Z" in places:
            return "Z"
        words = text.lower().split("answer")
        for before, after in zip(words, words[1:], strict=False):
            del before
            tail = after.lstrip(string.whitespace)
            if after[:1].isspace() and tail[:2] == "is" and tail[2:3].isspace():
                name = tail[2:].lstrip(string.whitespace).lstrip("*")[:1].upper()
                if name and name in "ABCD":
                    if name in options:
                        return name
                    break
        if len(text) > 2 * sum(len(each) for each in options.values()):
            return "?"
        inside = [name for name, each in options.items() if each.lower() in text.lower()]
        return inside[0] if len(inside) == 1 else "?"

    hits = [
        letter(text, {name: each[name] for name in "ABCD" if each[name]}) == each["answer"]
        for each, text in zip(rows, texts, strict=True)
    ]
    mains = [i for i, each in enumerate(rows) if int(each["index"]) < mmbench.TURN]

    def circular(of: Sequence[int]) -> float:
        right = 0
        for main in of:
            same = [i for i, each in enumerate(rows) if int(each["index"]) % 1_000_000 == int(rows[main]["index"])]
            right += all(hits[i] for i in same)
        return right / len(of)

    kinds = {("l2/" + rows[i]["l2-category"], "l2-category") for i in mains}
    kinds |= {("category/" + rows[i]["category"], "category") for i in mains}
    return {
        "accuracy": circular(mains),
        "vanilla_accuracy": sum(hits) / len(hits),
        **{name: circular([i for i in mains if rows[i][column] == name.partition("/")[2]]) for name, column in kinds},
    }


def made_up(rng: random.Random) -> list[dict[str, str]]:
    """60 questions of two to four options in all their rotations."""
    rows = []
    for number in range(1, 61):
        texts = rng.sample(["cat", "dog", "a red car", "tree", "Zoo", "two"], rng.choice([2, 3, 4]))
        right, kind = rng.choice(texts), rng.choice("pqrs")
        for turn in range(len(texts)):
            turned = texts[turn:] + texts[:turn]
            options = {**dict.fromkeys("ABCD", ""), **dict(zip("ABCD", turned, strict=False))}
            answer = "ABCD"[turned.index(right)]
            rows.append(
                row(turn * mmbench.TURN + number, answer, category=kind, **options, **{"l2-category": "xy"[kind > "q"]})
            )
    rng.shuffle(rows)
    return rows


def said(kind: str, each: dict[str, str], rng: random.Random) -> str:
    options = [name for name in "ABCD" if each[name]]
    wrong = next(name for name in options if name != each["answer"])
    if kind in ("right", "wrong", "first", "text"):
        return {"right": each["answer"], "wrong": wrong, "first": "A", "text": f"It is {each[each['answer']]}."}[kind]
    name = each["answer"] if rng.random() < 0.8 else rng.choice("ABCDEZ")
    forms = [
        "{}",
        "({})",
        "The answer is {}",
        "{}. it barks",
        "{} is what I would choose here of all",
        "{} or B",
        "Hm.",
    ]
    more = ["answer is {0} since {0} is the only one that could be", "a dog", "answer is **{}**", "{}\n", "Z {}"]
    return rng.choice(forms + more).format(name)


@pytest.mark.parametrize("kind", ["right", "wrong", "first", "text", "noisy"])
def test_a_slow_twin_agrees(tmp_path: Path, kind: str) -> None:
    rng = random.Random(3)
    rows = made_up(rng)
    texts = [said(kind, each, rng) for each in rows]
    found = figures(read(tmp_path, rows).questions, texts)
    assert found == slow(rows, texts)
    assert {
        "right": found["accuracy"] == 1,
        "wrong": found["vanilla_accuracy"] == 0,
        "first": found["accuracy"] == 0,
    }.get(kind, 0 < found["vanilla_accuracy"] <= 1)


# --- bad files ---

NEEDS = "a question of MMBench; it needs index, question, A, B, answer (a letter) and image (a picture as base64)"
JUNK = base64.b64encode(b"no picture at all, but quite long").decode()


@pytest.mark.parametrize(
    ("second", "why"),
    [
        ({**row(2), "index": "x"}, f"row 3 is not {NEEDS}."),
        (row(2, answer="E"), f"row 3 is not {NEEDS}."),
        (row(2, B=""), f"row 3 is not {NEEDS}."),
        (row(2, image=""), f"row 3 is not {NEEDS}."),
        (row(2, answer=""), "row 3 has no answer, as in MMBench's test files; take a dev file."),
        (row(1), "row 3 has the index 1 of an earlier row; keep one."),
        (
            row(2, image="7"),
            "the image of 2 is '7', which is neither base64 nor the index of a row that has a picture.",
        ),
        (
            row(2, image="1_000"),
            "the image of 2 is '1_000', which is neither base64 nor the index of a row that has a picture.",
        ),
    ],
)
def test_bad_rows_are_one_sentence(tmp_path: Path, second: dict[str, str], why: str) -> None:
    file = write(tmp_path, [row(1), second])
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("mmbench", {}).read(file)
    assert str(error.value) == f"{file}: {why}"


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(MinipovidError) as error:
            benchmarks.build("mmbench", {}).read(path)
        return str(error.value)

    take = "name one, as MMBench_DEV_EN.tsv of github.com/open-compass/MMBench, or mmbench_dev_20230712.tsv."
    assert told(tmp_path) == f"{tmp_path} holds 0 tables (*.tsv); {take}"
    file = write(tmp_path, [row(1)], [name for name in COLUMNS if name != "question"])
    assert told(tmp_path) == f"{file}: row 2 is not {NEEDS}."
    write(tmp_path, [row(1), row(1_000_002)])
    assert told(file) == f"{file} has rotations of question 2, but not itself; take the whole file."
    file.write_text("index\tquestion\n1\tWhat?\tmore\n")
    assert told(file) == f"{file}: row 2 is not {NEEDS}."
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("")
    assert told(tmp_path) == f"{tmp_path} holds 2 tables (*.tsv); {take}"
