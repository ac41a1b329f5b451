"""LLaMA-Factory's sharegpt preference data (`formatting: sharegpt, ranking: true`), JSON, jsonl or parquet.

    {"conversations": [{"from": "human", "value": "<image>What is this?"}], "images": ["17.png"],
     "chosen": {"from": "gpt", "value": "A cat."}, "rejected": {"from": "gpt", "value": "A dog."}}

llamafactory/RLHF-V and Zhihui/VLFeedback (381,904 rows) come like this, with the pictures' bytes in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad
from minipovid.images import embedded
from minipovid.pairs.conversations import answer_of, question_of, turns_of
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

SOURCE = {"chosen": "LLaMA-Factory data set", "rejected": "LLaMA-Factory data set"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("conversations", "chosen", "rejected"), ("images", "image", "system", "id"))


def _pair(row: dict[str, Any]) -> Pair:
    if str(row.get("system") or "").strip():
        raise Bad("system holds a text, which a pair cannot keep; take it out, or put it into the question")
    image = embedded.of(row, "images", "image")
    prompt = question_of(turns_of(row, "conversations"), "conversations")
    chosen, rejected = (answer_of(turns_of(row, side), side) for side in ("chosen", "rejected"))
    return Pair(identity(row), image, prompt, chosen, rejected, SOURCE)
