"""The check of pairs: every planted defect is reported with its row, and the style leak knows a tell from chance."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.pairs.check import SAMPLE, check
from minipovid.pairs.check.findings import KEPT
from minipovid.pairs.check.leak import SparseRows, fit, leak
from minipovid.pairs.check.lengths import Lengths
from minipovid.pairs.check.report import CheckReport
from minipovid.pairs.check.wording import wording
from minipovid.pairs.pair import Pair, Span
from minipovid.recipe import read as recipes
from minipovid.tinyworld import CHECKPOINT

WORDS = (
    *("boat", "pier", "gull", "sail", "rope", "crate", "dog", "man", "cup", "lamp"),
    *("table", "chair", "window", "plate", "fork", "tree", "road", "car"),
)


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A sound row that resembles no other."""
    rng = random.Random(number)
    chosen = " ".join(rng.choices(WORDS, k=12))
    rejected = f"{chosen} {rng.choice(WORDS)}{number}"
    sound = {"id": str(number), "image": f"{number}.png", "prompt": "Describe it.", "chosen": chosen}
    return {**sound, "rejected": rejected, **changes}


def written(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    """The rows as a file, with a picture for each that is called like its own number."""
    for each in rows:
        path = folder / str(each["image"])
        if path.suffix == ".png" and path.stem.isdigit() and not path.exists():
            Image.new("RGB", (8, 8), (int(path.stem) % 256, 0, 0)).save(path)
    path = folder / name
    lines = [json.dumps(each) for each in rows]
    path.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]", encoding="utf-8")
    return path


def found(report: CheckReport) -> set[tuple[str, str]]:
    """(kind of defect, row)"""
    return {(kind, place) for kind, kept in report.findings.first.items() for place, _ in kept}


def test_every_planted_defect_is_reported_with_its_row(tmp_path: Path) -> None:
    text = row(2)
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((64, 64), 40).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    rows = [
        row(1),
        row(2),
        row(3, image="2.png", chosen=text["chosen"], rejected=text["rejected"]),  # all the same as row 2
        row(4, image="2.png", chosen=text["rejected"], rejected=text["chosen"]),  # sides of row 2 exchanged
        row(5, image="1.png"),  # the question of row 1
        row(6, chosen=text["chosen"], rejected=text["rejected"]),  # the answers of row 2, another picture
        row(7, image="gone.png"),
        row(8, image="empty.png"),
        row(9, image="cut.png"),
        row(10, image="../outside.png"),
        row(11, prompt="What is in COCO_train2014_000000000999.jpg?"),
        row(12, prompt="Describe <image> in two sentences."),
        row(13, prompt="What is on the table here?", chosen="What is on the table here? A cup."),
        row(14, rejected="I'm sorry, but I cannot see the picture."),
        row(15, chosen="A cup.\nUSER: and what else?"),
        row(16, prompt="  "),
        row(17, rejected=""),
        row(1, image="18.png", prompt="Another."),  # the id of row 1
        row(19, rejected=row(19)["chosen"] + " "),
    ]
    report = check(written(tmp_path, rows))
    assert found(report) == {
        ("repeated pair", "row 3 (id 3)"),
        ("contradiction", "row 4 (id 4)"),
        ("repeated question", "row 5 (id 5)"),
        ("repeated answers", "row 6 (id 6)"),
        *(("missing or unreadable picture", f"row {n} (id {n})") for n in (7, 8, 9, 10)),
        ("another picture", "row 11 (id 11)"),
        ("placeholder in the text", "row 12 (id 12)"),
        ("question in the answer", "row 13 (id 13)"),
        ("refusal or talk", "row 14 (id 14)"),
        ("marks of a chat", "row 15 (id 15)"),
        *(("unusable row", f"row {n} (id {n})") for n in (16, 17, 19)),
        ("unusable row", "row 18 (id 1)"),
    }
    assert not report.ok and (report.rows, report.pairs) == (19, 15)
    assert report.findings.first["contradiction"][0][1] == "it prefers what row 2 (id 2) rejects"
    assert "cut short or damaged" in dict(report.findings.first["missing or unreadable picture"])["row 9 (id 9)"]
    assert any(each.startswith("contradiction: 1 row; the first is row 4") for each in report.problems)
    assert any(each.startswith("repeated pair: 1 row; the first is row 3") for each in report.warnings)
    assert json.loads(json.dumps(report.as_dict()))["defects"]["unusable row"]["rows"] == 4


def test_sound_pairs_have_no_defect(tmp_path: Path) -> None:
    report = check(written(tmp_path, [row(n) for n in range(40)]))
    assert found(report) == set() and report.ok and report.problems == []
    assert report.table()[0] == {"what": "pairs", "found": "40 of 40 rows (jsonl)"}
    assert [each["what"] for each in report.table()][-1] == "style leak"


