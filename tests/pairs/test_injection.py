"""What an injected answer must be: each rule with what it lets pass and what it refuses, and why."""

from __future__ import annotations

from typing import Any

import pytest

from minipovid.pairs.injection import NotInjected, changed_places, injection, schema, script, talk, words
from minipovid.pairs.pair import Span

BOAT = "A red boat lies on the sand beside two people."


def reply(rejected: object, *spans: str, kind: str = "object") -> dict[str, Any]:
    return {"rejected": rejected, "spans": [{"text": span, "kind": kind} for span in spans]}


@pytest.mark.parametrize(
    ("chosen", "rejected", "spans", "places"),
    [
        (BOAT, BOAT.replace("red", "blue"), ["blue"], [(2, 6)]),
        (BOAT, " A green boat lies on the sand behind three dogs. ", ["green", "behind", "three dogs"], None),
        ("Yes.", "No.", ["No"], [(0, 2)]),
        ("A boat.", "A boat with two long fishing poles in it.", ["fishing poles"], [(21, 34)]),
        ("It is safe.", "It is not safe.", ["not safe"], [(6, 14)]),
        ("It is not safe.", "It is safe.", ["is safe"], [(3, 10)]),  # what is missing is touched from either side
        ("Two cats, two dogs, two birds.", "Two cats, two dogs, two fish.", ["TWO  FISH"], [(20, 28)]),
        ("A dog and a cat.", "A cat and a cat.", ["cat"], [(2, 5)]),  # the first is the new one
        ("A cat and a dog.", "A cat and a cat.", ["cat"], [(12, 15)]),  # the second is
        ("A scattered cat.", "A scattered dog near a cat.", ["dog near a"], [(12, 22)]),
        ("桌子上有一只红色的杯子。", "桌子上有一只蓝色的盘子。", ["蓝色的盘子"], [(6, 11)]),
    ],
)
def test_good_replies_pass_and_spans_are_placed(
    chosen: str, rejected: str, spans: list[str], places: list[tuple[int, int]] | None
) -> None:
    found = injection(chosen, reply(rejected, *spans))
    assert found.rejected == rejected.strip()
    said = [found.rejected[span.start : span.end] for span in found.spans]
    assert [" ".join(each.lower().split()) for each in said] == [" ".join(each.lower().split()) for each in spans]
    if places is not None:
        assert [tuple(span[:2]) for span in found.spans] == places


def test_spans_keep_their_kind_and_come_in_order() -> None:
    answer = "A blue boat lies under the sand beside two people."
    spans = [{"text": "under", "kind": "relation"}, {"text": "blue", "kind": "attribute"}]
    found = injection(BOAT, {"rejected": answer, "spans": spans})
    assert found.spans == (Span(2, 6, "attribute"), Span(17, 22, "relation"))


