"""What a sentence of the tiny world claims, and whether a scene holds it: read by other means than it was written."""

from __future__ import annotations

import re

from minipovid.tinyworld.scenes import PLACES, Scene


def claims(caption: str) -> list[tuple[str, ...]]:
    """(colour, shape, place) or (shape, word, shape), sentence by sentence; every sentence must be understood."""
    found = []
    for sentence in caption.removesuffix(".").split(". "):
        match = THING.match(sentence) or RELATION.match(sentence)
        assert match, sentence
        found.append(match.groups())
    return found


def holds(claim: tuple[str, ...], scene: Scene) -> bool:
    """Whether the claim is true of the scene, decided by coordinates (column, row) of the place's name."""
    if claim[1] in RELATIONS:
        first, word, second = claim
        at = {thing.shape: divmod(PLACES.index(thing.place), 3)[::-1] for thing in scene.things}
        if first not in at or second not in at:
            return False
        (x, y), (u, v) = at[first], at[second]
        return {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}[word]
    colour, shape, place = claim
    return (shape, colour, place) in [tuple(thing) for thing in scene.things]


THING = re.compile(r"(?:There is an? |An? )(\w+) (\w+) (?:is )?at the ([a-z ]+)$")


RELATION = re.compile(r"The (\w+) is (left of|right of|above|below) the (\w+)$")


RELATIONS = ("left of", "right of", "above", "below")
