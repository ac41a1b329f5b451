"""POPE: the facts' table of answers, the real question files, questions about one's own pictures, bad files."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, pope, total
from minipovid.evaluate.reading.replies import says_yes
from minipovid.inference.backends import Question

DATA = Path(__file__).parents[3] / "shared" / "data" / "pope"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real POPE files (shared/data) are not here")

# benchmarks.md, section 10: answers with their gold label, and how the official script reads each.
TABLE = [
    *[("Yes", "yes", True), ("No", "no", False), (" no", "no", False), ("yes.", "yes", True)],
    *[("no.", "no", False), ("No, there is not a dog.", "no", False), ("NO", "no", True)],
    *[("Nope", "no", True), ("cannot see", "no", True), ("'No'", "no", True), ("None", "no", True)],
    *[("There isn't a dog in the image.", "no", True), ("There is a dog. No cat.", "yes", True), ("no\n", "no", True)],
    *[("No\nthere", "no", True), ("no!", "no", True), ("No;", "no", True), ("no-one", "no", True)],
    *[("no\u00a0dog", "no", True), ("not sure", "yes", False), ("", "no", True), ("否", "no", True)],
    *[("Yes, there are no other dogs.", "yes", False), (".No", "no", True), ("Dr. No", "no", True)],
    ("Yes, there is a person, not a dog", "yes", False),
]


def answers(rows: Sequence[tuple[str, str]]) -> list[Answer]:
    """(text, label) as answers, each about a picture of its own."""
    return [
        Answer(Question(str(i), f"{i}.png", "?", {"label": label, "category": ""}, 9), text)
        for i, (text, label) in enumerate(rows)
    ]


def figures(rows: Sequence[tuple[str, str]], mode: str = "official") -> dict[str, float]:
    benchmark = benchmarks.build("pope", {"mode": mode})
    return benchmark.figures(total(benchmark.grade(answers(rows)).units))


@pytest.mark.parametrize(("answer", "gold", "yes"), TABLE)
def test_answers_are_read_as_the_official_script_reads_them(answer: str, gold: str, yes: bool) -> None:
    assert pope.official_yes(answer) is yes


def test_the_table_s_totals_to_the_digit() -> None:
    """TP/FP/TN/FN 3/16/4/3 of 26, the figures as the facts give them (made by running the official script)."""
    assert len(TABLE) == 26
    found = figures([(answer, gold) for answer, gold, _ in TABLE])
    assert found["accuracy"] == 0.2692307692307692
    assert found["precision"] == 0.15789473684210525
    assert found["recall"] == 0.5
    assert found["f1"] == 0.23999999999999996
    assert found["yes_ratio"] == 0.7307692307692307


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        *[("Yes", True), ("YES!", True), ("no\n", False), ("'No'", False), ("NO", False), ("No;", False)],
        *[("Nope", False), ("cannot see", False), ("There isn't a dog.", False), ("There isn’t a dog.", False)],
        *[("Yes, there are no other dogs.", True), (".No", False), ("not sure", False), ("Well, yes.", True)],
        *[("There is a dog. No cat.", None), ("A dog.", None), ("", None), ("否", None), ("I know it", None)],
        ("Nothing there. Yes, really.", True),
    ],
)
def test_the_robust_reading(answer: str, yes: bool | None) -> None:
    assert says_yes(answer) is yes


def test_by_hand() -> None:
    """Truth yes yes yes no no, said yes yes no yes no: TP 2, FN 1, FP 1, TN 1.

    Accuracy 3/5, precision 2/3, recall 2/3, F1 2/3, false yes 1/2, three of five answers are yes. One more "yes" about
    something absent: accuracy 3/6, four of six are yes, while three of six labels are (lmms-eval counts those).
    """
    rows = [("Yes", "yes"), ("Yes", "yes"), ("No", "yes"), ("Yes", "no"), ("No", "no")]
    wanted = {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 3 / 5, "false_yes": 0.5}
    assert figures(rows) == pytest.approx(wanted)
    more = figures([*rows, ("Yes", "no")])
    assert (more["accuracy"], more["yes_ratio"]) == pytest.approx((3 / 6, 4 / 6))


def test_where_the_official_script_divides_by_zero() -> None:
    found = figures([("No", "no"), ("No", "yes")])
    assert found["accuracy"] == 0.5 and found["recall"] == 0.0
    assert str(found["precision"]) == str(found["f1"]) == "nan"


def test_what_the_robust_reading_cannot_read_is_wrong_and_no_answer() -> None:
    """Truth yes no, said "A dog." and "No": accuracy 1/2, recall 0 of 1; officially the dog is a yes."""
    rows = [("A dog.", "yes"), ("No", "no")]
    robust, official = figures(rows, "robust"), figures(rows)
    assert (robust["accuracy"], robust["recall"], robust["yes_ratio"]) == (0.5, 0.0, 0.0)
    assert (official["accuracy"], official["recall"], official["yes_ratio"]) == (1.0, 1.0, 0.5)
    marks = benchmarks.build("pope", {"mode": "robust"}).grade(answers(rows)).marks
    assert [(mark.verdict, mark.right) for mark in marks] == [(UNPARSED, False), ("no", True)]


def slow_twin(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """The official script's published behaviour, a second time and differently: lists of 0 and 1, one file."""
    said = []
    for text in texts:
        if text.find(".") != -1:
            text = text.split(".")[0]
        said.append(0 if any(word in ("No", "no", "not") for word in text.replace(",", "").split(" ")) else 1)
    gold = [0 if question.truth["label"] == "no" else 1 for question in questions]
    pairs = Counter(zip(said, gold, strict=True))
    tp, fp, tn, fn = pairs[1, 1], pairs[1, 0], pairs[0, 0], pairs[0, 1]
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / len(said),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
        "yes_ratio": said.count(1) / len(said),
    }


