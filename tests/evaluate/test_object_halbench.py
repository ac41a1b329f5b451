"""Object HalBench: the judge's lists, which COCO objects are in them, and what is counted of what is not there."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import FAILED, UNPARSED, Answer, object_halbench
from minipovid.evaluate.benchmarks.object_halbench import Benchmark, CocoNames
from minipovid.images.embedded import Embedded
from minipovid.inference.backends import Question

REAL = Path(__file__).parents[3] / "shared" / "data" / "chair" / "synonyms.txt"
SYNONYMS = """person, man, woman, people, policeman
dog, puppy
cat
bus
orange
dining table, table
chair, seat
toilet
train
tie, bow tie
hot dog
wine glass
knife
mouse
skis, ski
traffic light
"""


@pytest.fixture
def names(tmp_path: Path) -> CocoNames:
    (tmp_path / "synonyms_refine.txt").write_text(SYNONYMS)
    return CocoNames.read(tmp_path / "synonyms_refine.txt")


def answer(names: CocoNames, there: list[str], judgement: str | None, text: str = "A long enough answer.") -> Answer:
    truth = {"there": there, "names": names, "question": "Describe {answer}."}
    return Answer(Question("1", "a.jpg", "Describe it.", truth, 9), text, judgement)


# --- the parser ---

# reply, official, robust
LISTS = [
    ('["cat"]', ["cat"], ["cat"]),
    ('The objects are:\n["cat"]', ["cat"], ["cat"]),
    ('```json\n["cat"]\n```', None, ["cat"]),
    ('The objects: ["cat"]', None, ["cat"]),
    ("[]", [], []),
    ("", None, None),
    ("cat, dog", None, None),
    ("['cat', 'dog']", None, ["cat", "dog"]),
    ('{"cat": 1}', ["cat"], None),
    ("12", None, None),
    ('["cat"]\nThese are all.', None, ["cat"]),
    ("[1]", ["1"], None),
]


@pytest.mark.parametrize(("reply", "official", "robust"), LISTS)
def test_a_list_is_read(reply: str, official: list[str] | None, robust: list[str] | None) -> None:
    """The first four are the facts' table."""
    assert object_halbench.official_list(reply) == official
    assert object_halbench.robust_list(reply) == robust


# --- the nouns ---


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        (["dog", "puppy", "dogs"], ["dog", "puppy"]),
        (["dog house"], []),
        (["wooden table"], ["table"]),
        (["kitchen table"], []),
        (["hot dogs"], ["hot dog"]),
        (["two hot dogs and a cat"], ["hot dog"]),  # with a known pair, the single words of that text are passed over
        (["cat and dog"], ["cat", "dog"]),
        (["policemen", "women", "people", "knives", "mice"], ["policeman", "woman", "people", "knife", "mouse"]),
        (["seat", "toilet"], ["toilet"]),
        (["toilet seat"], ["toilet"]),
        (["seat"], ["seat"]),
        (["baby cat", "adult dog", "passenger train"], ["cat", "dog", "train"]),
        (["bow ties"], ["tie"]),
        (["orange"], ["orange"]),
        (["orange cat"], ["cat"]),
        (["parked bus"], ["bus"]),
        (["the man's dog"], ["man", "dog"]),
        (["skis", "ski"], ["skis", "ski"]),
        (["home plate", "sky", ""], []),
        (["Wine Glasses", "traffic-lights"], ["wine glass"]),
    ],
)
def test_what_is_listed_is_told_by_its_noun(names: CocoNames, listed: list[str], told: list[str]) -> None:
    assert names.listed_names(listed) == told


def test_captions_name_objects_in_order() -> None:
    """Over the real list: two-word names first, the seat of a toilet no chair, duplicates kept."""
    if not REAL.is_file():
        pytest.skip("the real synonyms (shared/data/chair) are not here")
    real = CocoNames.read(REAL)
    said = "Two dogs and a man's cat near the seat of a toilet, a passenger train, hot dogs, a bus and buses."
    assert [real.of[word] for word in real.in_text(said)] == [
        *("dog", "person", "cat", "toilet", "train", "hot dog", "bus", "bus"),
    ]
    assert len(set(real.of.values())) == 80