def test_a_foreign_row_with_a_taken_id_is_named(tmp_path: Path) -> None:
    """The reader gives the second one an id of its own, and training would not mind."""
    keys = {"id": "7", "images": ["7.png"], "prompt": "What is this?", "chosen": "A cat."}
    rows = [{**keys, "rejected": "A dog."}, {**keys, "rejected": "A cow."}, {**keys, "id": "8", "rejected": "An ox."}]
    path = tmp_path / "trl.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in rows), encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "7.png")
    report = check(path)
    asked_again = {("repeated question", f"row {n} (id {name})") for n, name in ((2, 7), (3, 8))}
    assert found(report) == {("repeated id", "row 2 (id 7)"), *asked_again}
    assert report.ok and report.format == "trl"


def test_answers_to_two_questions_are_named(tmp_path: Path) -> None:
    """A mismatch of prompts in POVID's own format, where both sides bring theirs."""
    turns = [("human", "<image>\nWhat is this?"), ("human", "What is that?"), ("gpt", "A cat."), ("gpt", "A dog.")]
    (this, that, good, bad) = ({"from": who, "value": text} for who, text in turns)
    sides = [(this, this), (this, that)]
    rows: list[dict[str, Any]] = [
        {"id": str(n), "image": "1.png", "conversations": [one, good], "rejected_conversations": [other, bad]}
        for n, (one, other) in enumerate(sides, 1)
    ]
    report = check(written(tmp_path, rows, "povid.json"))
    assert report.format == "povid" and found(report) == {("unusable row", "row 2 (id 2)")}
    assert "question" in report.problems[0]


