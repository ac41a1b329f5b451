"""ms-swift's preference data: the chosen answer ends `messages`, the rejected one stands beside them.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["/photos/17.png"], "rejected_response": "A dog."}

Or `rejected_messages` with `rejected_images`; both must ask the same of the same picture. Absolute paths count where
they lie in the image folder (`data.images`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, short, text
from minipovid.images import embedded
from minipovid.pairs.conversations import answer, exchange, turns_of
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

SOURCE = {"chosen": "ms-swift data set", "rejected": "ms-swift data set"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    further = ("images", "rejected_images", "rejected_response", "rejected_messages", "id")
    rejects = "rejected_response" in row or "rejected_messages" in row
    return known(row, ("messages",), further) if rejects else 0


def _pair(row: dict[str, Any]) -> Pair:
    image = embedded.of(row, "images", "image")
    prompt, chosen = exchange(turns_of(row, "messages"), "messages")
    return Pair(identity(row), image, prompt, chosen, _rejected(row, prompt, image), SOURCE)


def _rejected(row: dict[str, Any], prompt: str, image: str) -> str:
    if row.get("rejected_images") and embedded.of(row, "rejected_images") != image:
        raise Bad("rejected_images is another picture; a pair's answers are about one")
    if row.get("rejected_messages") is None:
        return answer(text(row, "rejected_response"), "rejected_response")
    question, rejected = exchange(turns_of(row, "rejected_messages"), "rejected_messages")
    if question != prompt:
        raise Bad(f"messages and rejected_messages ask different questions: {short(prompt)} and {short(question)}")
    return rejected
