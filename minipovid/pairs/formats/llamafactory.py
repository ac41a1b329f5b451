"""LLaMA-Factory's preference data (`ranking: true`) in both of its layouts, JSON, jsonl or parquet.

    {"conversations": [{"from": "human", "value": "<image>What is this?"}], "images": ["17.png"],          sharegpt
     "chosen": {"from": "gpt", "value": "A cat."}, "rejected": {"from": "gpt", "value": "A dog."}}
    {"instruction": "<image>What is this?", "input": "", "images": ["17.png"],                             alpaca
     "chosen": "A cat.", "rejected": "A dog."}

With OpenAI's tags a sharegpt conversation is called `messages`, its turns have `role` and `content`. `input` goes on
where `instruction` ends, in a line of its own.
llamafactory/RLHF-V and Zhihui/VLFeedback (381,904 rows) come like this, with the pictures' bytes in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import text
from minipovid.pairs.conversations import answer, answer_of, instruction, nothing_else, picture, question_of, turns_of
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

FURTHER = ("input", "images", "image", "system", "history", "tools", "id")
SOURCE = {"chosen": "LLaMA-Factory data set", "rejected": "LLaMA-Factory data set"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    questions = ["conversations", "instruction"] + ["messages"] * isinstance(row.get("chosen"), Mapping)
    return max(known(row, (each, "chosen", "rejected"), FURTHER) for each in questions)


def _pair(row: dict[str, Any]) -> Pair:
    nothing_else(row)
    if row.get("instruction") is not None:
        prompt = instruction(row)
        chosen, rejected = (answer(text(row, side), side) for side in ("chosen", "rejected"))
        return Pair(identity(row), picture(row, ("images", "image"), ()), prompt, chosen, rejected, SOURCE)
    talk = "messages" if row.get("messages") is not None else "conversations"
    image = picture(row, ("images", "image"), (talk,))
    prompt = question_of(turns_of(row, talk), talk)
    chosen, rejected = (answer_of(turns_of(row, side), side) for side in ("chosen", "rejected"))
    return Pair(identity(row), image, prompt, chosen, rejected, SOURCE)
