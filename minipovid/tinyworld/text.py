"""What the tiny world says of a scene: captions, questions and answers.

    There is a red circle at the top left. There is a white cross at the bottom. The circle is above the cross.

Every thing is told, and for half of the scenes how two of them stand.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

from minipovid.tinyworld.scenes import PLACES, SHAPES, Scene, Thing

OBJECTS = SHAPES  # the names that a caption can mention
CAPTION_PROMPTS = ("Describe the picture.", "What is in the picture?", "Tell me what you see.")
SYNONYMS = {"circle": ("disc", "dot"), "diamond": ("rhombus",), "moon": ("crescent",), "ring": ("hoop", "annulus")}


class Relation(NamedTuple):
    """`first` is `word` `second`: the circle is left of the cross."""

    first: str
    word: str
    second: str


class Caption(NamedTuple):
    """The claims of a caption, in order, and which of the two phrasings it uses."""

    things: tuple[Thing, ...]
    relation: Relation | None
    style: int

    @property
    def text(self) -> str:
        told = [_sentence(thing, self.style) for thing in self.things]
        if self.relation is not None:
            told.append(f"The {self.relation.first} is {self.relation.word} the {self.relation.second}.")
        return " ".join(told)


def _sentence(thing: Thing, style: int) -> str:
    """One thing in one of the two phrasings."""
    article = _article(thing.colour)
    if style == 0:
        return f"There is {article} {thing.colour} {thing.shape} at the {thing.place}."
    return f"{article.capitalize()} {thing.colour} {thing.shape} is at the {thing.place}."


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def caption_prompt(scene: Scene) -> str:
    """One of CAPTION_PROMPTS, drawn by the scene's name."""
    return random.Random(f"{scene.name} prompt").choice(CAPTION_PROMPTS)


def describe(scene: Scene) -> Caption:
    """The true caption of a scene; phrasing and relation are drawn by the scene's name."""
    rng = random.Random(f"{scene.name} caption")
    first, second = rng.sample(scene.things, 2)
    relation = Relation(first.shape, rng.choice(relation_words(first, second)), second.shape)
    return Caption(scene.things, relation if rng.random() < 0.5 else None, rng.randrange(2))


def relation_words(first: Thing, second: Thing) -> list[str]:
    """Every word that is true of `first` beside `second`; never empty, because two things never share a place."""
    words = []
    if first.column != second.column:
        words.append("left of" if first.column < second.column else "right of")
    if first.row != second.row:
        words.append("above" if first.row < second.row else "below")
    return words


def is_true(caption: str, scene: Scene) -> bool:
    """Is every sentence of a caption one that could truly be said of the scene, colours, places and relations too?"""
    true = {_sentence(thing, style) for thing in scene.things for style in (0, 1)}
    for first, second in permutations(scene.things, 2):
        true |= {f"The {first.shape} is {word} the {second.shape}." for word in relation_words(first, second)}
    return set(caption.replace(". ", ".\n").split("\n")) <= true


def question(shape: str) -> str:
    """POPE's question."""
    return f"Is there {_article(shape)} {shape} in the picture?"


def answer(shape: str, present: bool) -> str:
    return f"Yes, there is {_article(shape)} {shape}." if present else f"No, there is no {shape}."


def conversation(scene: Scene, turns: int = 5) -> list[tuple[str, str]]:
    """Different yes/no questions about one scene with their answers, about half of each as far as the scene allows."""
    rng = random.Random(f"{scene.name} questions")
    absent = [shape for shape in SHAPES if shape not in scene.shapes]
    present = min(len(scene.things), turns // 2 + rng.randrange(2))
    asked: Sequence[str] = rng.sample(scene.shapes, present) + rng.sample(absent, turns - present)
    return [(question(shape), answer(shape, shape in scene.shapes)) for shape in rng.sample(asked, turns)]


def tour(scene: Scene, turns: int = 5) -> list[tuple[str, str]]:
    """Questions about different places, about half of them empty: what teaches a model where to look."""
    rng = random.Random(f"{scene.name} places")
    at = {thing.place: thing for thing in scene.things}
    full = min(len(at), turns // 2 + rng.randrange(2))
    places = rng.sample(sorted(at), full) + rng.sample([place for place in PLACES if place not in at], turns - full)
    what = {place: f"{_article(each.colour).capitalize()} {each.colour} {each.shape}." for place, each in at.items()}
    return [(f"What is at the {place}?", what.get(place, "Nothing.")) for place in rng.sample(places, turns)]
