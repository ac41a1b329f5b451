"""Hallucinations by rule: what is changed, that nothing else is, and that what cannot be changed says so."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from minipovid.common.errors import MinipovidError
from minipovid.pairs import lexicon
from minipovid.pairs import make as making
from minipovid.pairs.formats import jsonl
from minipovid.pairs.make.makers import MakerInputs, rule
from minipovid.pairs.pair import BadRow, Pair, Seed

KITCHEN = "A brown table stands in front of a white oven. Two cups are on the left side of the table."
ANSWERS = [
    KITCHEN,
    "A red boat lies on the left of the pier.",
    "An old man in a red jacket walks along the path. The sea behind him is calm, and an umbrella stands near him.",
    "There are 3 people in front of the bus.",
    "A man is sitting at a table with a laptop and an apple.",
    "Three brown dogs lie on a sofa beside a blue cushion. The dogs are asleep.",
    "Some sheep graze on green grass by a wooden fence.",
]


def made(answer: str, name: str = "a", seed: int = 0, others: list[str] | None = None, prompt: str = "Tell.") -> Pair:
    pair = rule.Rules(rule.table([answer, *(others or [])]), seed).make(Seed(name, "a.png", prompt, answer), Path())
    assert pair.pair is not None
    return pair.pair


def variants(answer: str, count: int = 60, **more: object) -> list[Pair]:
    return [made(answer, str(n), **more) for n in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("answer", ANSWERS)
def test_spans_mark_what_was_changed_and_nothing_else(answer: str) -> None:
    """Twin: cut the spans out of the false answer; what is left stands in the true one, in order, but for articles."""
    for pair in variants(answer):
        assert pair.rejected != pair.chosen == answer and pair.spans == tuple(sorted(pair.spans))
        rest = pair.rejected
        for span in reversed(pair.spans):
            rest = rest[: span.start] + " " + rest[span.end :]
        place = iter(re.findall(r"[\w.,]", re.sub(r"\b[Aa]n?\b", "", answer)))
        assert all(each in place for each in re.findall(r"[\w.,]", re.sub(r"\b[Aa]n?\b", "", rest))), pair


def test_every_kind_comes_up_and_long_answers_get_more_changes() -> None:
    """KITCHEN has 19 words: one change; four times as long, 76 words: four."""
    short, long = variants(KITCHEN), variants(" ".join([KITCHEN] * 4))
    assert {span.kind for pair in short for span in pair.spans} == {"object", "attribute", "relation"}
    changes = {"object": 4}
    assert all(len(pair.spans) <= changes.get(pair.spans[0].kind, 1) for pair in short)
    assert Counter(len({span.kind for span in pair.spans}) for pair in long)[3] > 40
    for pair in long:  # never two words side by side: "a green stove" for "a white oven" would be no slip of the eye
        places = zip(pair.spans, pair.spans[1:], strict=False)
        assert all(pair.rejected[one.end : two.start].strip() for one, two in places)


def test_the_same_seed_gives_the_same_pair_and_another_one_another() -> None:
    assert variants(KITCHEN, 20) == variants(KITCHEN, 20)
    differing = sum(made(KITCHEN, str(n)) != made(KITCHEN, str(n), seed=1) for n in range(20))
    assert differing > 10


@pytest.mark.parametrize(
    ("answer", "rejected", "kind"),
    [
        ("Yes.", "No.", "object"),
        ("no", "Yes", "object"),
        ("Yes, there is a dog.", "No, there is no dog.", "object"),
        ("No, there is no apple on the plate.", "Yes, there is an apple on the plate.", "object"),
        ("No, there are no dogs.", "Yes, there are dogs.", "object"),
        ("Yes, the man is wearing a hat.", "No, the man is not wearing a hat.", "object"),
        ("No, they aren't open.", "Yes, they are open.", "object"),
        ("The car is in front of the gate.", "The car is behind the gate.", "relation"),
    ],
)
def test_changes_read_like_sentences(answer: str, rejected: str, kind: str) -> None:
    found = {(pair.rejected, pair.spans[0].kind) for pair in variants(answer, 80)}
    assert (rejected, kind) in found


def test_a_thing_is_replaced_wherever_it_is_named_and_by_its_like() -> None:
    """Dogs by another animal, in the plural, twice; never by a thing, never by what is there already."""
    said = "Three dogs lie on a sofa. The dogs are asleep."
    swapped = [pair for pair in variants(said, 200) if "dogs" not in pair.rejected]
    assert len(swapped) > 20
    for pair in swapped:
        first, second = (pair.rejected[span.start : span.end] for span in pair.spans)
        assert first == second and lexicon.things().names[first][1]
        assert lexicon.things().sorts[lexicon.things().names[first][0]] == "*"


def test_the_users_own_answers_say_what_stands_together() -> None:
    """Nine of ten boats come with a heron, which no list knows: it is what a boat alone is given."""
    others = [f"A boat and a heron are seen on day {n}." for n in range(9)]
    table = rule.table([*others, "A boat lies there."])
    assert table.together["boat"] == Counter({"boat": 10, "heron": 9}) and "heron" not in lexicon.things().names
    assert table.companions(["boat"], ("",))[0] == ("heron", 9.0)
    found = Counter("heron" in pair.rejected for pair in variants("A ship is near a boat.", 100, others=others))
    assert found[True] > 15


def test_what_stands_everywhere_is_no_companion_of_all() -> None:
    """A man in all 12 answers, a boat and a net in 4 of them: 4 * 4 / 12 against 4 * 4 / 4."""
    others = [f"A man, a boat and a net on day {n}." for n in range(4)] + [f"A man on day {n}." for n in range(8)]
    table = rule.table(others)
    assert table.companions(["boat"], ("",))[0] == ("net", pytest.approx(4.1))  # a tenth for their line in the list
    assert table.companions(["boat"], ("*",))[0] == ("man", pytest.approx(16 / 12))


def test_who_takes_a_place_goes_with_those_that_stay() -> None:
    """Herons come with dories, storks with zeppelins: where the zeppelin goes, the dory brings a heron."""
    others = ["A dory and a heron.", "A zeppelin and a stork."] * 9
    found = {pair.rejected for pair in variants("A dory and a zeppelin.", 100, others=others)}
    assert {text for text in found if text.count(" ") == 4} == {"A dory and a heron.", "A stork and a zeppelin."}


def test_a_sentence_about_one_thing_is_told_again_of_another() -> None:
    others = [f"A boat and a heron are seen on day {n}." for n in range(9)]
    again = [pair for pair in variants("A red boat is on the left.", 300, others=others) if "boat" in pair.rejected]
    added = [pair for pair in again if pair.rejected.count(".") == 2]
    assert len(added) > 15
    for pair in added:
        first, second = re.findall(r"[^.]+\.", pair.rejected)
        assert (
            first == pair.chosen and re.fullmatch(r" An? \w+ heron is on the right\.", second) and "red" not in second
        )
        assert [pair.rejected[start:end] for start, end, _ in pair.spans] == [second.strip()]


def test_properties_are_swapped_for_those_that_the_answers_use() -> None:
    """Two of three others are black, one is golden, none of the other colours; unknown ones are drawn evenly."""
    others = ["A black cat.", "A black dog.", "A golden dog."]
    colour = re.compile(r"A (\w+) tuba\.")
    told = [
        match[1] for pair in variants("A red tuba.", 150, others=others) if (match := colour.fullmatch(pair.rejected))
    ]
    counts = Counter(told)
    assert set(counts) == {"black", "golden"} and counts["black"] > 1.4 * counts["golden"]
    alone = {match[1] for pair in variants("A red tuba.", 150) if (match := colour.fullmatch(pair.rejected))}
    assert len(alone) > 8


@pytest.mark.parametrize(
    ("place", "others"),
    [
        ("at the top", {"at the bottom"}),
        ("at the top left", {"at the top right", "at the bottom left", "at the bottom right"}),
        ("in the upper left", {"in the upper right", "in the lower left", "in the lower right"}),
        ("at the centre", {"at the left", "at the right"}),
        ("at the left", {"at the right", "at the centre", "at the center"}),
    ],
)
def test_places_in_a_picture_give_way_to_others(place: str, others: set[str]) -> None:
    assert {pair.rejected for pair in variants(f"It is {place}.", 80)} == {f"It is {other}." for other in others}


def test_a_word_is_learnt_when_answers_call_it_a_thing_and_recur() -> None:
    """ "a heron" before a small word or a stop, three times; "a tall" and "a red" are followed by a name."""
    texts = ["A heron is here. A tall tower, a red car.", "I see a heron.", "There is a heron, a tall man", "a stork."]
    assert lexicon.recurring_words(texts, lexicon.things(), 3) == ["heron"]
    assert lexicon.recurring_words(texts[:2], lexicon.things(), 3) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("A tennis ball and a table lamp.", []),  # "a tennis kite" and "a chair lamp" would be no mistakes of an eye
        ("Two knives, 3 wooden benches.", ["knife", "bench"]),
        ("People on buses", ["person", "bus"]),
        ("The orange cat", ["cat"]),
        ("An orange on a plate", ["orange", "plate"]),
    ],
)
def test_things_are_found_that_stand_alone(text: str, named: list[str]) -> None:
    assert [thing.name for thing in lexicon.things().within(text)] == named


def test_an_article_follows_its_word() -> None:
    """a/an changes with the new word and is no claim of its own: its characters are in no span."""
    for pair in variants("An apple is on a plate.", 100):
        for index, word in enumerate(pair.rejected.split()):
            if word in ("a", "an", "A", "An"):
                following = pair.rejected.split()[index + 1]
                assert (word.lower() == "an") == (following[0] in "aeiou"), pair.rejected


def test_a_colour_that_is_a_fruit_is_no_property() -> None:
    for pair in variants("An orange lies on a plate.", 60):
        assert all(span.kind != "attribute" for span in pair.spans)


@pytest.mark.parametrize("answer", ["Hmm.", "Un chat noir dort.", "桌子上有一只杯子。", "It rained.", "12:30", "2019"])
def test_what_cannot_be_changed_says_so(answer: str) -> None:
    outcome = rule.Rules(rule.table([answer])).make(Seed("a", "a.png", "Tell.", answer), Path())
    assert outcome.pair is None and not outcome.heals
    assert outcome.reasons[0].startswith(f"nothing can be changed by rule in {answer!r}: it names no thing")


def test_numbers_stay_in_reach() -> None:
    found = {pair.rejected for pair in variants("There are 3.", 60)}
    assert found == {"There are 2.", "There are 4.", "There are 5."}


def test_the_lists_are_whole() -> None:
    """Every phrase has another one to become, of a known kind; plurals lead back; two words are two things."""
    things, swaps = lexicon.things(), lexicon.swaps()
    assert len(things.sorts) > 250 and len(swaps) > 100
    for phrase, swap in swaps.items():
        assert swap.kind in ("attribute", "relation") and swap.others and phrase not in swap.others
        assert lexicon.swap_pattern().fullmatch(phrase)
    for name, plural in things.plurals.items():
        assert things.names[plural][0] in (name, plural) and things.names[name] == (name, False)
    assert things.names.keys() & swaps.keys() == {"orange", "square"}
    assert [lexicon.plural_of(word) for word in ("cat", "bus", "fly", "toy", "torch")] == [
        *("cats", "buses", "flies", "toys", "torches")
    ]


def counted(count_on: Path | None) -> rule.Rules:
    seeds = [Seed("1", "a.png", "Tell.", "A boat on a lake."), BadRow("row 2", "the answer is empty")]
    return rule.maker(MakerInputs(lambda: seeds), rule.Options(count_on=None if count_on is None else str(count_on)))


def test_other_answers_may_be_counted(tmp_path: Path) -> None:
    """A text file, or any data that has answers; the maker's identity says which answers were counted."""
    answers = ["A boat and a net.", "A net, a boat", "", "A boat."]
    (tmp_path / "told.TXT").write_text("\n".join(answers), "utf-8")
    rows = []
    for answer in answers:
        talk = [{"from": "human", "value": "Tell."}, {"from": "gpt", "value": answer}]
        rows.append({"id": answer, "image": "a.png", "conversations": talk})
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    (tmp_path / "notepad.txt").write_bytes("\r\n".join(answers).encode("utf-16"))
    own, listed, talked = (counted(path) for path in (None, tmp_path / "told.TXT", tmp_path / "llava.json"))
    assert counted(tmp_path / "notepad.txt").identity() == listed.identity()
    assert own.table.together["boat"] == Counter({"boat": 1, "lake": 1})
    assert listed.table.together["boat"] == talked.table.together["boat"] == Counter({"boat": 3, "net": 2})
    assert listed.identity() == talked.identity() != own.identity()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.txt", None, "The answers .*none.txt cannot be read: .*No such file"),
        ("latin.txt", "ein Löwe".encode("cp1252"), "latin.txt cannot be read: it is not UTF-8 text; save it as UTF-8"),
        ("empty.txt", "\n \n", "empty.txt holds no answers to count what goes together on"),
        ("empty.json", "[]", "empty.json"),
        ("none.json", None, "none.json"),
    ],
)
def test_answers_that_cannot_be_counted_are_named(
    tmp_path: Path, name: str, content: str | bytes | None, why: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(MinipovidError, match=why):
        counted(tmp_path / name)


def test_pairs_are_made_end_to_end_without_a_teacher(tmp_path: Path) -> None:
    seeds = [Seed(str(n), "a.png", "Tell.", answer) for n, answer in enumerate([*ANSWERS, "Hmm."])]
    rows = [*seeds, BadRow("row 9", "the answer is empty")]
    (tmp_path / "a.png").write_bytes(b"whatever it is: this maker looks at none")
    inputs = MakerInputs(lambda: rows, lambda: pytest.fail("asked"))
    by = making.maker("rule", inputs, {"seed": 3})
    counts = making.make(lambda: rows, by, tmp_path / "to", root=tmp_path, progress=False)
    assert (counts.rows, counts.pairs, counts.failures, counts.left) == (9, 7, 2, 0)
    pairs = list(jsonl.read(tmp_path / "to/pairs.jsonl"))
    assert [pair.source for pair in pairs if isinstance(pair, Pair)] == [
        {"chosen": "ground truth", "rejected": rule.VERSION}
    ] * 7
    failures = [json.loads(line) for line in (tmp_path / "to/failures.jsonl").read_text("utf-8").splitlines()]
    assert "nothing can be changed by rule in 'Hmm.'" in failures[0]["reasons"][0]
    before = (tmp_path / "to/pairs.jsonl").read_bytes()
    random.seed(99)
    again = making.maker("rule", inputs, {"seed": 3})
    making.make(lambda: rows, again, tmp_path / "again", root=tmp_path, progress=False)
    assert (tmp_path / "again/pairs.jsonl").read_bytes() == before
