"""AMBER: the facts' tables, the real files against a slow twin, the robust reading, similar words, bad files."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import UNPARSED, Answer, Grades, amber, total
from minipovid.evaluate.reading import english
from minipovid.evaluate.reading.english import Grammar

DATA = Path(__file__).parents[3] / "shared" / "data" / "amber"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real AMBER files (shared/data) are not here")

RELATION = {
    **{"ship": ["boat"], "water": ["sea"], "person": ["man", "woman"], "dog": ["puppy"], "chair": [], "cup": ["mug"]}
}
SCENES = [
    {"id": 1, "type": "generative", "truth": ["ship", "water", "ship"], "hallu": ["person"]},
    {"id": 2, "type": "generative", "truth": ["dog"], "hallu": []},
]
# Three about existence, one about a state, one about a relation.
ASKED = [
    *[{"id": at, "type": "discriminative-hallucination", "truth": "no"} for at in (3, 4, 5)],
    {"id": 6, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 7, "type": "relation", "truth": "no"},
]
LEMMAS = {"boats": "boat", "ships": "ship", "puppies": "puppy"}
# Nouns are the words of RELATION in small letters; the tagger takes a capital for a name, of which it is a noun too.
BY_HAND = Grammar(
    tokens=re.compile(r"\w+|[^\w\s]").findall,
    tags=lambda pieces: [(piece, "VBZ" if piece == "play" else "NN") for piece in pieces],
    lemma=lambda word, kind: LEMMAS.get(word, word),
)


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "grammar", lambda: BY_HAND)


def folder(path: Path, told: Sequence[Mapping[str, Any]], safe: str = "light\n") -> Path:
    """AMBER's files in small, the queries in a folder of their own, as in the repository."""
    (path / "query").mkdir(parents=True)
    for part in amber.PARTS:
        rows = [row for row in told if (row["type"] == "generative") == (part == "generative")]
        queries = [{"id": row["id"], "image": f"AMBER_{row['id']}.jpg", "query": f"{part}?"} for row in rows]
        (path / "query" / f"query_{part}.json").write_text(json.dumps(queries))
    (path / "annotations.json").write_text(json.dumps(told))
    (path / "relation.json").write_text(json.dumps(RELATION))
    (path / "safe_words.txt").write_text(safe)
    return path


def graded(path: Path, said: Mapping[int, str], **options: Any) -> tuple[Grades, dict[str, float]]:
    """The sheet and the figures, in percent, of these answers by id; questions without one are not asked."""
    benchmark = benchmarks.build("amber", options)
    questions = [question for question in benchmark.read(path).questions if int(question.id) in said]
    sheet = benchmark.grade([Answer(question, said[int(question.id)]) for question in questions])
    return sheet, {name: round(value * 100, 9) for name, value in benchmark.figures(total(sheet.units)).items()}


@pytest.mark.parametrize(
    ("said", "figures"),
    [
        ({1: "A boat on the water."}, (0.0, 66.6, 0.1, 0.0)),
        ({1: "A man on a boat with a chair."}, (66.6, 33.3, 100.0, 99.9)),
        ({1: "Boat and Water."}, (0.0, 0.0, 0.1, 0.0)),
        ({1: ""}, (0.0, 0.0, 0.1, 0.0)),
        ({1: "boats and ships", 2: "The puppies play."}, (0.0, 50.0, 0.0, 0.0)),
        ({1: "a light on a boat"}, (0.0, 33.3, 0.1, 0.0)),
    ],
)
@pytest.mark.usefixtures("by_hand")
def test_the_facts_descriptions(said: dict[int, str], figures: tuple[float, ...], tmp_path: Path) -> None:
    """ "light" is a safe word: not absent. "play" is on the list, and a verb here."""
    relation = {**RELATION, "lamp": ["light"], "toy": ["play"]}
    (folder(tmp_path / "data", SCENES) / "relation.json").write_text(json.dumps(relation))
    _, found = graded(tmp_path / "data", said)
    assert tuple(found[name] for name in ("chair", "cover", "hal", "cog")) == figures
    assert found.keys() == {"chair", "cover", "hal", "cog"}


@pytest.mark.usefixtures("by_hand")
def test_a_safe_word_stays_in_the_denominator(tmp_path: Path) -> None:
    """light, chair: one of two nouns is absent. 1 / 2.001 = 49.975 %."""
    (folder(tmp_path / "data", SCENES) / "relation.json").write_text(json.dumps({**RELATION, "lamp": ["light"]}))
    assert graded(tmp_path / "data", {1: "a light on a chair"})[1]["chair"] == 50.0
    assert graded(tmp_path / "data", {1: "a light on a chair"}, mode="robust")[1]["chair"] == 50.0