def noisy(questions: Sequence[Question]) -> list[str]:
    rng = random.Random(7)
    return [
        rng.choice(["Yes", "No", "no.", "NO", "Yes, not a dog", "There is. No", "", "no,", "yes"]) for _ in questions
    ]


@needs_data
@pytest.mark.parametrize(
    ("say", "wanted"),
    [
        (lambda qs: [q.truth["label"].capitalize() for q in qs], {"accuracy": 1.0, "f1": 1.0, "yes_ratio": 0.5}),
        (
            lambda qs: ["No" if q.truth["label"] == "yes" else "Yes" for q in qs],
            {"accuracy": 0.0, "precision": 0.0, "recall": 0.0, "false_yes": 1.0},
        ),
        (lambda qs: ["Yes"] * len(qs), {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3}),
        (lambda qs: ["No"] * len(qs), {"accuracy": 0.5, "recall": 0.0, "yes_ratio": 0.0}),
    ],
    ids=["all right", "all wrong", "all yes", "all no"],
)
def test_made_up_answers_over_the_real_files(
    say: Callable[[Sequence[Question]], list[str]], wanted: dict[str, float]
) -> None:
    """3,000 questions a file, half of them yes."""
    benchmark = benchmarks.build("pope", {})
    exam = benchmark.read(DATA)
    assert len(exam.questions) == 9000 and len(exam.files) == 3
    given = [Answer(q, text) for q, text in zip(exam.questions, say(exam.questions), strict=True)]
    found = benchmark.figures(total(benchmark.grade(given).units))
    for rule in pope.RULES:
        assert {name: found[f"{rule}/{name}"] for name in wanted} == pytest.approx(wanted)


@needs_data
def test_noisy_answers_against_the_slow_twin() -> None:
    """Every file by itself, and the mean of the three F1, LLaVA's headline."""
    benchmark = benchmarks.build("pope", {})
    f1 = []
    for rule in pope.RULES:
        exam = benchmark.read(DATA / f"coco_pope_{rule}.json")
        texts = noisy(exam.questions)
        twin = slow_twin(exam.questions, texts)
        given = [Answer(q, text) for q, text in zip(exam.questions, texts, strict=True)]
        found = benchmark.figures(total(benchmark.grade(given).units))
        assert {name: found[name] for name in twin} == twin
        f1.append((twin["f1"], texts))
    whole = benchmark.read(DATA)
    by_rule = {rule: iter(texts) for rule, (_, texts) in zip(pope.RULES, f1, strict=True)}
    given = [Answer(q, next(by_rule[q.truth["category"]])) for q in whole.questions]
    found = benchmark.figures(total(benchmark.grade(given).units))
    assert found["mean_f1"] == pytest.approx(sum(each for each, _ in f1) / 3, abs=1e-12)


@needs_data
def test_the_version_is_known_by_its_hash(tmp_path: Path) -> None:
    exam = benchmarks.build("pope", {}).read(DATA / "coco_pope_popular.json")
    assert list(exam.notes) == ["POPE on COCO as published in November 2023, 3,000 questions."]
    assert exam.questions[0].prompt.endswith("?\nAnswer the question using a single word or phrase.")
    assert len({question.image for question in exam.questions}) == 500
    (tmp_path / "coco_pope_popular.json").write_bytes((DATA / "coco_pope_popular.json").read_bytes())
    (tmp_path / "coco_pope_random.json").write_text((DATA / "coco_pope_random.json").read_text().replace("car", "cat"))
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("pope", {}).read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} mixes versions of POPE (coco_pope_popular.json is November 2023, coco_pope_random.json is "
        "unknown); keep the files of one."
    )


# --- one's own pictures ---


