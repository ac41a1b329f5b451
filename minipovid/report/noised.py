"""A few training pairs with their picture as it is and as it is noised: computed now as training does it, by seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from markupsafe import Markup

from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.transform import ImageTransform
from minipovid.images.views.noised import Noiser
from minipovid.images.views.noised import opened as open_noised
from minipovid.models import families
from minipovid.models.hub import resolve_model
from minipovid.pairs.formats import jsonl
from minipovid.pairs.make import builtin
from minipovid.pairs.pair import Pair
from minipovid.recipe import run_folder
from minipovid.recipe.schema import BUILTIN, ModelSection, Recipe
from minipovid.report import pictures
from minipovid.report.texts import differing, marked

SHOWN = 4
_READ = 2000  # pairs that are looked through
_SIDE = 336  # at which the two pictures are kept


@dataclass(frozen=True)
class NoisedExample:
    """A pair; the pictures are data URLs."""

    prompt: str
    chosen: Markup
    rejected: Markup
    clean: str
    noised: str


def examples(run: Path, recipe: Recipe, count: int = SHOWN) -> list[NoisedExample]:
    """Of the run's pairs, some with different pictures; none where the pictures or the model's settings are gone."""
    transform = _transform(recipe.model)
    if transform is None or not (run / run_folder.PAIRS).is_file():
        return []
    uncached = recipe.noise.model_copy(update={"cache_gib": 0.0})
    return list(islice(_examples(run, recipe, open_noised(uncached, transform, recipe.seed)), count))


def _examples(run: Path, recipe: Recipe, noiser: Noiser) -> Iterator[NoisedExample]:
    roots = _roots(recipe)
    for pair in _spread(run):
        path = pictures.find(pair.image, *roots)
        if path is None:
            continue
        try:
            clean = noiser.transform(images.load(path))
            noised = noiser(path, pair.id, 0)
        except MinipovidError:
            continue
        both = [pictures.as_image(pixels, noiser.transform) for pixels in (clean, noised)]
        for image in both:
            image.thumbnail((_SIDE, _SIDE))
        wrong = (
            marked(pair.rejected, [span[:2] for span in pair.spans])
            if pair.spans
            else differing(pair.rejected, pair.chosen)
        )
        yield NoisedExample(pair.prompt, marked(pair.chosen, ()), wrong, *(pictures.data_url(image) for image in both))


def _spread(run: Path) -> Iterator[Pair]:
    """Descriptions before short answers, one for each picture."""
    rows = [row for row in islice(jsonl.read(run / run_folder.PAIRS), _READ) if isinstance(row, Pair)]
    rows.sort(key=lambda pair: len(pair.chosen) < 40)
    images_so_far: set[str] = set()
    for pair in rows:
        if pair.image not in images_so_far:
            images_so_far.add(pair.image)
            yield pair


def _roots(recipe: Recipe) -> list[Path]:
    """Where the pairs' pictures are: the recipe's folder, or where those from inside data files were put."""
    if recipe.data.path == BUILTIN:
        return [builtin.pairs()[1]]
    named = [Path(recipe.data.images)] if recipe.data.images is not None else []
    return [*named, cache_folder() / "pictures"]


def _transform(section: ModelSection) -> ImageTransform | None:
    """The family's, from the model's settings as they lie on this machine; nothing is fetched for a report."""
    try:
        folder = resolve_model(section.path, section.revision, weights=False, download=False)
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        return families.of(kind).image_transform(folder)
    except (OSError, ValueError, KeyError, MinipovidError):
        return None
