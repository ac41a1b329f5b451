"""COCO's annotations of 2014, read for the pictures that are asked about; the files are large and are streamed."""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

from minipovid.common import data_files
from minipovid.common.errors import MinipovidError

COCO = "annotations_trainval2014.zip of cocodataset.org"
ANNOTATIONS = data_files.Purpose("annotations", f"unpack {COCO}")
_SPLITS = ("val2014", "train2014")


class Coco(NamedTuple):
    """What COCO says of a picture: the categories that are drawn in it, and what people wrote of it."""

    categories: set[str]
    captions: list[str]


def coco(folder: Path, images: Set[int]) -> tuple[dict[int, Coco], list[Path]]:
    """COCO's annotations of these pictures, by their numbers, and the files that were read; train only if needed.

    Raises MinipovidError where a file is missing, or a picture that no file knows.
    """
    by_image: dict[int, Coco] = {}
    files: list[Path] = []
    for split in _SPLITS:
        if images <= by_image.keys():
            break
        drawn, captions = (coco_file(folder, f"{kind}_{split}.json") for kind in ("instances", "captions"))
        for each in data_files.within(captions, ANNOTATIONS, "annotations"):
            if each["image_id"] in images:
                by_image.setdefault(each["image_id"], Coco(set(), [])).captions.append(each["caption"])
        for image, name in _coco_objects(drawn, images):
            by_image.setdefault(image, Coco(set(), [])).categories.add(name)
        files += [drawn, captions]
    if missing := sorted(images - by_image.keys()):
        raise MinipovidError(f"COCO's annotations in {folder} know no picture {missing[0]}; are they those of 2014?")
    return by_image, files


def _coco_objects(file: Path, images: Set[int]) -> Iterator[tuple[int, str]]:
    """The category of each object that is drawn in these pictures; what categories are called may come last."""
    names: dict[int, str] = {}
    pairs: set[tuple[int, int]] = set()
    for key, each in data_files.lists(file, ANNOTATIONS, "annotations", "categories"):
        if key == "categories":
            names[each["id"]] = each["name"]
        elif each["image_id"] in images:
            pairs.add((each["image_id"], each["category_id"]))
    return ((image, names[category]) for image, category in sorted(pairs))


def coco_file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise MinipovidError(f"{folder} holds no {name}; unpack {COCO} and name its folder annotations.")
    return folder / name