# --- the sums ---


def scores(answers: list[Answer], mode: str = "official") -> tuple[dict[str, float], list[str]]:
    benchmark = benchmarks.build("object_halbench", {"mode": mode})
    sheet = benchmark.grade(answers)
    return benchmark.figures(benchmarks.total(sheet.units)), [mark.verdict for mark in sheet.marks]


def test_lists_by_hand(names: CocoNames) -> None:
    """There: dog, person / cat / bus / bus / cat.

    1. dog, puppy, cat, man: 4 mentions, cat absent; dog and person named.
    2. "sky": no object of COCO's. 3. three words: not asked, nothing named. 4. no reply: counts nowhere.
    CHAIRs 1/3, refined 1/1, CHAIRi 1/4, recall 2 / (2 + 1 + 1).
    """
    answers = [
        answer(
            names, ["dog", "person"], '["dog", "puppies", "dogs", "cat", "man"]', "A man, a dog, puppies and a cat."
        ),
        answer(names, ["cat"], '["sky"]'),
        answer(names, ["bus"], None, "A red bus."),
        answer(names, ["bus"], None),
    ]
    found, verdicts = scores(answers)
    assert found == {"chair_s": 1 / 3, "chair_s_refine": 1.0, "chair_i": 0.25, "obj_rec": 0.5}
    assert verdicts == ["1 of 4 absent", "0 of 0 absent", "0 of 0 absent", FAILED]


def test_a_list_that_was_never_read_ends_the_official_script(names: CocoNames) -> None:
    """In an error, so there is no number; robustly the answer is left out, and counted as unread."""
    answers = [answer(names, ["dog"], '["cat"]'), answer(names, ["dog"], "I see a cat.")]
    found, verdicts = scores(answers)
    assert all(math.isnan(value) for value in found.values()) and verdicts == ["1 of 1 absent", UNPARSED]
    robust, verdicts = scores(answers, "robust")
    assert robust == {"chair_s": 1.0, "chair_s_refine": 1.0, "chair_i": 1.0, "obj_rec": 0.0}
    assert verdicts == ["1 of 1 absent", UNPARSED]


def test_nothing_to_divide_by(names: CocoNames) -> None:
    found, _ = scores([answer(names, ["dog"], "[]")])
    assert found["chair_s"] == 0.0 and found["obj_rec"] == 0.0
    assert math.isnan(found["chair_s_refine"]) and math.isnan(found["chair_i"])
    assert all(math.isnan(value) for value in scores([answer(names, ["dog"], None)])[0].values())


def test_what_is_not_there_is_marked(names: CocoNames) -> None:
    text = "A dog, two cats and a wine  glass."
    (mark,) = Benchmark().grade([answer(names, ["dog"], '["dog", "cat", "wine glass"]', text)]).marks
    assert [text[start:end] for start, end in mark.wrong] == ["cats", "wine  glass"] and mark.right is None


def twin(rows: list[tuple[list[str], set[str]]]) -> dict[str, float]:
    """Over words that are names themselves, by sets and lists."""
    node = {"dog": "dog", "puppy": "dog", "cat": "cat", "bus": "bus", "table": "dining table"}
    told = [[word for word in sorted(set(listed)) if word in node] for listed, _ in rows]
    bad = [sum(node[word] not in there for word in words) for words, (_, there) in zip(told, rows, strict=True)]
    hit = [len({node[word] for word in words} & there) for words, (_, there) in zip(told, rows, strict=True)]
    return {
        "chair_s": sum(map(bool, bad)) / len(rows),
        "chair_s_refine": sum(map(bool, bad)) / sum(map(bool, told)),
        "chair_i": sum(bad) / sum(map(len, told)),
        "obj_rec": sum(hit) / sum(len(there) for _, there in rows),
    }


