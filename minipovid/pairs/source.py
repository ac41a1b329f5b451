"""Which pairs are meant: a file or folder in any format, a run folder or the built-in world; where the pictures are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.models.encoder import Encoder
from minipovid.pairs import formats
from minipovid.pairs.make import builtin
from minipovid.pairs.pair import BadRow, Pair, Unpaired
from minipovid.pairs.reading import where
from minipovid.recipe import run_folder
from minipovid.recipe.schema import BUILTIN, DataSection, ModelSection


@dataclass(frozen=True)
class PairSource:
    """A data set of pairs."""

    path: Path
    format: str
    root: Path  # the folder that its picture paths are relative to
    model: ModelSection | None = None
    max_length: int = DataSection.model_fields["max_length"].default

    def asking(self, model: str | None, revision: str | None, max_length: int | None) -> PairSource:
        """The same with another model or length, where one is named."""
        section = self.model if model is None else ModelSection(path=model, revision=revision)
        return replace(self, model=section, max_length=max_length or self.max_length)


def find(path: Path | str, format: str | None = None, images: Path | None = None) -> PairSource:
    """The pairs that `path` names. Raises MinipovidError where there are none, or there is no such image folder."""
    given, path = str(path), Path(path)
    if given == BUILTIN and not path.exists():
        file, root = builtin.pairs()
        source = PairSource(file, "jsonl", root, ModelSection(path=BUILTIN))
    elif not path.exists():
        raise MinipovidError(f"There is no file {path}; name a file of pairs, a run folder, or {BUILTIN}.")
    elif (path / run_folder.RECIPE).is_file():
        source = _of_run(path)
    else:
        source = PairSource(path, format or formats.detect(path), path if path.is_dir() else path.parent)
    if images is not None:
        source = replace(source, root=images)
    if not source.root.is_dir():
        raise MinipovidError(f"There is no image folder {source.root}; name the one that the picture paths begin in.")
    return source


def _of_run(run: Path) -> PairSource:
    """The pairs that a run trained on, by its own recipe's model and length."""
    recipe = run_folder.recipe(run)
    if not (run / run_folder.PAIRS).is_file():
        raise MinipovidError(f"{run} holds no pairs.jsonl yet; name the file of pairs, {recipe.data.path}.")
    root = locate(recipe.data)[1]
    return PairSource(run / run_folder.PAIRS, "jsonl", root, recipe.model, recipe.data.max_length)


def load_pairs(section: DataSection, encoder: Encoder) -> tuple[list[Pair], list[BadRow]]:
    """Every usable pair of the data set, and every row that is none.

    Pictures are decoded once here, so that a broken one is found now and not in the ninth hour. On `on_bad_row: stop`
    bad rows raise one MinipovidError that names each of the first ten.
    """
    path, root = locate(section)
    read = enumerate(islice(formats.reader(section.format).read(path), section.limit), 1)
    rows = [_as_file(row, number, root) for number, row in read]
    bad_pictures = _bad_pictures(root, {row.image for row in rows if isinstance(row, Pair)})
    rows = [_judge(row, number, bad_pictures, encoder) for number, row in enumerate(rows, 1)]
    pairs, bad = [row for row in rows if isinstance(row, Pair)], [row for row in rows if isinstance(row, BadRow)]
    wrong = [row for row in bad if not isinstance(row, Unpaired)]
    if wrong and section.on_bad_row == "stop":
        first = "\n".join(f"{path.name}: {row.where}: {row.why}." for row in wrong[:10])
        more = f"\n... and {len(wrong) - 10} more." if len(wrong) > 10 else ""
        raise MinipovidError(f"{first}{more}\nMend or remove these rows, or set data.on_bad_row: skip.")
    if not pairs:
        raise MinipovidError(f"{path} holds no usable pair among {len(rows)} rows.")
    return pairs, bad


class Split(NamedTuple):
    """A run's pairs, parted."""

    trained: list[Pair]
    held_out: list[Pair]


def split(pairs: list[Pair], section: DataSection) -> Split:
    """The last pairs, a tenth at most, are held out: `verify` asks about them, and no training sees them."""
    at = len(pairs) - min(section.held_out, len(pairs) // 10)
    return Split(pairs[:at], pairs[at:])


def locate(section: DataSection) -> tuple[Path, Path]:
    """(the data file or folder of shards, the folder its image paths are relative to).

    The built-in world is drawn, and its pairs are made, on first use. Pictures that lie inside the data file are kept
    in the cache folder, under names that say their content; `load_pairs` puts them there.
    """
    if section.path == BUILTIN:
        return builtin.pairs()
    path = Path(section.path)
    if not path.exists():
        raise MinipovidError(f"There is no data file {path} (data.path).")
    if _holds_pictures(path, section.format):
        return path, _store()
    root = Path(section.images) if section.images is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise MinipovidError(f"There is no image folder {root} (data.images).")
    return path, root


def _store() -> Path:
    return cache_folder() / "pictures"


def _holds_pictures(path: Path, format: str) -> bool:
    """Whether the first pair's picture lies inside the data file."""
    rows = islice(formats.reader(format).read(path), formats.HEAD)
    image = next((row.image for row in rows if isinstance(row, Pair)), "")
    return isinstance(image, Embedded)


def _as_file(row: Pair | BadRow, number: int, root: Path) -> Pair | BadRow:
    """The pair with its picture as a file below `root`. One root serves all: a data set's first pair decides which."""
    if isinstance(row, BadRow):
        return row
    image, inside = row.image, root == _store()
    if isinstance(image, Embedded) and inside:
        return replace(row, image=Store(root).keep(image))
    if not isinstance(image, Embedded) and not inside:
        return replace(row, image=placed(root, image))
    lies = "a file, and the first pair's is inside the data file" if inside else "inside the data file, the first's not"
    return BadRow(where(row, number), f"its picture is {lies}; `minipovid pairs import` takes both kinds")


def _bad_pictures(root: Path, names: set[str]) -> dict[str, str]:
    """Why each unusable picture is unusable, by its name."""

    def problem(name: str) -> tuple[str, str | None]:
        try:
            images.load(images.inside(root, name))
        except MinipovidError as error:
            return name, str(error).rstrip(".")
        return name, None

    with ThreadPoolExecutor() as pool:
        return {name: why for name, why in pool.map(problem, sorted(names)) if why is not None}


def _judge(row: Pair | BadRow, number: int, bad_pictures: dict[str, str], encoder: Encoder) -> Pair | BadRow:
    if isinstance(row, BadRow):
        return row
    if row.image in bad_pictures:
        return BadRow(where(row, number), bad_pictures[row.image])
    try:
        encoder(row.prompt, row.texts())
    except MinipovidError as error:
        return BadRow(where(row, number), str(error))
    return row