@pytest.mark.parametrize(
    ("chosen", "said", "reason"),
    [
        (BOAT, {}, 'no text under "rejected"'),
        (BOAT, reply(7, "x"), 'no text under "rejected"'),
        (BOAT, reply(" \n", "x"), "is empty"),
        (BOAT, reply("A red boat\x00.", "x"), "control characters"),
        (BOAT, reply("A red boat \ud800.", "x"), "control characters"),
        (BOAT, reply("a RED boat, lies on the sand beside  two people", "RED"), "says the same"),
        (BOAT, reply("A red boat. " * 12, "boat"), "too long: 143 characters, and the correct one has 46"),
        (BOAT * 5, reply("A blue boat lies on the sand beside two people.", "blue"), "too short: 47 characters"),
        (BOAT, reply("Un bateau bleu repose sur le sable.", "bleu"), "keeps too few of the words"),
        (BOAT, reply("На песке лежит синяя лодка.", "синяя"), "another script (CYRILLIC in place of LATIN)"),
        ("桌子上有一只红色的杯子。", reply("A blue cup.", "blue"), "another script (LATIN in place of CJK)"),
        (BOAT, reply(BOAT.replace("red", "blue")), "one at least"),
        (BOAT, {"rejected": BOAT.replace("red", "blue"), "spans": "blue"}, "one at least"),
        (BOAT, {"rejected": BOAT.replace("red", "blue"), "spans": ["blue"]}, 'a "text" and a "kind"'),
        (BOAT, reply(BOAT.replace("red", "blue"), "blue", kind="colour"), 'a "text" and a "kind"'),
        (BOAT, reply(BOAT.replace("red", "blue"), "green"), "'green' does not occur"),
        (BOAT, reply(BOAT.replace("red", "blue"), "boat"), "'boat' marks what the correct answer says too"),
        (BOAT, reply(BOAT.replace("red", "blue"), "blue", "blue boat"), "'blue boat' overlaps another span"),
    ],
)
def test_bad_replies_are_refused_with_a_reason(chosen: str, said: dict[str, Any], reason: str) -> None:
    with pytest.raises(NotInjected) as caught:
        injection(chosen, said)
    assert reason in str(caught.value)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m really sorry about this.",
    "I am unable to do so.",
    "Sorry, no.",
    "I cannot write false things.",
    "As an AI, I see no picture.",
    "As a large language model I decline.",
    "Sure! A blue boat.",
    "Here is the rewritten answer: a blue boat.",
    "Here's a modified version of it.",
    '"Rejected: a blue boat."',
    "The rewritten answer is: a blue boat.",
    "A blue boat, as requested.",
    "A blue boat (hallucinated).",
    "Unlike the original answer, a blue boat.",
]
MARKED = ["A blue boat.</s>", "<|im_start|>A blue boat.", "A boat <image>."]
HONEST = [
    "Here is a dog lying on a sofa.",
    "The image shows a sorry-looking dog.",
    "Two people sit in a restaurant as a waiter comes.",
    "Certainly the largest thing is the bus.",
    "The incorrect sign hangs on the wall.",
    "A person answers the phone.",
    "An AI logo is on the box.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_and_talk_about_the_task_are_seen(text: str) -> None:
    assert talk(text)
    with pytest.raises(NotInjected, match="refuses or talks about the task"):
        injection(BOAT, reply(text, "blue"))


@pytest.mark.parametrize("text", MARKED)
def test_marks_of_a_chat_are_no_talk_and_refused_all_the_same(text: str) -> None:
    assert not talk(text)
    with pytest.raises(NotInjected, match="refuses or talks about the task"):
        injection(BOAT, reply(text, "blue"))


@pytest.mark.parametrize("text", HONEST)
def test_honest_answers_are_no_talk(text: str) -> None:
    assert talk(text) == ""


def test_what_the_good_answer_says_too_is_no_refusal() -> None:
    chosen = "Sorry, the sign says in red letters that the shop is closed."
    assert injection(chosen, reply(chosen.replace("red", "blue"), "blue")).spans == (Span(24, 28, "object"),)


def test_words_and_scripts() -> None:
    assert words("Don’t—stop: x2, Straße") == ["don’t", "stop", "x2", "strasse"]
    assert words("红色 cup") == ["红", "色", "cup"]
    assert [script(text) for text in ("abc", "АБВ", "日本のテスト", "123 !", "한국어 a")] == [
        "LATIN",
        "CYRILLIC",
        "CJK",
        "",
        "HANGUL",
    ]


def test_changes_are_found_word_by_word() -> None:
    """Replaced: its own characters; added: the new words; missing: from the word before to the one behind."""
    assert changed_places("a b c", "a x c") == [(2, 3)]
    assert changed_places("a c", "a x y c") == [(2, 5)]
    assert changed_places("a b c", "a c") == [(0, 3)]
    assert changed_places("a b", "a") == [(0, 1)]
    assert changed_places("A, b!", "a b") == []


def test_the_schema_lets_through_the_lengths_that_the_rules_allow() -> None:
    """100 characters: 20 to 200; of 700 most would be 1160, more than grammars count."""
    rejected = schema("x" * 100)["properties"]["rejected"]
    assert rejected == {"type": "string", "minLength": 20, "maxLength": 200}
    assert schema("Yes.")["properties"]["rejected"] == {"type": "string", "minLength": 1, "maxLength": 46}
    assert schema("x" * 700)["properties"]["rejected"] == {"type": "string"}
