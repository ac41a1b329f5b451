"""CHAIR: the facts' captions in all three pipelines, sums by hand, COCO and one's own pictures as files, bad files."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import small_nltk

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import Answer, chair, total
from minipovid.evaluate.reading import english
from minipovid.evaluate.reading.english import Grammar
from minipovid.inference.backends import Question
from minipovid.tinyworld import text as tiny

SYNONYMS = Path(__file__).parents[3] / "shared" / "data" / "chair" / "synonyms.txt"
needs_list = pytest.mark.skipif(not SYNONYMS.is_file(), reason="the real synonym list (shared/data) is not here")

# benchmarks.md, section 10: caption, and the objects by pattern and by lemma.
TABLE = [
    ("A bus is parked near two buses.", ["bus"], ["bus", "bus"]),
    ("There are ties and canoes.", [], ["tie", "boat"]),
    ("A baby bird sits on a bow tie.", ["bird", "tie"], ["bird", "tie"]),
    ("The seat of the toilet is up.", ["toilet"], ["toilet"]),
    ("A tennis racket and a sports ball.", ["tennis racket", "sports ball"], ["tennis racket", "sports ball"]),
    ("A motor bike next to a cheesecake and a refrigerator/freezer.", [], []),
    ("A stove top oven.", ["oven", "oven"], ["oven", "oven"]),
    ("People on a passenger train near the train tracks.", ["person", "train"], ["person", "train"]),
    ("She is seated at a desk with a mouse.", ["dining table", "mouse"], ["chair", "dining table", "mouse"]),
]
# Three captions and one of a picture that nobody knows, with what is there.
CAPTIONS = [
    ("1", "Two dogs and a cat near a man.", {"dog", "person"}),
    ("2", "A bus and buses near a car and a dog and another dog.", {"bus", "car"}),
    ("1", "A blue sky.", {"dog", "person"}),
    ("99", "A pizza.", set[str]()),
]

LEMMAS = {"buses": "bus", "ties": "tie", "canoes": "canoe", "tracks": "track", "dogs": "dog", "seated": "seat"}
BY_HAND = Grammar(
    tokens=re.compile(r"[\w/]+|[^\w\s]").findall,
    tags=lambda pieces: [(piece, "VBN" if piece == "seated" else "NN") for piece in pieces],
    lemma=lambda word, kind: word if word == "seated" and kind != "v" else LEMMAS.get(word, word),
)


def reader(words: chair.WordPipeline, monkeypatch: pytest.MonkeyPatch, file: Path = SYNONYMS) -> chair.Reader:
    if words == "pattern":
        pytest.importorskip("nltk", reason="minipovid[benchmarks] is not installed")
        pytest.importorskip("pattern", reason="minipovid[benchmarks] is not installed")
    if words == "lemma":
        monkeypatch.setattr(english, "grammar", lambda: BY_HAND)
    return chair._reader(words, file)


def named(reader: chair.Reader, caption: str) -> list[str]:
    return [mention.name for mention in reader(caption).mentions]


@needs_list
@pytest.mark.parametrize(("caption", "by_pattern", "by_lemma"), TABLE)
def test_the_facts_captions(
    caption: str, by_pattern: list[str], by_lemma: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(reader("lemma", monkeypatch), caption) == by_lemma
    assert named(reader("pattern", monkeypatch), caption) == by_pattern


@needs_list
@pytest.mark.skipif(not small_nltk.WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_facts_captions_with_nltk_and_wordnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_nltk.only(tmp_path, monkeypatch, full=True):
        read = chair._reader("lemma", SYNONYMS)
        assert [named(read, caption) for caption, _, _ in TABLE] == [by_lemma for _, _, by_lemma in TABLE]


@needs_list
@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A bus is parked near two buses.", ["bus", "bus"]),
        ("There are ties and canoes.", ["tie", "boat"]),
        ("A baby bird sits on a bow tie.", ["bird", "tie"]),
        ("A baby seagull, an adult goose, and a baby.", ["bird", "bird", "person"]),
        ("The seats of the toilets are up.", ["toilet"]),
        ("A toilet seat.", ["toilet"]),
        ("A motor bike, a motor-bike and a cheesecake.", ["motorcycle", "motorcycle", "cake"]),
        ("a refrigerator/freezer", ["refrigerator", "refrigerator"]),
        ("A stove top oven. An iPhone!", ["oven", "cell phone"]),
        ("People on a passenger train near the train tracks.", ["person", "train"]),
        ("Policemen and grandchildren with knives.", ["person", "person", "knife"]),
        ("Two wine glasses", ["wine glass"]),
        ("A hot dog, not a dog.", ["hot dog", "dog"]),
        ("", []),
    ],
)
def test_our_own_way_mends_the_scripts_mistakes(
    caption: str, objects: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(reader("own", monkeypatch), caption) == objects


def answers(rows: Sequence[tuple[str, str, set[str]]], read: chair.Reader) -> list[Answer]:
    return [
        Answer(Question(str(at), image, "?", {"objects": sorted(there), "reader": read}, 9), caption)
        for at, (image, caption, there) in enumerate(rows)
    ]


def figures(rows: Sequence[tuple[str, str, set[str]]], read: chair.Reader) -> dict[str, float]:
    benchmark = chair.Benchmark()
    return benchmark.figures(total(benchmark.grade(answers(rows, read)).units))


@needs_list
@pytest.mark.parametrize(("words", "chair_i"), [("pattern", 4 / 8), ("lemma", 4 / 9), ("own", 4 / 9)])
def test_by_hand(words: chair.WordPipeline, chair_i: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent: the cat; both dogs; the pizza of the unknown picture: 4, in three of four captions.

    Mentions: dog, cat, person; (bus,) bus, car, dog, dog; none; pizza: 8, or 9 where the singular bus is one. Named and
    there: dog, person; bus, car: 4 of 6 (2 + 2 + 2 + 0). Tokens 9 + 14 + 4 + 3 = 30 of four captions: len 0.075.
    """
    found = figures(CAPTIONS, reader(words, monkeypatch))
    length = {"len": 0.075} if words == "lemma" else {}
    assert found == pytest.approx({"chair_s": 3 / 4, "chair_i": chair_i, "recall": 4 / 6, **length}, abs=1e-15)