@pytest.mark.usefixtures("by_hand")
def test_the_facts_yes_and_no(tmp_path: Path) -> None:
    """Answers No, No, no, Yes, Yes: "no" in small letters is no "No"."""
    path = folder(tmp_path / "data", ASKED)
    sheet, found = graded(path, {3: "No", 4: "No", 5: "no", 6: "Yes", 7: "Yes"})
    four = ("accuracy", "precision", "recall", "f1")
    assert [found[name] for name in four] == [60.0, 100.0, 50.0, 66.7]
    assert [found[f"existence_{name}"] for name in four] == [66.6, 100.0, 66.6, 79.9]
    assert (found["attribute_accuracy"], found["state_accuracy"]) == (99.7, 99.9)
    assert [found[f"relation_{name}"] for name in four] == [0.0, 0.0, 0.0, 0.0]
    assert [mark.verdict for mark in sheet.marks] == ["no", "no", UNPARSED, "yes", "yes"]
    assert [mark.right for mark in sheet.marks] == [True, True, False, True, False]


@pytest.mark.usefixtures("by_hand")
def test_no_with_a_full_stop_is_nothing_officially(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", ASKED)
    said = dict.fromkeys(range(3, 8), "No.")
    assert set(graded(path, said)[1].values()) == {0.0}
    robust = graded(path, said, mode="robust")[1]
    assert (robust["accuracy"], robust["precision"], robust["recall"]) == (80.0, 80.0, 100.0)
    assert robust["f1"] == pytest.approx(100 * 8 / 9)
    assert math.isnan(graded(path, {6: "Yes"}, mode="robust")[1]["f1"])


@pytest.mark.usefixtures("by_hand")
def test_the_amber_score_needs_both_parts(tmp_path: Path) -> None:
    """CHAIR 66.6 and F1 66.7: (100 - 66.6 + 66.7) / 2 = 50.05."""
    path = folder(tmp_path / "data", [*SCENES, *ASKED])
    answers = {1: "A man on a boat with a chair.", 3: "No", 4: "No", 5: "no", 6: "Yes", 7: "Yes"}
    assert graded(path, answers)[1]["amber"] == 50.05
    assert "amber" not in graded(path, answers, part="generative")[1]
    assert "chair" not in graded(path, answers, part="discriminative")[1]


@pytest.mark.usefixtures("by_hand")
def test_marks_show_the_absent_words(tmp_path: Path) -> None:
    said = "A man on a boat with a chair."
    for mode in ("official", "robust"):
        mark = graded(folder(tmp_path / mode, SCENES), {1: said}, mode=mode)[0].marks[0]
        assert [said[start:end] for start, end in mark.wrong] == ["man", "chair"]
        assert (mark.unit, mark.verdict, mark.right) == ("AMBER_1.jpg", "2 of 3 absent", None)


def test_robust_descriptions(tmp_path: Path) -> None:
    """Capitals, plurals; "can" as a verb is no can, "a can" is.

    BOATS, Water, men, chairs, can: 3 of 5 absent (no tin, no man, no chair), 2 of 3 truths, person imagined.
    """
    path = folder(tmp_path / "data", SCENES)
    (path / "relation.json").write_text(json.dumps({**RELATION, "tin": ["can"]}))
    said = "BOATS can be seen on the Water, and two men with chairs and a can."
    found = graded(path, {1: said}, mode="robust")[1]
    assert found == pytest.approx({"chair": 60.0, "cover": 200 / 3, "hal": 100.0, "cog": 100.0})


# --- similar words ---


@pytest.mark.usefixtures("by_hand")
def test_similar_words(tmp_path: Path) -> None:
    """cup ~ dog (a feared word of neither), mug ~ person, man ~ puppy; truth dog, hallu person.

    "man" is feared by itself; it is similar to puppy, which stands for dog: not absent, and dog is covered.
    "mug" is similar to person: noted as imagined, and absent. "cup" is similar to dog.
    """
    scene = {"id": 1, "type": "generative", "truth": ["dog", "chair"], "hallu": ["water", "person"]}
    path = folder(tmp_path / "data", [scene])
    (tmp_path / "pairs.txt").write_text("cup, dog\nperson, mug\nman, puppy\n")
    table = {"similarity": str(tmp_path / "pairs.txt")}
    assert graded(path, {1: "a man"})[1] == {"chair": 99.9, "cover": 0.0, "hal": 100.0, "cog": 50.0}
    assert graded(path, {1: "a man"}, **table)[1] == {"chair": 0.0, "cover": 50.0, "hal": 0.1, "cog": 50.0}
    assert graded(path, {1: "a mug"}, **table)[1] == {"chair": 99.9, "cover": 0.0, "hal": 100.0, "cog": 50.0}
    assert graded(path, {1: "a cup"}, **table)[1] == {"chair": 0.0, "cover": 50.0, "hal": 0.1, "cog": 0.0}
    exam = benchmarks.build("amber", table).read(path)
    assert exam.files[-1] == tmp_path / "pairs.txt"
    assert not [note for note in exam.notes if "equality" in note]


# --- the real files ---


def twin(
    rows: Sequence[Mapping[str, Any]], said: Mapping[int, str], alike: Callable[[str, str], bool]
) -> dict[str, str]:
    """The script as the facts tell it, sum by sum, printed with one decimal."""
    relation = json.loads((DATA / "relation.json").read_text())
    known = set(relation) | {word for words in relation.values() for word in words}
    safe = (DATA / "safe_words.txt").read_text().split("\n")
    sums = dict.fromkeys(("bad", "nouns", "cover", "truth", "cog", "hallu", "clean", "texts"), 0.001)
    for name in ("bad", "cover", "cog", "clean"):
        sums[name] = 0
    asked: list[tuple[str, str, str]] = []
    for row in rows:
        text = said[row["id"]]
        if row["type"] != "generative":
            asked.append((row["type"], row["truth"], text))
            continue
        tagged = BY_HAND.tags(BY_HAND.tokens(text))
        nouns = [
            noun for noun in (BY_HAND.lemma(word, "n") for word, tag in tagged if tag[:2] == "NN") if noun in known
        ]
        marked = {"truth": [0] * len(row["truth"]), "hallu": [0] * len(row["hallu"])}
        bad = 0
        for noun in nouns:
            ways = {side: [(w, i) for i, key in enumerate(row[side]) for w in relation[key]] for side in marked}
            for side in marked:
                ways[side] += [(key, i) for i, key in enumerate(row[side])]
            if noun in safe:
                continue
            for side, same in (("truth", str.__eq__), ("hallu", str.__eq__), ("hallu", alike), ("truth", alike)):
                hit = [i for word, i in ways[side] if same(noun, word)]
                if hit:
                    marked[side][hit[0]] = 1
                    if side == "truth":
                        break
            else:
                bad += 1
        adds = [
            bad,
            len(nouns),
            sum(marked["truth"]),
            len(row["truth"]),
            sum(marked["hallu"]),
            len(row["hallu"]),
            not bad,
        ]
        for name, add in zip(sums, [*adds, 1], strict=True):
            sums[name] += add
    ratio = {
        name: sums[name] / sums[whole] * 100 for name, whole in zip(list(sums)[::2], list(sums)[1::2], strict=True)
    }
    printed = {"chair": ratio["bad"], "cover": ratio["cover"], "cog": ratio["cog"], "hal": 100 - ratio["clean"]}
    groups = {
        **{"": "", "existence_": "hallucination", "state_": "state", "number_": "number", "action_": "action"},
        **{"attribute_": "attribute", "relation_": "relation"},
    }
    for prefix, part in groups.items():
        mine = [(truth, text) for kind, truth, text in asked if part in kind]
        less = 0.003 if part == "attribute" else 0.001
        right = sum(text == truth.capitalize() for truth, text in mine)
        nos = [text for truth, text in mine if truth == "no"]
        both = nos.count("No")
        accuracy = round(right / (len(mine) + less) * 100, 1)
        precision = round(both / ([text for _, text in mine].count("No") + less) * 100, 1)
        recall = round(both / (len(nos) + less) * 100, 1)
        p, r = precision / 100, recall / 100
        f1 = 2 * p * r / (p + r + (0.001 if part == "hallucination" else 0.0001)) * 100
        for name, value in (("accuracy", accuracy), ("precision", precision), ("recall", recall), ("f1", f1)):
            printed[prefix + name] = value
    return {name: f"{value:.1f}" if value else "0.0" for name, value in printed.items()}


def noisy(row: Mapping[str, Any], rng: random.Random, words: Sequence[str]) -> str:
    if row["type"] != "generative":
        return rng.choice(["Yes", "No", "No", "yes", "No.", "Yes, it is", "", "No "])
    chosen = rng.choices([*row["truth"] * 3, *row["hallu"] * 3, *rng.sample(words, 6)], k=rng.randrange(25))
    return " ".join(rng.choice(["A", "the", "play"]) + " " + rng.choice([word, word, word.title()]) for word in chosen)


@needs_data
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("kind", ["right", "wrong", "yes", "no", "empty", "noisy"])
@pytest.mark.usefixtures("by_hand")
def test_made_up_answers_over_the_real_files_equal_a_slow_twin(kind: str, table: bool, tmp_path: Path) -> None:
    rows = json.loads((DATA / "annotations.json").read_text())
    relation = json.loads((DATA / "relation.json").read_text())
    rng, words = random.Random(1), sorted({*relation, *(word for words in relation.values() for word in words)})
    pairs = [rng.sample(words, 2) for _ in range(2000)]
    (tmp_path / "pairs.txt").write_text("".join(", ".join(pair) + "\n" for pair in pairs))
    alike = {frozenset(pair) for pair in pairs} if table else set[frozenset[str]]()
    opposite = {"yes": "No", "no": "Yes"}
    made: dict[str, Callable[[Any], str]] = {
        "right": lambda row: " ".join(row["truth"]) if row["type"] == "generative" else row["truth"].capitalize(),
        "wrong": lambda row: " ".join(row["hallu"]) if row["type"] == "generative" else opposite[row["truth"]],
        "yes": lambda row: "Yes",
        "no": lambda row: "No",
        "empty": lambda row: "",
        "noisy": lambda row: noisy(row, rng, words),
    }
    said = {row["id"]: made[kind](row) for row in rows}
    found = graded(DATA, said, **({"similarity": str(tmp_path / "pairs.txt")} if table else {}))[1]
    found.pop("amber")
    wanted = twin(rows, said, lambda one, other: one == other or frozenset((one, other)) in alike)
    assert {name: f"{value:.1f}" for name, value in found.items()} == wanted


@needs_data
def test_the_real_files(by_hand: None) -> None:
    exam = amber.Benchmark().read(DATA)
    assert len(exam.questions) == 15220
    first, last = exam.questions[0], exam.questions[-1]
    assert (first.id, first.image, first.prompt, first.max_tokens) == ("1", "AMBER_1.jpg", "Describe this image.", 1024)
    assert last.truth["label"] == "no"
    assert exam.notes == [
        "AMBER, 15,220 questions, as published.",
        "Words are compared for equality: without en_core_web_lg's similar words no figure is official.",
    ]
    asked = amber.Benchmark(part="discriminative", suffix="\nPlease answer yes or no.").read(DATA / "annotations.json")
    assert len(asked.questions) == 14216
    assert asked.questions[0].prompt == "Is the sky sunny in this image?\nPlease answer yes or no."
    assert asked.notes == ["AMBER, 14,216 questions, as published."]
    assert len(amber.Benchmark(mode="robust", part="generative").read(DATA).notes) == 3


# --- bad files ---


def told(path: Path, **options: Any) -> str:
    with pytest.raises(MinipovidError) as error:
        benchmarks.build("amber", options).read(path)
    return str(error.value)


@pytest.mark.usefixtures("by_hand")
def test_bad_files(tmp_path: Path) -> None:
    source = "take the folder data of github.com/junyangwang0410/AMBER."
    assert told(tmp_path) == f"{tmp_path} holds no annotations.json; {source}"
    path = folder(tmp_path / "data", [*SCENES, *ASKED])
    changed = amber.Benchmark().read(path).notes[0]
    assert changed.startswith("AMBER, 7 questions; not as published: annotations.json, query_generative.json,")
    query = path / "query" / "query_discriminative.json"
    rows = json.loads(query.read_text())
    needs = "an AMBER question; it needs id, image and query"
    query.write_text(json.dumps([rows[0], {"id": 4, "image": "x"}]))
    assert told(path) == f"{query}: row 2 is not {needs}."
    query.write_text(json.dumps([{**rows[0], "id": 99}]))
    assert told(path) == f"{query}: row 1 has the id 99, which annotations.json has not."
    query.write_text(json.dumps([rows[0], rows[0]]))
    assert told(path) == f"{path} asks question 3 twice; take its files as they were published."
    query.write_text(json.dumps(rows))
    (path / "relation.json").write_text("[]")
    assert told(path) == f"{path / 'relation.json'} is not AMBER's list of words that may stand for a word."
    (path / "annotations.json").write_text(json.dumps([{"id": 1, "type": "generative", "truth": "ship"}]))
    needs = "an AMBER annotation; it needs id, type and truth (yes or no, or a list of words), a description hallu too"
    assert told(path) == f"{path / 'annotations.json'}: row 1 is not {needs}."
    (path / "safe_words.txt").unlink()
    assert told(path, part="generative").startswith(f"{path / 'annotations.json'}: row 1")


@pytest.mark.usefixtures("by_hand")
def test_bad_tables_of_similar_words(tmp_path: Path) -> None:
    path = folder(tmp_path / "data", SCENES)
    nowhere, table = tmp_path / "nowhere.txt", tmp_path / "pairs.txt"
    assert told(path, similarity=str(nowhere)) == (
        f"amber.similarity is {nowhere}, but there is no such file; it must be equal or a table of pairs."
    )
    table.write_text("lake, sea\nlake\n")
    assert told(path, similarity=str(table)) == f"{table}: row 2 is not two words with a comma between."
