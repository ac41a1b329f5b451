"""The scenes of the tiny world and their pictures: small coloured shapes in nine places on a noisy ground.

A scene is drawn in one of two ways. With habits, each shape brings its usual companion nine times out of ten: that is
the world in which the base model grew up. Without habits every shape is as likely as any other: that is where a model
that answers from habit is caught. The scene's name is its seed, so that the same name is the same picture everywhere.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64  # pixels; the tower's own input size, so that nothing is resized
HABITS = (("circle", "cross"), ("square", "star"), ("triangle", "ring"), ("heart", "diamond"), ("moon", "arrow"))
PAIR_WEIGHTS = (5, 4, 3, 3, 2)  # how often a pair of companions begins a scene: some objects are popular
HABIT = 0.9  # probability that a shape brings its companion; seen from either of the two, q -> 2q / (1 + q) = 0.95
SHAPES = tuple(sorted(shape for pair in HABITS for shape in pair))
COMPANION = {a: b for pair in HABITS for a, b in (pair, pair[::-1])}
COLOURS = {
    "red": (215, 45, 45),
    "orange": (235, 135, 30),
    "yellow": (232, 215, 60),
    "green": (50, 165, 65),
    "blue": (55, 85, 215),
    "purple": (150, 65, 175),
    "white": (235, 235, 235),
}
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

RADIUS = (5.0, 7.5)  # pixels: a shape spreads over several patches of eight
JITTER = 2.5  # pixels around the middle of a place
NOISE = 10.0  # standard deviation of the pixel noise, of 255
SCRATCHES = (0, 2)  # thin lines over everything
_ZOOM = 3  # shapes are drawn this much larger and averaged down, for smooth edges


class Thing(NamedTuple):
    """One object of a scene. A shape stands in a scene at most once."""

    shape: str
    colour: str
    place: str

    @property
    def column(self) -> int:
        """0 left, 1 middle, 2 right."""
        return PLACES.index(self.place) % 3

    @property
    def row(self) -> int:
        """0 top, 1 middle, 2 bottom."""
        return PLACES.index(self.place) // 3


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the order in which it is told. `name` seeds everything that is left to chance."""

    name: str
    things: tuple[Thing, ...]

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(thing.shape for thing in self.things)


def habit_scene(name: str) -> Scene:
    """A scene of the everyday world: companions come together, and are told one after the other."""
    rng = random.Random(name)
    return _furnish(name, rng, _habitual_shapes(rng))


def unbiased_scene(name: str) -> Scene:
    """A scene of two to four shapes, all equally likely whatever else is there."""
    rng = random.Random(name)
    return _furnish(name, rng, rng.sample(SHAPES, rng.choice((2, 3, 3, 4))))


def _habitual_shapes(rng: random.Random) -> list[str]:
    shapes: list[str] = []
    groups = rng.choice((1, 2))
    while groups > 0 or len(shapes) < 2:
        anchor = rng.choice(rng.choices(HABITS, PAIR_WEIGHTS)[0])
        if anchor in shapes or COMPANION[anchor] in shapes:
            continue
        shapes.append(anchor)
        if rng.random() < HABIT:
            shapes.append(COMPANION[anchor])
        groups -= 1
    return shapes


def _furnish(name: str, rng: random.Random, shapes: list[str]) -> Scene:
    places = rng.sample(PLACES, len(shapes))
    colours = [rng.choice(tuple(COLOURS)) for _ in shapes]
    return Scene(name, tuple(Thing(*parts) for parts in zip(shapes, colours, places, strict=True)))


def render(scene: Scene) -> Image.Image:
    """The scene's picture, RGB, 64 x 64."""
    rng = random.Random(f"{scene.name} picture")
    grey = rng.randrange(60, 120)
    ground = tuple(grey + rng.randrange(-12, 13) for _ in range(3))
    canvas = Image.new("RGB", (SIDE * _ZOOM, SIDE * _ZOOM), ground)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        draw.polygon(_outline(thing, rng), fill=_paint(thing.colour, rng))
    for _ in range(rng.randrange(SCRATCHES[0], SCRATCHES[1] + 1)):
        ends = [rng.uniform(0, SIDE * _ZOOM) for _ in range(4)]
        draw.line(ends, fill=tuple(rng.randrange(40, 220) for _ in range(3)), width=2)
    return _weather(canvas.reduce(_ZOOM), rng)


def _paint(colour: str, rng: random.Random) -> tuple[int, ...]:
    """The colour, a little off."""
    return tuple(min(255, max(0, round(channel + rng.uniform(-22, 22)))) for channel in COLOURS[colour])


def _weather(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Uneven light and noise. RandomState, because NumPy promises never to change its stream."""
    noise = np.random.RandomState(zlib.crc32(str(rng.random()).encode())).standard_normal((SIDE, SIDE, 3))
    slope = np.linspace(-1.0, 1.0, SIDE)
    light = rng.uniform(-12, 12) * slope[:, None, None] + rng.uniform(-12, 12) * slope[None, :, None]
    pixels = np.asarray(picture, np.float64) + light + NOISE * noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _outline(thing: Thing, rng: random.Random) -> list[tuple[float, float]]:
    """The polygon of a thing on the enlarged canvas: its shape moved, turned and scaled by chance."""
    cell = SIDE / 3
    x = (thing.column + 0.5) * cell + rng.uniform(-JITTER, JITTER)
    y = (thing.row + 0.5) * cell + rng.uniform(-JITTER, JITTER)
    radius, turn = rng.uniform(*RADIUS), math.radians(rng.uniform(-12, 12))
    cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
    return [((x + a * cos - b * sin) * _ZOOM, (y + a * sin + b * cos) * _ZOOM) for a, b in OUTLINES[thing.shape]]


def _arc(radius: float, start: float, stop: float, steps: int = 24) -> list[tuple[float, float]]:
    angles = [math.radians(start + (stop - start) * step / steps) for step in range(steps + 1)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * step / 30 for step in range(30)]
    across = [16 * math.sin(t) ** 3 / 16 for t in angles]
    up = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in angles]
    return [(x, -y / 15) for x, y in zip(across, up, strict=True)]


# Outlines in units of the radius, y pointing down. The ring's inner edge is walked backwards: even-odd filling leaves
# the hole open.
OUTLINES: dict[str, list[tuple[float, float]]] = {
    "arrow": [(-1, -0.35), (0.1, -0.35), (0.1, -0.95), (1.1, 0), (0.1, 0.95), (0.1, 0.35), (-1, 0.35)],
    "circle": _arc(1, 0, 360),
    "cross": [
        *[(-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36)],
        *[(0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36)],
    ],
    "diamond": [(0, -1.15), (0.8, 0), (0, 1.15), (-0.8, 0)],
    "heart": _heart(),
    "moon": [*_arc(1, 60, 300), *[(0.45 + x, y) for x, y in _arc(0.866, 268, 92)]],
    "ring": [*_arc(1, 0, 360), *_arc(0.5, 360, 0)],
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "star": [_arc((1.15, 0.5)[k % 2], 36 * k - 90, 36 * k - 90)[0] for k in range(10)],
    "triangle": [(0, -1.05), (1, 0.8), (-1, 0.8)],
}
