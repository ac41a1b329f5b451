"""What a user of the tiny world has before any pair is made: good answers about pictures, in LLaVA's format.

    {"id": "train-0001", "image": "images/train/train-0001.png", "conversations": [
        {"from": "human", "value": "<image>\\nDescribe the picture."}, {"from": "gpt", "value": "There is ..."}]}

No wrong answer is written here: those are a maker's, as anybody's are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from minipovid.tinyworld import text
from minipovid.tinyworld.scenes import COMPANION, SHAPES, Scene

Row = Mapping[str, object]


def about(scene: Scene, image: str, number: int) -> Iterator[Row]:
    """The scene's caption; for every other `number` a question as well, to be answered no and yes in turn."""
    yield _row(scene.name, image, text.caption_prompt(scene), text.describe(scene).text)
    if number % 2:
        present = number % 4 == 1
        shape = suspect(scene, present)
        yield _row(f"{scene.name} question", image, text.question(shape), text.answer(shape, present))


def suspect(scene: Scene, present: bool) -> str:
    """A shape about which habit suggests the wrong answer.

    With `present` False it is an absent companion of what is there; with `present` True something that stands there
    without its companion, where the scene has such a thing.
    """
    rng = random.Random(f"{scene.name} {present}")
    lonely = [shape for shape in scene.shapes if COMPANION[shape] not in scene.shapes]
    if present:
        return rng.choice(lonely or list(scene.shapes))
    missing = [shape for shape in SHAPES if shape not in scene.shapes]
    return rng.choice([COMPANION[anchor] for anchor in lonely] or missing)


def _row(name: str, image: str, prompt: str, answer: str) -> Row:
    turns = [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": answer}]
    return {"id": name, "image": image, "conversations": turns}