def test_pictures_that_are_not_decoded_are_only_looked_for(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    report = check(written(tmp_path, [row(1, image="cut.png"), row(2, image="gone.png")]), decode=False)
    assert found(report) == {("missing or unreadable picture", "row 2 (id 2)")}


def test_pictures_inside_the_data_file_are_seen_too(tmp_path: Path) -> None:
    """Whole and cut short; the sample keeps none of their bytes."""
    import base64

    Image.effect_noise((64, 64), 40).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    pictures = [base64.b64encode(each).decode() for each in (data, data[:900])]
    rows = [
        {"images": [{"bytes": picture, "path": None}], "prompt": "What?", "chosen": "A cup.", "rejected": f"A {n}."}
        for n, picture in enumerate(pictures)
    ]
    path = tmp_path / "trl.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in rows), encoding="utf-8")
    report = check(path)
    assert report.format == "trl" and report.pictures == 2
    assert found(report) == {("missing or unreadable picture", "row 2")}


def test_tokens_are_the_tokenizers_own_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """The prompt's placeholder is one token of the text and, in the model, 64 (8 x 8 patches of the tiny world's
    pictures): a row takes 63 more than its text."""
    from transformers import AutoTokenizer

    rows = [row(1), row(2, rejected=" ".join(WORDS * 3))]
    path = written(tmp_path, rows)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = f"USER: <image>\n{rows[1]['prompt']} ASSISTANT: {rows[1]['rejected']}</s>"
    wanted = len(tokenizer(text).input_ids) + 63
    fits = check(path, model="tinyworld", max_length=wanted)
    assert fits.tokens is not None and found(fits) == set()
    assert (fits.tokens.longest, fits.tokens.most, fits.tokens.picture, fits.tokens.too_long) == (wanted, wanted, 64, 0)
    tight = check(path, model="tinyworld", max_length=wanted - 1)
    assert found(tight) == {("too long", "row 2 (id 2)")} and not tight.ok
    assert tight.tokens is not None and tight.tokens.too_long == 1


def test_special_tokens_are_told_as_what_they_are(tmp_path: Path) -> None:
    """Where a model is named. The sign that ends an answer is sound behind it; without a model it is only remarked."""
    rows = [
        row(1, chosen=row(1)["chosen"] + "</s>", rejected=row(1)["rejected"] + " </s>"),
        row(2, chosen="An <image> in the answer."),
        row(3, rejected="A </s> in the answer."),
        row(4, prompt="What does <s> stand for?"),
        row(5, chosen="A <pad>."),
    ]
    path = written(tmp_path, rows)
    named, marks = check(path, model="tinyworld"), {("marks of a chat", f"row {n} (id {n})") for n in (1, 3, 4)}
    special = {("special token in the text", f"row {n} (id {n})") for n in (2, 3, 4, 5)}
    assert found(named) == {*marks, *special, ("placeholder in the text", "row 2 (id 2)")} and not named.ok
    assert check(path).findings.counts.keys() == {"marks of a chat", "placeholder in the text"}
    assert check(written(tmp_path, rows[:1]), model="tinyworld").ok


def pairs(count: int, seed: int = 0, per_picture: int = 2) -> list[Pair]:
    """Answers that differ by one word, drawn alike for both sides."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        words = rng.choices(WORDS, k=12)
        other = list(words)
        place = rng.randrange(12)
        other[place] = rng.choice([word for word in WORDS if word != words[place]])
        drawn.append(Pair(str(number), f"{number // per_picture}.png", "What?", " ".join(words), " ".join(other)))
    return drawn


def score(made: list[Pair]) -> float:
    measured = leak(made)
    assert measured is not None
    return measured.accuracy


def test_the_style_leak_is_at_chance_where_sides_are_shuffled() -> None:
    assert abs(score(pairs(1000)) - 0.5) < 0.06
    rng = random.Random(1)
    telling = [replace(pair, rejected=pair.rejected + " as can be seen") for pair in pairs(1000)]
    shuffled = [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if rng.random() < 0.5 else pair for pair in telling
    ]
    assert abs(score(shuffled) - 0.5) < 0.06


@pytest.mark.parametrize(
    ("tell", "word"), [(" as can be seen", "can be"), (" !", "!"), ("\n\nIn short.", "\\n"), (" 的", "的")]
)
def test_a_planted_tell_is_found_and_named(tell: str, word: str) -> None:
    made = [replace(pair, rejected=pair.rejected + tell) for pair in pairs(300)]
    measured = leak(made)
    assert measured is not None and measured.accuracy > 0.98
    assert word in [each.words for each in measured.telling]
    assert all(each.rejected == 300 and each.chosen == 0 for each in measured.telling[:1])
    assert "style leak" in str(measured.warning())


def test_a_tell_in_some_of_the_pairs_gives_the_share_it_should() -> None:
    """In 60 of 100 pairs the words give it away, the others are a coin's toss: 0.6 + 0.4 / 2 = 0.8."""
    rng = random.Random(2)
    made = [replace(p, rejected=p.rejected + " nearby") if rng.random() < 0.6 else p for p in pairs(2000)]
    assert abs(score(made) - 0.8) < 0.04


def test_no_picture_is_on_both_sides_of_a_fold() -> None:
    """In each picture's pairs a word of their own stands for the good side and another for the bad one. Whoever learns
    them from the same picture's other pairs scores 1; who has not seen the picture cannot know them."""
    made = []
    for pair in pairs(600, per_picture=6):
        name = pair.image[:-4]
        made.append(replace(pair, chosen=f"{name}y {pair.chosen}", rejected=f"{name}x {pair.rejected}"))
    assert abs(score(made) - 0.5) < 0.08
    assert score([replace(pair, image=pair.id) for pair in made]) > 0.9


def test_a_leak_needs_two_pictures() -> None:
    assert leak([]) is None
    assert leak([replace(pair, image="1.png") for pair in pairs(10)]) is None


def test_the_weights_are_those_of_newtons_method() -> None:
    """A dense twin, written differently: Newton steps on sum log(1 + exp(-x . w)) + |w|^2 / 2.

    For one feature that each of 3 rows has it is 3 / (1 + e^w) = w, which w = 0.8797 solves: 3 / (1 + 2.4102) = 0.8797.
    """
    rng = np.random.default_rng(0)
    dense = rng.choice([-1.0, 0.0, 1.0], (40, 6), p=[0.2, 0.5, 0.3])
    weights = np.zeros(6)
    for _ in range(30):
        chance = 1 / (1 + np.exp(dense @ weights))
        slope = weights - dense.T @ chance
        curve = np.eye(6) + dense.T @ (dense * (chance * (1 - chance))[:, None])
        weights -= np.linalg.solve(curve, slope)
    row, feature = np.nonzero(dense)
    mine = fit(SparseRows(row, feature, dense[row, feature], dense.shape))
    assert np.allclose(mine, weights, atol=0.02)
    ones = SparseRows(np.arange(3), np.zeros(3, int), np.ones(3), (3, 1))
    assert fit(ones)[0] == pytest.approx(0.8797, abs=0.005)


def test_length_gap_by_hand() -> None:
    """Chosen 4 and 10 characters, rejected 8 and 10: means 7 and 9, a gap of 2/7; longer in half, equal in half."""
    lengths = Lengths()
    for good, bad in (("abcd", "abcdefgh"), ("abcdefghij", "bcdefghijk")):
        lengths.see(Pair("1", "1.png", "?", good, bad))
    gap = lengths.summary()
    assert gap[:3] == (2, 7.0, 9.0) and gap[3:] == (0.5, 0.5)
    assert gap.gap == pytest.approx(2 / 7) and gap.by_length == pytest.approx(0.75)
    assert gap.warning() is None  # two pairs say nothing
    for _ in range(50):
        lengths.see(Pair("1", "1.png", "?", "abcd", "abcdefgh"))
    assert "the rejected answers are 9" in str(lengths.summary().warning())


def test_words_changed_and_their_kinds_by_hand() -> None:
    """One word of 8 + 8 has no partner on either side: 2 / 16. "dog" is a thing of the lists, "left" a relation."""
    one = Pair("1", "1.png", "?", "a cat lies on the mat over there", "a dog lies on the mat over there")
    two = Pair("2", "2.png", "?", "the cup stands on the right of it now", "the cup stands on the left of it now")
    assert wording([one]).changed == pytest.approx(2 / 16)
    assert wording([one, two]).kinds == {"object": 1, "relation": 1}
    marked = replace(one, spans=(Span(2, 5, "object"),))
    assert wording([marked]).kinds == {} and wording([marked]).unspanned == 0


@pytest.mark.usefixtures("built_in_pairs")
def test_the_built_in_world_is_sound_and_a_run_brings_its_own_model_and_length(tmp_path: Path) -> None:
    report = check("tinyworld", limit=60, decode=False)
    assert report.ok and report.tokens is not None and report.tokens.model == "tinyworld"
    assert report.makers.sources == {"ground truth / rule v2": 60}
    assert report.makers.marked == 60 and set(report.makers.kinds) <= {"object", "relation", "attribute"}

    lines = report.path.read_text(encoding="utf-8").splitlines()[:7]
    with pytest.raises(MinipovidError, match=r"holds no pairs.jsonl yet; name the file of pairs, tinyworld\."):
        check(a_run(tmp_path))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    of_run = check(tmp_path)
    assert of_run.ok and of_run.pairs == 7 and of_run.tokens is not None
    assert (of_run.tokens.model, of_run.tokens.max_length) == ("tinyworld", 200)


def a_run(folder: Path) -> Path:
    recipe = recipes.read(recipes.find("tinyworld"), ["data.max_length=200"])
    recipes.write(recipe, folder / "recipe.yaml")
    return folder


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("nothing.jsonl", {}, "There is no file .*nothing.jsonl"),
        ("pairs.jsonl", {"images": Path("/nowhere/at/all")}, "There is no image folder /nowhere/at/all"),
        ("pairs.jsonl", {"format": "jsonk"}, "Did you mean 'jsonl'"),
    ],
)
def test_what_cannot_be_checked_is_a_sentence(
    tmp_path: Path, path: str, options: dict[str, Any], sentence: str
) -> None:
    written(tmp_path, [row(1)])
    with pytest.raises(MinipovidError, match=sentence):
        check(tmp_path / path, **options)