@pytest.mark.parametrize("seed", range(10))
def test_a_twin_comes_to_the_same(names: CocoNames, seed: int) -> None:
    draw = random.Random(seed)
    words, objects = ["dog", "puppy", "cat", "bus", "table", "sky", "tree"], ["dog", "cat", "bus", "dining table"]
    rows = [
        (draw.choices(words, k=draw.randint(0, 6)), set(draw.sample(objects, draw.randint(1, 4)))) for _ in range(300)
    ]
    answers = [answer(names, sorted(there), json.dumps(listed)) for listed, there in rows]
    assert scores(answers)[0] == pytest.approx(twin(rows))


# --- the judge ---


def test_the_judge_reads_one_system_message(names: CocoNames, tmp_path: Path) -> None:
    """A hundred times at most; three words it is not asked about."""
    benchmark = Benchmark()
    request = benchmark.ask(answer(names, [], None, "Assistant: A dog on a table. "), 0)
    assert request is not None and (request.temperature, request.max_tokens) == (0.2, 512)
    ((role, text),) = request.turns
    assert role == "system" and "<answer>\nA dog on a table.\n</answer>" in text
    assert (
        benchmark.ask(answer(names, [], None), 99) is not None and benchmark.ask(answer(names, [], None), 100) is None
    )
    assert Benchmark(attempts=1).ask(answer(names, [], None), 1) is None
    assert benchmark.ask(answer(names, [], None, "Assistant: A red bus."), 0) is None
    (tmp_path / "own.txt").write_text("{question}|{answer}|{}")
    own = Benchmark(prompt=str(tmp_path / "own.txt")).ask(answer(names, [], None), 0)
    # In the official order: what looks like a blank within the question is filled, too.
    assert own is not None and own.turns[0][1] == "Describe A long enough answer..|A long enough answer.|{}"


# --- the questions ---


def picture() -> str:
    held = io.BytesIO()
    Image.new("RGB", (8, 8)).save(held, "JPEG")
    return base64.b64encode(held.getvalue()).decode()


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    (folder / "synonyms_refine.txt").write_text(SYNONYMS)
    file = folder / "obj_halbench_300_with_image.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def annotated(folder: Path, split: str, image: int) -> None:
    """COCO's two files of a split, with one picture: a bus is drawn (and a kite, which the list lacks)."""
    kinds = {"categories": [{"id": 6, "name": "bus"}, {"id": 7, "name": "kite"}]}
    drawn = [{"segmentation": [[1.5]], "image_id": image, "category_id": category} for category in (6, 7, 6)]
    folder.mkdir(exist_ok=True)
    info = {"info": {"year": 2014}, "images": [{"id": image}], "licenses": []}
    (folder / f"instances_{split}.json").write_text(json.dumps({**info, "annotations": drawn, **kinds}))
    said = [
        {"image_id": image, "id": 1, "caption": "Two men near a toilet seat."},
        {"image_id": 5, "caption": "A cat."},
    ]
    (folder / f"captions_{split}.json").write_text(json.dumps({**info, "annotations": said}))


def test_the_file_is_read_with_cocos_annotations(tmp_path: Path) -> None:
    """Objects that are drawn, and those that people wrote of; train's files are read where val lacks a picture."""
    file = written(
        tmp_path,
        {"image_id": 391895, "question": "Describe it.", "image": picture()},
        {"image_id": "391895", "question": "What is there?", "image": picture()},
    )
    annotated(tmp_path / "coco", "val2014", 391895)
    exam = Benchmark(coco=str(tmp_path / "coco"), suffix=" Please.").read(tmp_path)
    first, second = exam.questions
    assert (first.id, second.id, first.prompt) == ("391895", "391895/2", "Describe it. Please.")
    assert first.truth["there"] == ["bus", "person", "toilet"] and first.truth["question"] == "Describe it."
    assert isinstance(first.image, Embedded) and first.image.endswith(".jpg")
    names = [
        "obj_halbench_300_with_image.jsonl",
        "synonyms_refine.txt",
        "instances_val2014.json",
        "captions_val2014.json",
    ]
    assert [each.name for each in exam.files] == names
    assert exam.notes[0] == "obj_halbench_300_with_image.jsonl has 2 descriptions, and Object HalBench 300."
    assert "spaCy" in exam.notes[1] and "not official" in exam.notes[1] and "own wording" in exam.notes[2]
    annotated(tmp_path / "coco", "train2014", 8)
    written(tmp_path, {"image_id": 8, "question": "Describe it.", "image": "a.jpg"})
    both = Benchmark(coco=str(tmp_path / "coco")).read(file)
    assert both.questions[0].truth["there"] == ["bus", "person", "toilet"] and len(both.files) == 6