def own(folder: Path, rows: Sequence[tuple[str, Sequence[str]]], corpus: Sequence[Sequence[str]] = ()) -> Path:
    file = folder / "pictures.jsonl"
    file.write_text("".join(json.dumps({"image": image, "objects": list(names)}) + "\n" for image, names in rows))
    if corpus:
        (folder / "corpus.jsonl").write_text("".join(json.dumps({"objects": list(each)}) + "\n" for each in corpus))
    return file


def test_the_three_rules_by_hand(tmp_path: Path) -> None:
    """A picture with a cup. In the corpus: lamp 4 times, fork 3 (always beside a cup), apple 2 (once beside one).

    Popular asks about the lamp, adversarial about the fork; both about the cup as well.
    """
    corpus = [["lamp"]] * 4 + [["cup", "fork"]] * 3 + [["apple"], ["apple", "cup"]]
    exam = benchmarks.build("pope", {"each": 1, "suffix": ""}).read(own(tmp_path, [("a.png", ["cup"])], corpus))
    asked = {(q.truth["category"], q.truth["label"]): q.prompt for q in exam.questions}
    assert asked["popular", "no"] == "Is there a lamp in the image?"
    assert asked["adversarial", "no"] == "Is there a fork in the image?"
    assert asked["random", "yes"] == asked["popular", "yes"] == "Is there a cup in the image?"
    assert len(exam.questions) == 6 and [q.id for q in exam.questions][:2] == ["random/1", "random/2"]


def test_vowels_get_their_article(tmp_path: Path) -> None:
    file = own(tmp_path, [("a.png", ["apple"])], [["owl"]])
    prompts = [q.prompt for q in benchmarks.build("pope", {"each": 1, "suffix": ""}).read(file).questions]
    assert "Is there an owl in the image?" in prompts


def test_random_pictures_are_asked_about_as_a_slow_twin_says(tmp_path: Path) -> None:
    """60 pictures of 12 objects, counted over themselves: balanced, true, and by the rule, counted in plain loops."""
    rng = random.Random(3)
    names = [f"thing{number:02}" for number in range(12)]
    rows = [(f"{number}.png", rng.sample(names, rng.randint(1, 6))) for number in range(60)]
    exam = benchmarks.build("pope", {"each": 2}).read(own(tmp_path, rows))
    there = dict(rows)
    usable = [image for image, objects in rows if len(objects) >= 2]
    assert len(exam.questions) == len(usable) * 3 * 4
    assert exam.notes[1] == f"{60 - len(usable)} pictures with too few objects were left out."
    for rule in pope.RULES:
        for image in usable:
            asked = [q for q in exam.questions if q.image == image and q.truth["category"] == rule]
            named = {q.prompt.split(" ")[3]: q.truth["label"] for q in asked}
            assert sorted(named.values()) == ["no", "no", "yes", "yes"]
            absent = {name for name, label in named.items() if label == "no"}
            assert {name for name, label in named.items() if label == "yes"} <= set(there[image])
            assert absent.isdisjoint(there[image])
            if rule == "random":
                continue
            weight = {}
            for name in names:
                if rule == "popular":
                    weight[name] = sum(name in objects for _, objects in rows)
                else:
                    weight[name] = sum(
                        name in objects and other in objects for _, objects in rows for other in there[image]
                    )
            left = [weight[name] for name in names if name not in there[image] and name not in absent]
            assert min(weight[name] for name in absent) >= max(left, default=0)


# --- bad files ---


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"question_id": 1, "image": "x", "text": "?"}\n',
            "{file}: row 1 is not a POPE question; it needs question_id, image, text and label (yes or no).",
        ),
        (
            '{"question_id": 1, "image": "x", "text": "?", "label": "maybe"}\n',
            "{file}: row 1 is not a POPE question; it needs question_id, image, text and label (yes or no).",
        ),
        (
            '{"question_id": 1, "image": "x", "text": "?", "label": "no"}\n' * 2,
            "{file}: row 2 has the question_id 1 of an earlier row.",
        ),
        (
            '{"image": "x", "objects": "cup"}\n',
            "{file}: row 1 is not a picture with its objects; it needs image and objects, a list of names.",
        ),
        (
            '{"question_id": 1, "image": 5, "text": "?", "label": "no"}\n',
            "{file}: row 1 is not a POPE question; it needs question_id, image, text and label (yes or no).",
        ),
        ('{"objects": ["cup"]}\n', "{file}: picture 1 has no image; name its file."),
        (
            '{"image": "x", "objects": ["cup"]}\n',
            "{file}: no picture has 3 objects, and as many absent; ask fewer: pope.each=1.",
        ),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(text)
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("pope", {}).read(file)
    assert str(error.value) == sentence.format(file=file)


def test_a_folder_without_files(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("pope", {}).read(tmp_path)
    wanted = "holds no POPE file (*pope*.json); take the folder output/coco of github.com/RUCAIBox/POPE."
    assert str(error.value) == f"{tmp_path} {wanted}"
