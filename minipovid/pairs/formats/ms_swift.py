"""ms-swift's preference data: the chosen answer ends `messages`, the rejected one stands beside them.

    {"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}],
     "images": ["/photos/17.png"], "rejected_response": "A dog."}

The question and the chosen answer may also stand in its other three forms:

    {"query": "<image>What is this?", "response": "A cat.", ...}
    {"instruction": "<image>What is this?", "input": "", "output": "A cat.", ...}
    {"conversation": [{"human": "<image>What is this?", "assistant": "A cat."}], ...}

`rejected_response` is a text or a list of messages; or `rejected_messages` stands there, with `rejected_images`, and
both must ask the same of the same picture. `images` is a path, a list, or objects of bytes and path. Absolute paths
count where they lie in the image folder (`data.images`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, short, text
from minipovid.images import embedded
from minipovid.pairs.conversations import (
    answer,
    answer_of,
    exchange,
    instruction,
    nothing_else,
    picture,
    question,
    turns_of,
)
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

TALKS = ("messages", "conversation", "conversations")
FORMS = (*((talk,) for talk in TALKS), ("query", "response"), ("instruction", "output"))
REJECTED = ("rejected_response", "rejected_messages", "rejected_images")
FURTHER = (*REJECTED, "images", "image", "input", "system", "history", "id")
SOURCE = {"chosen": "ms-swift data set", "rejected": "ms-swift data set"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    rejects = known(row, ("rejected_response",)) or known(row, ("rejected_messages",))
    further = (
        "images",
        "image",
        "rejected_images",
        "rejected_response",
        "rejected_messages",
        "system",
        "history",
        "id",
    )
    return max(known(row, form, (*further, "input")) for form in FORMS) if rejects else 0


def _pair(row: dict[str, Any]) -> Pair:
    nothing_else(row)
    image = picture(row, ("images", "image"), TALKS)
    prompt, chosen = _exchange(row)
    return Pair(identity(row), image, prompt, chosen, _rejected(row, prompt, image), SOURCE)


def _exchange(row: dict[str, Any]) -> tuple[str, str]:
    """(question, chosen answer) in whichever form the row has them. Raises Bad."""
    if known(row, ("query", "response")):
        return question(text(row, "query"), "query"), answer(text(row, "response"), "response")
    if known(row, ("instruction", "output")):
        return instruction(row), answer(text(row, "output"), "output")
    talk = next((key for key in TALKS if row.get(key) is not None), "messages")
    return exchange(turns_of({talk: _in_turns(row.get(talk))}, talk), talk)


def _in_turns(talk: Any) -> Any:
    """A conversation of exchanges, {"human": ..., "assistant": ...}, as one of turns."""
    if not isinstance(talk, list) or not all(
        isinstance(each, dict) and not {"role", "from"} & set(each) for each in talk
    ):
        return talk
    return [{"role": role, "content": words} for each in talk for role, words in each.items()]


def _rejected(row: dict[str, Any], prompt: str, image: str) -> str:
    if embedded.has(row, "rejected_images") and embedded.of(row, "rejected_images") != image:
        raise Bad("rejected_images is another picture; a pair's answers are about one")
    if row.get("rejected_messages") is not None:
        asked, rejected = exchange(turns_of(row, "rejected_messages"), "rejected_messages")
        if asked != prompt:
            raise Bad(f"messages and rejected_messages ask different questions: {short(prompt)} and {short(asked)}")
        return rejected
    if isinstance(row.get("rejected_response"), (list, Mapping)):
        return answer_of(turns_of(row, "rejected_response"), "rejected_response")
    return answer(text(row, "rejected_response"), "rejected_response")