def test_own_pictures_need_no_coco(tmp_path: Path) -> None:
    file = written(
        tmp_path, {"image_id": 1, "question": "Describe it.", "image": "a.jpg", "objects": ["puppy", "kite"]}
    )
    assert Benchmark().read(file).questions[0].truth["there"] == ["dog", "kite"]


ROW = {"image_id": 1, "question": "Describe it.", "image": "a.jpg"}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [ROW, {"question": "?", "image": "a"}],
            "row 2 is not a picture of Object HalBench; it needs image_id (a number)",
        ),
        (
            [{**ROW, "image": ""}],
            "row 1 is not a picture of Object HalBench; it needs image_id (a number), question and",
        ),
        ([{**ROW, "question": 3}], "row 1 is not a picture of Object HalBench; it needs image_id (a number), question"),
        ([{**ROW, "image": "data:image/png;base64,AAAA"}], "(image holds 3 bytes that are no picture"),
        ([{**ROW, "objects": "dog"}], "row 1 has objects that are no list of names."),
        ([ROW, ROW], "The picture 1 is asked about twice in the same words; remove one row."),
        ([ROW, {**ROW, "image_id": 9}], "know no picture 9; are they those of 2014?"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    file = written(tmp_path, *rows)
    annotated(tmp_path / "coco", "val2014", 1)
    annotated(tmp_path / "coco", "train2014", 2)
    with pytest.raises(MinipovidError) as caught:
        Benchmark(coco=str(tmp_path / "coco")).read(file)
    assert sentence in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="holds no obj_halbench_300_with_image.jsonl; take obj_halbench_300"):
        Benchmark().read(tmp_path)
    file = written(tmp_path, ROW)
    with pytest.raises(MinipovidError) as caught:
        Benchmark().read(file)
    assert str(caught.value) == (
        "Object HalBench needs COCO's annotations of 2014: object_halbench.coco=FOLDER, the folder annotations of "
        "annotations_trainval2014.zip from cocodataset.org."
    )
    with pytest.raises(MinipovidError, match="holds no instances_val2014.json; unpack annotations_trainval2014.zip of"):
        Benchmark(coco=str(tmp_path)).read(file)
    (tmp_path / "own.txt").write_text("{question}")
    with pytest.raises(MinipovidError, match=r"own.txt needs \{question\} and \{answer\}\."):
        Benchmark(prompt=str(tmp_path / "own.txt"), coco=str(tmp_path)).read(written(tmp_path, {**ROW, "objects": []}))
    (tmp_path / "synonyms_refine.txt").unlink()
    with pytest.raises(MinipovidError, match="There is no list of synonyms .*; take eval/data/synonyms_refine.txt of"):
        Benchmark().read(file)


def test_annotations_that_are_no_coco_are_said(tmp_path: Path) -> None:
    file = written(tmp_path, ROW)
    annotated(tmp_path / "coco", "val2014", 1)
    (tmp_path / "coco" / "captions_val2014.json").write_text('{"info": 1}')
    with pytest.raises(MinipovidError, match="captions_val2014.json is not "):
        Benchmark(coco=str(tmp_path / "coco")).read(file)