def test_a_file_without_a_usable_pair_is_a_problem(tmp_path: Path) -> None:
    report = check(written(tmp_path, [row(1, rejected="")]))
    assert not report.ok and "no usable pair among 1 rows." in report.problems
    assert report.leak is None and report.table()


def test_many_defects_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    rows = [row(n, image="1.png", chosen=row(1)["chosen"], rejected=row(1)["rejected"]) for n in range(1, KEPT + 52)]
    report = check(written(tmp_path, rows))
    assert report.findings.counts == {"repeated pair": KEPT + 50}
    assert len(report.findings.first["repeated pair"]) == KEPT
    assert report.defects(3)[-1] == {"defect": "repeated pair", "row": f"{KEPT + 47:,} more", "why": ""}


# ru_maxrss would begin with what pytest itself took, before exec.
PROGRAM = r"""
import json, re, sys, time
from minipovid.pairs.check import check
began = time.monotonic()
report = check(sys.argv[1])
seconds = time.monotonic() - began
told = {"mib": int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024, "seconds": seconds}
told |= {"torch": "torch" in sys.modules, "rows": report.rows, "leak": report.leak.pairs}
print(json.dumps({**told, "wording": report.wording.pairs, "table": report.table()[-1]["found"]}))
"""


@pytest.mark.slow
def test_100_000_rows_stay_below_500_mib(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    rng = random.Random(0)
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(100_000):
            words = rng.choices(WORDS, k=100)
            texts = {"chosen": " ".join(words), "rejected": " ".join([*words[:50], f"x{number}", *words[51:]])}
            image = f"{number % 10}.png" if number % 7 else "0.png"
            file.write(json.dumps({"id": str(number), "image": image, "prompt": f"What {number}?", **texts}) + "\n")
    for number in range(1, 10):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "0.png").read_bytes())
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "pairs.jsonl")], capture_output=True, text=True, check=True
    )
    told = json.loads(child.stdout)
    print(told)
    assert told["rows"] == 100_000 and told["mib"] < 500 and not told["torch"]
    assert told["leak"] == told["wording"] == SAMPLE and f"a sample of {SAMPLE:,} pairs" in told["table"]
