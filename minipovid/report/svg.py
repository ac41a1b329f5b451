"""Charts as inline SVG: axes, ticks, lines with their names beside them, points with whiskers.

Colours are classes of the page's style sheet (line-0, line-1, ...), so that both themes and printing have theirs.
Everything that is drawn as text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 14, 40
_CHAR = 7  # about as wide as a bold character is at the charts' size of 11


@dataclass(frozen=True, eq=False)
class Line:
    """A curve; `colour` is the number of a class."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int


@dataclass(frozen=True)
class Point:
    """A value with its interval at x."""

    name: str
    x: float
    value: float
    low: float
    high: float
    colour: int


@dataclass(frozen=True)
class Scale:
    """Numbers onto pixels, with ticks at round ones."""

    low: float
    high: float
    start: float
    end: float
    step: float  # between ticks

    @classmethod
    def exact(cls, values: Sequence[float], start: float, end: float, count: int = 4) -> Scale:
        """From the least number to the greatest."""
        low, high = min(values), max(values)
        high = high if high > low else low + 1
        return cls(low, high, start, end, _step((high - low) / count))

    @classmethod
    def round(cls, values: Sequence[float], start: float, end: float, count: int = 4) -> Scale:
        """From the round number at or below the least to that at or above the greatest; needs a finite value."""
        low, high = min(values), max(values)
        if high - low < 1e-12 * max(abs(low), abs(high), 1e-30):
            pad = abs(low) * 0.1 or 1.0
            low, high = low - pad, high + pad
        step = _step((high - low) / count)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, start, end, step)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10 ** math.floor(math.log10(rough))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))


def label(value: float) -> str:
    """A tick: 0.002 or 1.2e-05 or 1,500."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")


def curves(title: str, lines: Sequence[Line], marks: Sequence[tuple[float, str]], key: str) -> Markup:
    """Lines over steps. `marks` are upright dashed lines with a name; `key` names its read-out and the data of that."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    names = {line: _cut(line.name) for line in lines} if len(lines) > 1 else {}
    right = WIDTH - _RIGHT - max((len(name) * _CHAR for name in names.values()), default=0)
    across, up = Scale.exact(xs, _LEFT, right), Scale.round(ys, HEIGHT - _BOTTOM, _TOP)
    parts = list(_axes(across, up, "step"))
    for x, name in marks:
        at, upright = across(x), Markup('<line class="stage" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(upright.format(at, at, _TOP - 4, HEIGHT - _BOTTOM))
        parts.append(Markup('<text class="stage-name" x="{}" y="{}">{}</text>').format(at + 4, _TOP - 3, name))
    parts += [*(_curve(line, across, up) for line in lines), *_names(names, right, up)]
    head = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" tabindex="0" aria-label="{}" data-chart="{}" '
    ).format(WIDTH, HEIGHT, _sentence(title, lines), key)
    frame = Markup('data-x="{} {} {} {}" data-y="{} {} {} {}">').format(*_four(across), *_four(up))
    cursor = Markup('<g class="cursor" hidden><line y1="{}" y2="{}"/></g>').format(_TOP, HEIGHT - _BOTTOM)
    return head + frame + Markup("").join(parts) + cursor + Markup("</svg>")


def _four(scale: Scale) -> tuple[float, float, float, float]:
    return scale.low, scale.high, scale.start, scale.end


def _sentence(title: str, lines: Sequence[Line]) -> str:
    """The chart in a sentence, for who does not see it."""
    lines_in_words = [f"{line.name} from {label(line.points[0][1])} to {label(line.points[-1][1])}" for line in lines]
    return f"{title}: {', '.join(lines_in_words)}. Arrow keys read it out."


def _axes(across: Scale, up: Scale, name: str) -> Iterator[Markup]:
    for value in up.ticks():
        y = up(value)
        yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, across.end, y, y)
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT - 7, y + 3.5, label(value)
        )
    for value in across.ticks():
        yield Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            across(value), HEIGHT - _BOTTOM + 16, label(value)
        )
    yield Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(across.end, HEIGHT - 6, name)


def _curve(line: Line, across: Scale, up: Scale) -> Markup:
    path = " ".join(f"{across(x)},{up(y)}" for x, y in line.points)
    if len(line.points) == 1:
        x, y = line.points[0]
        return Markup('<circle class="dot line-{}" cx="{}" cy="{}" r="3"/>').format(line.colour, across(x), up(y))
    return Markup('<polyline class="line line-{}" points="{}"/>').format(line.colour, path)


def _names(names: Mapping[Line, str], right: float, up: Scale) -> Iterator[Markup]:
    """Behind the lines' ends, pushed apart where they would meet."""
    ends = sorted((up(line.points[-1][1]) + 4, name, line.colour) for line, name in names.items())
    lowest = HEIGHT - _BOTTOM + 4 - 13 * len(ends)
    above = -math.inf
    for number, (y, name, colour) in enumerate(ends, 1):
        above = max(min(y, lowest + 13 * number), above + 13)
        yield Markup('<text class="name ink-{}" x="{}" y="{}">{}</text>').format(
            colour, right + 6, round(above, 1), name
        )


def _cut(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}\N{HORIZONTAL ELLIPSIS}"


def whiskers(
    title: str, points: Sequence[Point], unit: str, axis: str, level: tuple[str, float] | None = None
) -> Markup:
    """Points with their intervals over x: rates over sizes, from 0 on. `level` is a named height to compare with."""
    xs, ys = [point.x for point in points], [bound for point in points for bound in (point.low, point.high)]
    across = Scale.round([0, *xs], _LEFT, WIDTH - _RIGHT - 8)
    up = Scale.round([0, *ys, *([level[1]] if level else [])], HEIGHT - _BOTTOM, _TOP)
    parts = list(_axes(across, up, axis))
    if level:
        name, y = level[0], up(level[1])
        dashed = Markup('<line class="line line-0 dashed" x1="{}" x2="{}" y1="{}" y2="{}"/>')
        parts.append(dashed.format(_LEFT, WIDTH - _RIGHT, y, y))
        text = Markup('<text class="name ink-0" x="{}" y="{}">{}</text>')
        parts.append(text.format(_LEFT + 4, round(y - 6, 1), name))
    occupied: list[tuple[float, float, float]] = []
    for point in sorted(points, key=lambda each: each.x):
        parts += _whisker(point, across, up, occupied)
    values = "; ".join(f"{each.name}: {label(each.value)}{unit} at {label(each.x)} {axis}" for each in points)
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, HEIGHT, f"{title}: {values}"
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _whisker(point: Point, across: Scale, up: Scale, occupied: list[tuple[float, float, float]]) -> Iterator[Markup]:
    """The name stands above the interval, and higher where another one's is in the way."""
    x, y, low, high = across(point.x), up(point.value), up(point.low), up(point.high)
    yield Markup('<line class="line line-{}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(point.colour, x, x, low, high)
    yield Markup('<circle class="dot line-{}" cx="{}" cy="{}" r="4.5"/>').format(point.colour, x, y)
    half = len(point.name) * _CHAR / 2
    middle = min(max(x, _LEFT + half), WIDTH - half)
    at = high - 6
    while any(middle - half < end and middle + half > begin and abs(at - row) < 13 for begin, end, row in occupied):
        at -= 13
    occupied.append((middle - half, middle + half, at))
    yield Markup('<text class="name ink-{}" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        point.colour, round(middle, 1), round(at, 1), point.name
    )
