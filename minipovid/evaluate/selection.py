"""Which benchmarks, over which files and pictures: NAME=PATH as users write it.

pope=coco_pope_adversarial.json      a file on the benchmarks shelf, and the benchmark's file or folder
pope:mine=photos/pictures.jsonl      the same under a label of its own, where two have one name
tinyworld                            the built-in world's held-out pictures: POPE and CHAIR
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from minipovid import tinyworld
from minipovid.common import shelf
from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.common.files import digest
from minipovid.evaluate import benchmarks
from minipovid.evaluate.benchmarks import Benchmark, Exam
from minipovid.images import load as images
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.inference.backends import Question
from minipovid.recipe.schema import BUILTIN

# The tiny world's model answers short questions in its own words, and its pictures hold two to four things.
_TINY: Mapping[str, Mapping[str, Any]] = {
    "pope": {
        "suffix": "",
        "max_tokens": 16,
        "each": 2,
        "pictures": 150,
        "question": "Is there {a} {object} in the picture?",
    },
    "chair": {"max_tokens": 256},
}


@dataclass(frozen=True)
class Selected:
    """One benchmark over one file or folder, its options set, and the pictures' folder."""

    label: str
    name: str
    options: Mapping[str, Any]
    path: Path
    root: Path

    @cached_property
    def benchmark(self) -> Benchmark:
        """Raises MinipovidError for an unknown name or option."""
        return benchmarks.build(self.name, self.options)

    @cached_property
    def exam(self) -> Exam:
        """Raises MinipovidError where the files are not the benchmark's."""
        exam = self.benchmark.read(self.path)
        if not exam.questions:
            raise MinipovidError(f"{self.path} holds no question.")
        return exam

    @cached_property
    def data(self) -> str:
        """The digest of the benchmark's files."""
        content = hashlib.sha256()
        for file in self.exam.files:
            content.update(digest(file))
        return content.hexdigest()[:16]

    def pictures(self, store: Store) -> dict[str, Path]:
        """The file of every picture that is asked about; those inside the data file get one in the store.

        Raises MinipovidError where any is missing, before anything is asked.
        """
        names = dict.fromkeys(question.image for question in self.exam.questions if question.image)
        paths = {name: self._picture(name, store) for name in names}
        missing = [image for image, path in paths.items() if not path.is_file()]
        if missing:
            raise MinipovidError(
                f"{len(missing):,} of {len(paths):,} pictures are not in {self.root}, {missing[0]} among them; "
                "name their folder with --images."
            )
        return paths

    def _picture(self, image: str, store: Store) -> Path:
        if isinstance(image, Embedded):
            return store.folder / store.keep(image)
        return images.inside(self.root, placed(self.root, image))


def find(
    specs: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    folders: Mapping[str, Path] | None = None,
    split: str = "eval",
    mode: str | None = None,
) -> list[Selected]:
    """What the specs name; `settings` are options and `folders` pictures by label or benchmark, "" for all.
    `mode`, where given, is that of all that have one.

    Raises MinipovidError for a spec that names nothing, and for two of one label.
    """
    settings, folders = settings or {}, folders or {}
    for name, options in settings.items():
        if not isinstance(options, Mapping):
            raise MinipovidError(f"--set {name}: an option has two names, {name}.KEY=VALUE.")
    selection: list[Selected] = []
    for spec in specs:
        for label, name, options, path in _tiny(split) if spec == BUILTIN else [_parsed(spec)]:
            reading = {}
            if mode is not None and hasattr(shelf.load("evaluate.benchmarks", name).Benchmark, "mode"):
                reading = {"mode": mode}
            if mode == "robust" and reading and label == name:
                label = f"{name}-robust"  # beside the official score, and not in its place
            options = {**options, **reading, **settings.get(name, {}), **settings.get(label, {})}
            beside = folders.get("", path if path.is_dir() else path.parent)
            home = _world() if spec == BUILTIN else beside
            folder = folders.get(label, folders.get(name, home))
            selection.append(Selected(label, name, options, path, folder))
    _check(selection, {*settings, *folders} - {""})
    return selection


def _check(selection: Sequence[Selected], named: Iterable[str]) -> None:
    labels = [each.label for each in selection]
    for label in labels:
        if labels.count(label) > 1:
            raise MinipovidError(f"Two benchmarks are called {label}; give one a label: {label}:mine=PATH.")
    for name in sorted(named):
        if name not in labels and name not in {each.name for each in selection}:
            raise MinipovidError(f"There is an option for {name}, but no such benchmark here: {', '.join(labels)}.")
    for each in selection:
        _ = each.benchmark


def _parsed(spec: str) -> tuple[str, str, Mapping[str, Any], Path]:
    names, equals, file = spec.partition("=")
    name, _, label = names.partition(":")
    if not equals:
        if name in shelf.names("evaluate.benchmarks"):
            where = shelf.load("evaluate.benchmarks", name).Benchmark.source
            raise MinipovidError(f"{name} needs its files: write {name}=PATH; they are {where}.")
        known = ", ".join(shelf.names("evaluate.benchmarks"))
        raise MinipovidError(f"{spec!r} names no benchmark; write NAME=PATH with one of {known}; or {BUILTIN}.")
    path = Path(file).expanduser()
    if not path.exists():
        module = shelf.load("evaluate.benchmarks", name)
        raise MinipovidError(f"There is no {path}; {name}'s files are {module.Benchmark.source}.")
    if label and not re.fullmatch(r"\w[\w-]*", label):
        raise MinipovidError(f"The label {label!r} becomes a file's name; write it with letters, digits, - and _.")
    return label or name, name, {}, path


def _world() -> Path:
    return tinyworld.materialise(cache_folder() / tinyworld.NAME)


def _tiny(split: str) -> list[tuple[str, str, Mapping[str, Any], Path]]:
    file = _world() / split / "pictures.jsonl"
    behind = "" if split == "eval" else f"-{split}"
    return [(f"{name}{behind}", name, options, file) for name, options in _TINY.items()]


def parts(questions: Sequence[Question]) -> list[list[int]]:
    """The questions' places, those about one picture together, pictures in the order of their first question."""
    groups: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        groups.setdefault(question.image or f"\0{place}", []).append(place)
    return list(groups.values())
