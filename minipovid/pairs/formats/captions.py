"""A folder of pictures, each with its caption in a text file of the same name: seeds of pairs.

photos/harbour.jpg    photos/harbour.txt ("Two boats lie in a harbour at dusk.")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad
from minipovid.common.errors import MinipovidError
from minipovid.common.text_files import read
from minipovid.images.embedded import extension
from minipovid.pairs.pair import BadRow, Seed
from minipovid.pairs.reading import pairs_of

PROMPT = "Describe this image in detail."  # what a caption answers


def seeds(path: Path) -> Iterator[Seed | BadRow]:
    """Every picture and every caption of the folder, by name; one without the other is a bad row."""
    if not path.is_dir():
        raise MinipovidError(f"{path} is not a folder; captions are a folder of pictures with a .txt beside each.")
    yield from pairs_of(enumerate(_rows(path), 1), _seed, foreign=True)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """One row per name before the dot: its caption file, and its pictures, known by their first bytes."""
    beside: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith(".") or not file.is_file():
            continue
        row = beside.setdefault(file.stem, {"id": file.stem, "caption": None, "pictures": []})
        if file.suffix.lower() == ".txt":
            row["caption"] = file
        else:
            with file.open("rb") as opened:
                if extension(opened.read(16)):
                    row["pictures"].append(file.name)
    yield from (row for row in beside.values() if row["caption"] is not None or row["pictures"])


def _seed(row: dict[str, Any]) -> Seed:
    if row["caption"] is None:
        raise Bad(f"the picture {row['pictures'][0]} has no caption {row['id']}.txt beside it")
    if len(row["pictures"]) != 1:
        raise Bad(f"the caption {row['caption'].name} stands beside {len(row['pictures'])} pictures of its name")
    try:
        caption = read(row["caption"], "caption").strip()
    except MinipovidError as error:
        raise Bad(str(error).rstrip(".")) from None
    return Seed(row["id"], row["pictures"][0], PROMPT, caption)
