"""RLAIF-V-Dataset (openbmb, CC-BY-NC-4.0, 83,132 rows in 14 parquet files): the picture's bytes lie in the file.

    {"ds_name": "RLAIF-V", "image": {"bytes": ..., "path": ...}, "question": "What is this?", "chosen": "A cat.",
     "rejected": "A dog.", "origin_dataset": ..., "origin_split": "...", "idx": "0", "image_path": "..."}

`data.path` may name the folder of all files. An open model answered and an open model judged (arXiv 2405.17220).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import text
from minipovid.images import embedded
from minipovid.pairs.conversations import answer, question
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

COLUMNS = ("question", "chosen", "rejected")
FURTHER = ("image", "ds_name", "origin_dataset", "origin_split", "idx", "image_path", "logps")
SOURCE = {"chosen": "RLAIF-V", "rejected": "RLAIF-V"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, COLUMNS, FURTHER) if known(row, ("image",)) or known(row, ("image_path",)) else 0


def _pair(row: dict[str, Any]) -> Pair:
    image = embedded.of(row, "image", "image_path")
    chosen, rejected = (answer(text(row, side), side) for side in ("chosen", "rejected"))
    return Pair(identity(row, "idx"), image, question(text(row, "question"), "question"), chosen, rejected, SOURCE)
