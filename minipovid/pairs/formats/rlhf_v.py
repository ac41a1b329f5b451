"""RLHF-V-Dataset (openbmb, CC-BY-NC-4.0, 5,733 rows of parquet): people corrected a model's answers.

    {"ds_name": "RLHF-V", "image": {"bytes": ..., "path": ...}, "origin_dataset": ..., "origin_split": ..., "idx": 0,
     "text": "{\\"question\\": \\"What is this?\\", \\"chosen\\": \\"A cat.\\", \\"rejected\\": ...}", ...}

`text` is JSON inside a string: chosen is the correction, rejected the model's own answer (arXiv 2312.00849).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, parsed, short, text
from minipovid.images import embedded
from minipovid.pairs.conversations import answer, question
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

FURTHER = ("ds_name", "origin_dataset", "origin_split", "idx", "image_path")
SOURCE = {"chosen": "person (RLHF-V)", "rejected": "model (RLHF-V)"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("image", "text"), FURTHER)


def _pair(row: dict[str, Any]) -> Pair:
    image = embedded.of(row, "image", "image_path")
    try:
        texts = _texts(row)
        chosen, rejected = (answer(text(texts, side), side) for side in ("chosen", "rejected"))
        prompt = question(text(texts, "question"), "question")
    except Bad as bad:
        raise Bad(f"text: {bad}") from None
    return Pair(identity(row, "idx"), image, prompt, chosen, rejected, SOURCE)


def _texts(row: dict[str, Any]) -> Mapping[str, Any]:
    cell = row.get("text")
    if not isinstance(cell, Mapping):
        try:
            cell = parsed(text(row, "text"))
        except (ValueError, RecursionError) as error:
            raise Bad(str(error) if isinstance(error, Bad) else f"it is not JSON: {error}") from None
    if not isinstance(cell, Mapping):
        raise Bad(f"it holds {short(cell)}, not an object with question, chosen and rejected")
    return cell