@needs_list
def test_a_pair_of_words_is_one_token_but_a_dining_table_is_two(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader("lemma", monkeypatch)
    assert [read(f"a {thing}.").tokens for thing in ("hot dog", "train track", "dining table", "toilet seat")] == [
        3,
        3,
        4,
        3,
    ]


@needs_list
def test_marks_show_the_absent_words(monkeypatch: pytest.MonkeyPatch) -> None:
    caption = "A baby bird and İ, two Buses; a dog."
    for words in ("pattern", "own"):
        mark = chair.Benchmark().grade(answers([("7", caption, {"dog"})], reader(words, monkeypatch))).marks[0]
        assert [caption[start:end] for start, end in mark.wrong] == ["baby bird", "Buses"]
        assert (mark.unit, mark.verdict, mark.right) == ("7", "2 of 3 absent", None)


def test_nothing_to_divide_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objects.txt").write_text("dog\n")
    found = figures([("1", "A blue sky.", set())], reader("own", monkeypatch, tmp_path / "objects.txt"))
    assert found["chair_s"] == 0.0
    assert math.isnan(found["chair_i"])
    assert math.isnan(found["recall"])


# --- slow twins ---


def twin(caption: str, singular: Callable[[str], str], lines: Sequence[str]) -> list[str]:
    """What the paper's script does, as the facts tell it: over one string of words with bars between."""
    words = "|".join(["", *(singular(token) for token in english.tokens(caption.lower())), ""])
    beasts = ["cat", "dog", "bird", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
    pairs = {
        **{f"{age}|{beast}": beast for age in ("baby", "adult") for beast in beasts},
        **{"passenger|jet": "jet", "passenger|train": "train", "bow|tie": "tie", "toilet|seat": "toilet"},
        **{"home|plate": "home plate", "train|track": "train track", "wine|glas": "wine glass"},
    }
    two = "motor bike,motor cycle,air plane,traffic light,street light,traffic signal,stop light,fire hydrant,stop sign"
    two += (
        ",parking meter,suit case,sports ball,baseball bat,baseball glove,tennis racket,wine glass,hot dog,cell phone"
    )
    two += ",mobile phone,teddy bear,hair drier,potted plant,laptop computer"
    pairs.update({pair.replace(" ", "|"): pair for pair in two.split(",")})
    at = 0
    while (bar := words.find("|", at)) >= 0 and bar + 1 < len(words):
        for pair, read in pairs.items():
            if words.startswith(f"|{pair}|", bar):
                words = words[: bar + 1] + read + words[bar + 1 + len(pair) :]
                break
        at = bar + 1
    seen = words.strip("|").split("|")
    if "toilet" in seen:
        seen = [word for word in seen if word != "seat"]
    line_of = {name: line for line in lines for name in line.strip().split(", ")}
    return [line_of[word].split(",")[0] for word in seen if word in line_of]


@needs_list
def test_pattern_equals_a_slow_twin_on_made_up_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    read = reader("pattern", monkeypatch)
    lines = SYNONYMS.read_text().splitlines()
    names = [name.strip() for line in lines for name in line.split(",")]
    rng = random.Random(0)
    odd = ["baby", "adult", "passenger", "train tracks", "home plate", "bow", "toilet seat", "seat", "stove top", "jet"]

    def word() -> str:
        name = rng.choice(names if rng.random() < 0.7 else odd)
        return rng.choice([name, name + "s", name + "es", name.title(), f"({name})", f"{name}/{name}"])

    seen = 0
    for _ in range(1500):
        caption = "".join(word() + rng.choice([" ", " ", ", ", ". ", '." ', "! "]) for _ in range(rng.randrange(14)))
        wanted = twin(caption, english.singular, lines)
        assert named(read, caption) == wanted, caption
        seen += len(wanted)
    assert seen > 5000


def before(caption: str, synonyms: Mapping[str, str]) -> list[str]:
    """How the tiny world was scored before there was `own`: two words, then one, without -s, without -es."""
    words = re.findall(r"[a-z]+", caption.lower())
    found, at = [], 0
    while at < len(words):
        for width in (2, 1):
            phrase = " ".join(words[at : at + width])
            forms = [form for form in (phrase, phrase.removesuffix("s"), phrase.removesuffix("es")) if form in synonyms]
            if forms:
                found.append(synonyms[forms[0]])
                at += width - 1
                break
        at += 1
    return found


def test_the_tiny_world_s_numbers_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = {name: shape for shape in tiny.OBJECTS for name in (shape, *tiny.SYNONYMS.get(shape, ()))}
    lines = "".join(", ".join((shape, *tiny.SYNONYMS.get(shape, ()))) + "\n" for shape in tiny.OBJECTS)
    (tmp_path / "objects.txt").write_text(lines)
    read = reader("own", monkeypatch, tmp_path / "objects.txt")
    rng = random.Random(0)
    small = ["a", "red", "The", "two", "at", "left of", "in the", "Is", "bow", "star-like"]
    for _ in range(3000):
        names = [rng.choice([*called, *small]) + rng.choice(["", "", "s", "es", "'s"]) for _ in range(12)]
        caption = "".join(name + rng.choice([" ", " ", ", ", ". "]) for name in names)
        assert named(read, caption) == before(caption, called), caption


# --- files ---


def own_pictures(folder: Path, rows: Sequence[Mapping[str, Any]], names: str = "table, desk\nbowl\ndog\n") -> Path:
    (folder / "objects.txt").write_text(names)
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pictures.jsonl"


def test_own_pictures(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "objects": ["desk", "table"], "prompt": "What is there?"},
        {"image": "b.png", "objects": ["Dog"]},
        {"image": "a.png", "objects": []},
    ]
    exam = chair.Benchmark(prompt="Look.", max_tokens=64).read(own_pictures(tmp_path, rows))
    asked = [(question.id, question.image, question.prompt, question.max_tokens) for question in exam.questions]
    assert asked == [("1", "a.png", "What is there?", 64), ("2", "b.png", "Look.", 64), ("3", "a.png", "Look.", 64)]
    assert [question.truth["objects"] for question in exam.questions] == [["table"], ["dog"], []]
    assert exam.files == [tmp_path / "pictures.jsonl", tmp_path / "objects.txt"]
    assert exam.notes == [
        "CHAIR over 3 descriptions of your own pictures.",
        "Words found by minipovid's own rules, not by a published script.",
    ]
    assert len(chair.Benchmark(pictures=2).read(tmp_path / "pictures.jsonl").questions) == 2


def coco(folder: Path) -> Path:
    """Three pictures of val2014 and one of train2014; 42 has a dog drawn, and a bowl in a caption."""
    if SYNONYMS.is_file():
        (folder / "synonyms.txt").write_bytes(SYNONYMS.read_bytes())
    else:
        (folder / "synonyms.txt").write_text("dog, puppy\nbowl\ncat\n")
    for split, numbers in (("val", (7, 42, 9)), ("train", (5,))):
        images = [{"id": number, "file_name": f"COCO_{split}2014_{number:012}.jpg"} for number in numbers]
        drawn = [{"image_id": 42, "category_id": 18, "segmentation": [[1.5]]}] if split == "val" else []
        drawn.append({"image_id": numbers[0], "category_id": 17})
        written = [{"image_id": number, "caption": "Two bowls." if number == 42 else "Sky."} for number in numbers]
        categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
        instances = {"info": {}, "annotations": drawn, "categories": categories}
        captions = {"images": images, "annotations": written}
        (folder / f"instances_{split}2014.json").write_text(json.dumps(instances))
        (folder / f"captions_{split}2014.json").write_text(json.dumps(captions))
    return folder


def test_coco_with_a_list_of_pictures(tmp_path: Path) -> None:
    (coco(tmp_path) / "images.txt").write_text("42\nval/COCO_val2014_000000000007.jpg\n\n")
    exam = chair.Benchmark(words="own").read(tmp_path)
    assert [(question.id, question.image) for question in exam.questions] == [
        ("42", "COCO_val2014_000000000042.jpg"),
        ("7", "val/COCO_val2014_000000000007.jpg"),
    ]
    assert [question.truth["objects"] for question in exam.questions] == [["bowl", "dog"], ["cat"]]
    assert {question.prompt for question in exam.questions} == {"Please describe this image in detail."}
    assert {question.max_tokens for question in exam.questions} == {512}
    files = {file.name for file in exam.files}
    assert files == {"instances_val2014.json", "captions_val2014.json", "synonyms.txt", "images.txt"}
    assert exam.notes[0] == "CHAIR over 2 pictures of COCO, those of images.txt."


def test_coco_with_a_list_beside_it_and_pictures_of_both_splits(tmp_path: Path) -> None:
    rows = [{"image_id": 5}, {"image": "COCO_val2014_000000000009.jpg", "image_id": 9}]
    (coco(tmp_path) / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exam = chair.Benchmark(words="own").read(tmp_path / "mine.jsonl")
    assert [question.image for question in exam.questions] == [
        "COCO_train2014_000000000005.jpg",
        "COCO_val2014_000000000009.jpg",
    ]
    assert [question.truth["objects"] for question in exam.questions] == [["cat"], []]
    assert len(chair.Benchmark(words="own", pictures=1).read(tmp_path / "mine.jsonl").questions) == 1


def test_coco_without_a_list_draws_from_val2014(tmp_path: Path) -> None:
    folder = coco(tmp_path)
    drawn = [
        [question.id for question in chair.Benchmark("own", seed=seed).read(folder).questions] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(drawn[0], key=int) == ["7", "9", "42"]
    exam = chair.Benchmark("own", pictures=2).read(folder)
    assert exam.notes[0] == "CHAIR over 2 pictures of COCO, drawn from val2014 with seed 0."


@needs_list
def test_coco_is_read_with_pattern_unless_told_otherwise(tmp_path: Path) -> None:
    pytest.importorskip("nltk", reason="minipovid[benchmarks] is not installed")
    pytest.importorskip("pattern", reason="minipovid[benchmarks] is not installed")
    exam = chair.Benchmark().read(coco(tmp_path))
    told = "Words as in the paper's script: pattern's singular forms; a rule parts sentences, not punkt."
    assert exam.notes[1:] == [told]
    (tmp_path / "synonyms.txt").write_text(SYNONYMS.read_text() + "moon\n")
    assert chair.Benchmark().read(tmp_path).notes[2] == "synonyms.txt is not the published list."


def test_bad_files_of_your_own(tmp_path: Path) -> None:
    (tmp_path / "alone.jsonl").write_text('{"image": "a.png", "objects": ["dog"]}\n')
    row = "a picture with its objects; it needs image and objects, a list of names"
    cases: list[tuple[Path, str]] = [
        (
            tmp_path / "alone.jsonl",
            f"CHAIR needs the names of objects in {tmp_path / 'objects.txt'}, and that file is not there; write one "
            "object per line, with its synonyms behind commas.",
        )
    ]
    for at, bad in enumerate(({"objects": ["dog"]}, {"image": "a", "objects": "dog"}, {"image": 1, "objects": []})):
        (folder := tmp_path / str(at)).mkdir()
        file = own_pictures(folder, [{"image": "a.png", "objects": ["dog"]}, bad])
        cases.append((file, f"{file}: row 2 is not {row}."))
    (folder := tmp_path / "cow").mkdir()
    file = own_pictures(folder, [{"image": "a.png", "objects": ["cow"]}])
    cases.append((file, f"{file}: row 1 has 'cow', which objects.txt does not list; add it there."))
    for path, sentence in cases:
        with pytest.raises(MinipovidError) as error:
            chair.Benchmark().read(path)
        assert str(error.value) == sentence


def test_bad_folders_of_coco(tmp_path: Path) -> None:
    def told(path: Path) -> str:
        with pytest.raises(MinipovidError) as error:
            chair.Benchmark("own").read(path)
        return str(error.value)

    wanted = "take data/synonyms.txt of github.com/LisaAnne/Hallucination."
    assert told(tmp_path) == f"{tmp_path} holds no synonyms.txt; {wanted}"
    listed = coco(tmp_path) / "images.txt"
    listed.write_text("42\nCOCO_val2014_000000000042.jpg\n")
    assert told(tmp_path) == f"{listed}: row 2 asks for picture 42 again."
    listed.write_text("kitchen.jpg\n")
    needs = "a picture of COCO; it needs image, a file name of COCO, or image_id"
    assert told(tmp_path) == f"{listed}: row 1 is not {needs}."
    listed.write_text("8\n")
    assert told(tmp_path) == f"COCO's annotations in {tmp_path} know no picture 8; are they those of 2014?"
    listed.write_text("42\n")
    (tmp_path / "synonyms.txt").write_text("bowl\n")
    assert told(tmp_path) == f"{tmp_path / 'synonyms.txt'} does not list 'dog', an object of COCO; {wanted}"
    (tmp_path / "instances_val2014.json").unlink()
    assert told(tmp_path).startswith(f"{tmp_path} holds no instances_val2014.json; ")


def test_options(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="words"):
        benchmarks.build("chair", {"words": "punkt"})
