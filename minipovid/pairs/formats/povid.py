"""POVID's own format (arXiv 2402.11411): one JSON list, as YiyangAiLab published it (Hugging Face, CC-BY-4.0).

    [{"id": "000000393212", "image": "000000393212.jpg",
      "conversations":          [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour at dusk."}],
      "rejected_conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour with fishing poles."}]}, ...]

A Pair holds one question, so a row with several exchanges is a bad row and is named (the official code scores every
turn of it). The official loader never compares the two questions; here a pair whose questions differ is a bad row too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, short, text
from minipovid.images import embedded
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import identity, known, pairs_of, rows

PLACEHOLDER = "<image>"
SOURCE = {"chosen": "ground truth", "rejected": "GPT-4V (POVID)"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    """Every row of the file, in order. Questions about one picture share its id, which POVID's own code never reads."""
    yield from pairs_of(rows(path), _pair, foreign=True)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("image", "conversations", "rejected_conversations"), ("id",))


def _pair(row: dict[str, Any]) -> Pair:
    """One row as a Pair; `image` stays as it is written. Raises Bad."""
    image = embedded.of(row, "image")
    prompt, chosen = _exchange(row, "conversations")
    rejected_prompt, rejected = _exchange(row, "rejected_conversations")
    if prompt != rejected_prompt:
        raise Bad(f"the two conversations ask different questions: {short(prompt)} and {short(rejected_prompt)}")
    return Pair(identity(row), image, prompt, chosen, rejected, SOURCE)


def _exchange(row: dict[str, Any], key: str) -> tuple[str, str]:
    """(question, answer) of a conversation of one exchange, the picture's placeholder taken off. Raises Bad."""
    turns = row.get(key)
    if turns is None:
        raise Bad(f"{key} is missing")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Bad(f"{key} is {short(turns)}, but it must be a list of turns")
    speakers = [turn.get("from") for turn in turns]
    if len(speakers) > 2 and speakers == ["human", "gpt"] * (len(speakers) // 2):
        raise Bad(f"{key} holds {len(speakers) // 2} exchanges; split it into rows of one question each")
    if speakers != ["human", "gpt"]:
        raise Bad(f"{key} must be one turn from 'human' and one from 'gpt'; its turns are from {short(speakers)}")
    question, answer = (text(turn, "value") for turn in turns)
    # The family's template places the picture, so the placeholder before or after the question goes.
    question = question.strip().removeprefix(PLACEHOLDER).removesuffix(PLACEHOLDER).strip()
    if PLACEHOLDER in question + answer:
        raise Bad(f"{key} has {PLACEHOLDER} in the middle of a text; it may only open or close the question")
    return question, answer.strip()
