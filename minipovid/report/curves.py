"""The training curves of a run's log.jsonl, one chart for what belongs together; the lines of several runs in one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from minipovid.common.append_only import objects
from minipovid.recipe import run_folder
from minipovid.report import svg
from minipovid.report.runs import NamedRun

# Title, what it means, and the keys of the log, which stand in train/log.py.
CHARTS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("Loss", "What is minimised; every stage has a loss of its own.", ("loss",)),
    ("Rewards", "How much likelier than for the reference, times beta.", ("rewards/chosen", "rewards/rejected")),
    ("Margin", "Reward of the chosen answer, less that of the rejected one.", ("rewards/margins",)),
    ("Accuracy", "Share of pairs whose chosen answer has the higher reward.", ("rewards/accuracies",)),
    (
        "Log-probabilities",
        "Of whole answers, in nats. Chosen ones should not sink.",
        ("logps/chosen", "logps/rejected"),
    ),
    ("Learning rate", "As the schedule sets it.", ("learning_rate",)),
    ("Changed weights", "Share of the adapter's weights that a step changes.", ("weights/changed",)),
    ("Gradient norm", "Of the adapter's weights, before clipping.", ("grad_norm",)),
)
_DRAWN = 600  # points of a line; more cannot be told apart


@dataclass(frozen=True)
class Chart:
    """One chart; `data` is what the read-out says: [[name, [[step, value], ...]], ...]."""

    title: str
    meaning: str
    drawing: Markup
    key: str
    data: Sequence[tuple[str, int, Sequence[tuple[float, float]]]]


@dataclass(frozen=True)
class Log:
    """A run's logged steps, and the warnings among them."""

    run: NamedRun
    steps: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    stages: Sequence[str]  # the losses, by the recipe

    def line(self, key: str) -> list[tuple[float, float]]:
        points = [(line["step"], line[key]) for line in self.steps if _is_number(line.get(key))]
        return points[:: max(1, math.ceil(len(points) / _DRAWN))] if len(points) > _DRAWN else points

    def marks(self) -> list[tuple[float, str]]:
        """Where each stage begins; nothing where there is one alone."""
        firsts: dict[int, float] = {}
        for line in self.steps:
            firsts.setdefault(line.get("stage", 0), line["step"])
        return [(step, self._stage(stage)) for stage, step in firsts.items()] if len(firsts) > 1 else []

    def _stage(self, stage: int) -> str:
        return f"{stage + 1} {self.stages[stage]}" if stage < len(self.stages) else f"stage {stage + 1}"


def read(run: NamedRun, stages: Sequence[str] = ()) -> Log:
    """Lines that are none, as the half of one that a killed run leaves, are passed over."""
    lines = objects(run.folder / run_folder.LOG)
    steps = [line for line in lines if _is_number(line.get("step")) and "loss" in line]
    return Log(run, steps, [str(line["warning"]) for line in lines if "warning" in line], stages)


def charts(logs: Sequence[Log]) -> list[Chart]:
    """Of one run, a line for each key; of several, a chart for each key with a line for each run."""
    logs = [log for log in logs if log.steps]
    if len(logs) == 1:
        drawn = [(title, meaning, _of_one(logs[0], keys)) for title, meaning, keys in CHARTS]
    else:
        drawn = [
            (title if len(keys) == 1 else f"{title}, {_short(key)}", meaning, _of_many(logs, key))
            for title, meaning, keys in CHARTS
            for key in keys
        ]
    marks = logs[0].marks() if len(logs) == 1 else []
    return [
        Chart(title, meaning, svg.curves(title, lines, marks, f"c{number}"), f"c{number}", _data(lines))
        for number, (title, meaning, lines) in enumerate(drawn)
        if lines
    ]


def _of_one(log: Log, keys: Sequence[str]) -> list[svg.Line]:
    """Chosen and rejected have the colours of good and bad answers elsewhere on the page."""
    colours = {"chosen": 1, "rejected": 0}
    return [svg.Line(_short(key), points, colours.get(_short(key), 1)) for key in keys if (points := log.line(key))]


def _of_many(logs: Sequence[Log], key: str) -> list[svg.Line]:
    return [svg.Line(log.run.name, points, number % 4) for number, log in enumerate(logs) if (points := log.line(key))]


def _data(lines: Sequence[svg.Line]) -> list[tuple[str, int, Sequence[tuple[float, float]]]]:
    return [(line.name, line.colour, line.points) for line in lines]


def _short(key: str) -> str:
    return key.rpartition("/")[2]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
