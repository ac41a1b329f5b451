"""POPE over the tiny world: balanced yes/no questions whose "no" half is chosen by one of three rules.

    random       absent objects, drawn evenly
    popular      the absent objects that are most frequent in the everyday world
    adversarial  the absent objects that most often come together with those that are there

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models" (EMNLP 2023), section 4. Frequencies and
co-occurrences are counted over scenes with habits, as POPE counts them over COCO.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations

from minipovid.tinyworld import text
from minipovid.tinyworld.scenes import SHAPES, Scene, habit_scene

RULES = ("random", "popular", "adversarial")
EACH = 2  # questions of either answer about one picture; every scene has at least two things
_CORPUS = 2000  # scenes that are counted

Picture = Callable[[Scene], str]


class Census:
    """How often shapes, and pairs of different shapes, stand in the scenes."""

    def __init__(self, scenes: Iterable[Scene]) -> None:
        self.alone: Counter[str] = Counter()
        self.together: Counter[frozenset[str]] = Counter()
        for scene in scenes:
            self.alone.update(scene.shapes)
            self.together.update(frozenset(pair) for pair in combinations(scene.shapes, 2))

    def beside(self, shape: str, others: Iterable[str]) -> int:
        """How often `shape` came together with any of `others`."""
        return sum(self.together[frozenset((shape, other))] for other in others)


@lru_cache(maxsize=1)
def everyday() -> Census:
    """The census of the world with habits."""
    return Census(habit_scene(f"census {number}") for number in range(_CORPUS))


def absent(scene: Scene, rule: str, census: Census) -> list[str]:
    """The `EACH` absent shapes that `rule` asks about. Equal counts are settled by the alphabet."""
    missing = [shape for shape in SHAPES if shape not in scene.shapes]
    if rule == "random":
        return random.Random(f"{scene.name} absent").sample(missing, EACH)
    score: Callable[[str], int] = {
        "popular": lambda shape: census.alone[shape],
        "adversarial": lambda shape: census.beside(shape, scene.shapes),
    }[rule]
    return sorted(missing, key=lambda shape: -score(shape))[:EACH]


def pope(scenes: Sequence[Scene], rule: str, picture: Picture) -> list[Mapping[str, object]]:
    """Rows of a POPE file, yes and no in turn; the present shapes asked about are the same under every rule."""
    rows: list[Mapping[str, object]] = []
    for scene in scenes:
        there = random.Random(f"{scene.name} present").sample(scene.shapes, EACH)
        for pair in zip(there, absent(scene, rule, everyday()), strict=True):
            for shape, label in zip(pair, ("yes", "no"), strict=True):
                number, asked = len(rows) + 1, text.question(shape)
                rows.append({"question_id": number, "image": picture(scene), "text": asked, "label": label})
    return rows
