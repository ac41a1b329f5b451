"""TRL's columns, as HuggingFaceH4/rlaif-v_formatted has them and as TRL's DPOTrainer takes them (jsonl or parquet).

    {"images": ["17.png"], "prompt": [{"role": "user", "content": "What is this?"}],
     "chosen": [{"role": "assistant", "content": "A cat."}], "rejected": [{"role": "assistant", "content": "A dog."}]}

`images` (a list of one) or `image` holds a path, datasets' {"bytes", "path"}, a data URL or base64. The texts are
strings or lists of messages; without `prompt` both answers open with it, TRL's "implicit prompt". The picture may be in
a message, as transformers' chat templates and OpenAI have it. `id` may be absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, short, text
from minipovid.pairs.conversations import (
    answer,
    answer_of,
    exchange,
    nothing_else,
    picture,
    question,
    question_of,
    turns_of,
)
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

IMAGES = ("images", "image")
SOURCE = {"chosen": "TRL data set", "rejected": "TRL data set"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    answers = all(isinstance(row.get(side), (str, list)) for side in ("chosen", "rejected"))
    has_prompt = row.get("prompt") is not None or isinstance(row.get("chosen"), list)
    return known(row, ("chosen", "rejected"), ("prompt", *IMAGES)) if answers and has_prompt else 0


def _pair(row: dict[str, Any]) -> Pair:
    nothing_else(row)
    image = picture(row, IMAGES, ("prompt", "chosen", "rejected"))
    if row.get("rejected_images") not in (None, [], row.get("images")):
        raise Bad("rejected_images is another picture; a pair's answers are about one")
    (chosen_prompt, chosen), (rejected_prompt, rejected) = (_side(row, side) for side in ("chosen", "rejected"))
    if chosen_prompt != rejected_prompt:
        raise Bad(f"the two answers open with different questions: {short(chosen_prompt)} and {short(rejected_prompt)}")
    return Pair(identity(row), image, chosen_prompt, chosen, rejected, SOURCE)


def _side(row: dict[str, Any], side: str) -> tuple[str, str]:
    """(question, answer) of one side. Raises Bad."""
    if row.get("prompt") is None and isinstance(row.get(side), list):
        return exchange(turns_of(row, side), side)
    listed = isinstance(row.get(side), (list, Mapping))
    return _prompt(row), answer_of(turns_of(row, side), side) if listed else answer(text(row, side), side)


def _prompt(row: dict[str, Any]) -> str:
    if isinstance(row.get("prompt"), (list, Mapping)):
        return question_of(turns_of(row, "prompt"), "prompt")
    return question(text(row, "prompt"), "prompt")
