"""Which pairs are meant: a file or folder in any format, a run folder or the built-in world; where the pictures are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.pairs import formats as formats
from minipovid.pairs.make import builtin
from minipovid.recipe import read as recipes
from minipovid.recipe.schema import BUILTIN, DataSection, ModelSection


@dataclass(frozen=True)
class Source:
    """A data set of pairs."""

    path: Path
    format: str
    root: Path  # the folder that its picture paths are relative to
    model: ModelSection | None = None
    max_length: int = DataSection.model_fields["max_length"].default

    def asking(self, model: str | None, revision: str | None, max_length: int | None) -> Source:
        """The same with another model or length, where one is named."""
        section = self.model if model is None else ModelSection(path=model, revision=revision)
        return replace(self, model=section, max_length=max_length or self.max_length)


def find(path: Path | str, format: str | None = None, images: Path | None = None) -> Source:
    """The pairs that `path` names. Raises MinipovidError where there are none, or there is no such image folder."""
    source = _builtin() if str(path) == BUILTIN and not Path(path).exists() else _found(Path(path), format)
    if images is not None:
        source = replace(source, root=images)
    if not source.root.is_dir():
        raise MinipovidError(f"There is no image folder {source.root}; name the one that the picture paths begin in.")
    return source


def _builtin() -> Source:
    file, root = builtin.pairs()
    return Source(file, "jsonl", root, ModelSection(path=BUILTIN))


def _found(path: Path, format: str | None) -> Source:
    if not path.exists():
        raise MinipovidError(f"There is no file {path}; name a file of pairs, a run folder, or {BUILTIN}.")
    if (path / "recipe.yaml").is_file():
        return _of_run(path)
    root = path if path.is_dir() else path.parent
    return Source(path, format or formats.detect(path), root)


def _of_run(run: Path) -> Source:
    """The pairs that a run trained on, by its own recipe's model and length."""
    recipe = recipes.read(run / "recipe.yaml")
    if not (run / "pairs.jsonl").is_file():
        raise MinipovidError(f"{run} holds no pairs.jsonl yet; name the file of pairs, {recipe.data.path}.")
    from minipovid.train.data import locate

    root = locate(recipe.data)[1]
    return Source(run / "pairs.jsonl", "jsonl", root, recipe.model, recipe.data.max_length)
