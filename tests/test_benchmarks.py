"""POPE and CHAIR on hand-made answers, and POPE's own reading of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minipovid.benchmarks import chair, pope
from minipovid.errors import MinipovidError
from minipovid.types import Answer, Question


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes.", True),
        ("yes, there is", True),
        ("", True),
        ("No", False),
        ("No yes", False),
        ("There is no cat. Yes!", False),
        ("There is not, in fact, a cat", False),
        ("NO", True),  # the official script knows three spellings
        ("Nothing there", True),
        ("Yes. No.", True),  # only the first sentence counts
        (" No, there is none.", False),
    ],
)
def test_pope_reads_answers_as_the_official_script(answer: str, yes: bool) -> None:
    assert pope.says_yes(answer) is yes


def test_pope_by_hand() -> None:
    """Truth yes yes yes no no, said yes yes no yes no: TP 2, FN 1, FP 1, TN 1.

    Accuracy 3/5, precision 2/3, recall 2/3, F1 2/3, false yes 1/2; three of five answers are yes, and three of five
    labels: one more "no" among the answers tells the two ratios apart.
    """
    truth, said = ["yes", "yes", "yes", "no", "no", "no"], ["Yes", "Yes", "No", "Yes", "No", "No"]
    answers = [
        Answer(Question(str(i), "x", "?", {"label": label}, 9), text)
        for i, (label, text) in enumerate(zip(truth, said, strict=True))
    ]
    scores = pope.score(answers[:5])
    wanted = {
        "accuracy": 3 / 5,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": 2 / 3,
        "yes_ratio": 3 / 5,
        "false_yes": 1 / 2,
    }
    assert scores == pytest.approx(wanted)
    flipped = [*answers[:4], Answer(answers[4].question, "Yes"), answers[5]]
    assert pope.score(flipped)["yes_ratio"] == pytest.approx(4 / 6)


def test_pope_without_any_yes_divides_by_nothing() -> None:
    answers = [Answer(Question("1", "x", "?", {"label": "no"}, 9), "No")]
    assert pope.score(answers)["f1"] == 0.0
    assert pope.score(answers)["accuracy"] == 1.0


def test_pope_reads_the_real_file() -> None:
    path = Path(__file__).parents[2] / "shared" / "data" / "pope" / "coco_pope_adversarial.json"
    if not path.is_file():
        pytest.skip("the real POPE files (shared/data) are not here")
    questions = pope.questions(path)
    assert len(questions) == 3000
    assert questions[1].prompt == "Is there a backpack in the image?"
    assert sum(question.truth["label"] == "yes" for question in questions) == 1500


SYNONYMS = {"circle": "circle", "disc": "circle", "star": "star", "hot dog": "hot dog", "dog": "dog", "box": "box"}


@pytest.mark.parametrize(
    ("caption", "found"),
    [
        ("A red circle and two discs.", ["circle", "circle"]),
        ("The hot dog is beside the dogs", ["hot dog", "dog"]),
        ("Boxes, STARS; circles!", ["box", "star", "circle"]),
        ("A starfish in a doghouse", []),
        ("", []),
    ],
)
def test_chair_finds_mentions(caption: str, found: list[str]) -> None:
    assert chair.mentions(caption, SYNONYMS) == found


def test_chair_by_hand() -> None:
    """Caption 1 (circle, star there): circle, circle, dog -> 1 of 3 wrong. Caption 2 (star there): star -> none.

    CHAIR_s 1/2, CHAIR_i 1/4, recall (circle, star of circle, star, star) 2/3, words (6 + 2) / 2.
    """
    captions = [("A circle, a disc, a dog.", ["circle", "star"]), ("A star.", ["star"])]
    answers = [
        Answer(Question("", "x", "?", {"objects": objects, "synonyms": SYNONYMS}, 9), text)
        for text, objects in captions
    ]
    assert chair.score(answers) == pytest.approx({"chair_s": 1 / 2, "chair_i": 1 / 4, "recall": 2 / 3, "words": 4})


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "image": "x"}) + "\n")
    with pytest.raises(MinipovidError, match="line 1 is no POPE question"):
        pope.questions(tmp_path / "q.jsonl")
    with pytest.raises(MinipovidError, match="objects.txt, and that file is not there"):
        chair.questions(tmp_path / "q.jsonl")
    (tmp_path / "objects.txt").write_text("circle, disc\n")
    with pytest.raises(MinipovidError, match="line 1 is no CHAIR picture"):
        chair.questions(tmp_path / "q.jsonl")
