"""Pairs by rule: what is true of a scene against what habit, or carelessness, would say instead.

POVID's three families of injected hallucination: an object that usually comes along but is not there (told as one more
object, or in place of another), a wrong place or relation, a wrong colour. And yes/no questions answered from habit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from minipovid.tinyworld import text
from minipovid.tinyworld.scenes import COLOURS, COMPANION, PLACES, SHAPES, Scene, Thing
from minipovid.tinyworld.text import OPPOSITE, Caption
from minipovid.types import Pair, Span

FAMILIES = ("object", "relation", "attribute")
SOURCE = {"chosen": "tinyworld truth", "rejected": "tinyworld rule"}


def caption_pair(scene: Scene, image: str, family: str) -> Pair:
    """A true caption against one with one false claim of `family`."""
    rng = random.Random(f"{scene.name} {family}")
    true = text.describe(scene)
    inject = {"object": _object, "relation": _relation, "attribute": _attribute}[family]
    rejected, places = inject(true, rng)
    spans = tuple(Span(start, end, family) for start, end in places)
    prompt = rng.choice(text.CAPTION_PROMPTS)
    return Pair(f"{scene.name} {family}", image, prompt, true.text, rejected, SOURCE, spans)


def question_pair(scene: Scene, image: str, present: bool) -> Pair:
    """A right answer against the wrong one; the shape asked about is one for which habit suggests the wrong one.

    With `present` False it is an absent companion of what is there; with `present` True something that stands there
    without its companion, where the scene has such a thing.
    """
    rng = random.Random(f"{scene.name} {present}")
    lonely = [shape for shape in scene.shapes if COMPANION[shape] not in scene.shapes]
    if present:
        shape = rng.choice(lonely or list(scene.shapes))
    else:
        shape = rng.choice([COMPANION[anchor] for anchor in lonely] or _missing(scene))
    rejected = text.answer(shape, not present)
    spans = (Span(0, len(rejected), "object"),)
    name = f"{scene.name} {'yes' if present else 'no'}"
    return Pair(name, image, text.question(shape), text.answer(shape, present), rejected, SOURCE, spans)


def _missing(scene: Scene) -> list[str]:
    return [shape for shape in SHAPES if shape not in scene.shapes]


_Injected = tuple[str, list[tuple[int, int]]]  # the rejected text, and what in it is false


def _object(true: Caption, rng: random.Random) -> _Injected:
    """The absent companion of something: mostly in the place of what is told next, where habit strikes, or one more."""
    shapes = [thing.shape for thing in true.things]
    lonely = [index for index, shape in enumerate(shapes) if COMPANION[shape] not in shapes]
    if not lonely:
        return _stranger(true, rng)
    index = rng.choice(lonely)
    companion = COMPANION[shapes[index]]
    if rng.random() < 0.3:
        return _insert(true, index + 1, companion, rng)
    victim = index + 1 if index + 1 < len(shapes) else index - 1
    return _changed(true, _swap(true, victim, companion))


def _stranger(true: Caption, rng: random.Random) -> _Injected:
    """Where every companion is there already: any absent shape, told last."""
    shapes = [thing.shape for thing in true.things]
    return _insert(true, len(shapes), rng.choice([shape for shape in SHAPES if shape not in shapes]), rng)


def _insert(true: Caption, index: int, shape: str, rng: random.Random) -> _Injected:
    """`shape` told as number `index`, in some colour at a free place; the whole sentence is false."""
    free = [place for place in PLACES if place not in {thing.place for thing in true.things}]
    thing = Thing(shape, rng.choice(tuple(COLOURS)), rng.choice(free))
    before = Caption(true.things[:index], None, true.style).text
    things = (*true.things[:index], thing, *true.things[index:])
    sentence = "".join(text.thing_pieces(thing, true.style))
    start = len(before) + 1  # after the space
    return true._replace(things=things).text, [(start, start + len(sentence))]


def _swap(true: Caption, index: int, shape: str) -> Caption:
    """The caption with one thing's shape replaced wherever it is named."""
    old = true.things[index].shape
    things = _with(true.things, index, true.things[index]._replace(shape=shape))
    relation = true.relation
    if relation is not None:
        first, second = (shape if name == old else name for name in (relation.first, relation.second))
        relation = relation._replace(first=first, second=second)
    return true._replace(things=things, relation=relation)


def _relation(true: Caption, rng: random.Random) -> _Injected:
    """The opposite relation where one is told, else, or half the time, a wrong place."""
    if true.relation is not None and rng.random() < 0.5:
        return _changed(true, true._replace(relation=true.relation._replace(word=OPPOSITE[true.relation.word])))
    index = rng.randrange(len(true.things))
    thing = true.things[index]
    place = rng.choice([place for place in PLACES if place != thing.place])
    return _changed(true, true._replace(things=_with(true.things, index, thing._replace(place=place))))


def _attribute(true: Caption, rng: random.Random) -> _Injected:
    """A wrong colour."""
    index = rng.randrange(len(true.things))
    thing = true.things[index]
    colour = rng.choice([colour for colour in COLOURS if colour != thing.colour])
    return _changed(true, true._replace(things=_with(true.things, index, thing._replace(colour=colour))))


def _with(things: Sequence[Thing], index: int, thing: Thing) -> tuple[Thing, ...]:
    return (*things[:index], thing, *things[index + 1 :])


def _changed(true: Caption, false: Caption) -> _Injected:
    """The false caption's text and where its pieces differ from the true one's, piece by piece.

    An article that follows a new colour ("an orange") differs too, but claims nothing: openings are no spans.
    """
    places, at = [], 0
    for mine, theirs in zip(true.pieces, false.pieces, strict=True):
        if mine != theirs and not theirs.endswith(" "):
            places.append((at, at + len(theirs)))
        at += len(theirs)
    return false.text, places
