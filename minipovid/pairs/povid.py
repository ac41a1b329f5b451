"""POVID's own format: one JSON list, as published by YiyangAiLab/POVID_preference_data_for_VLLMs (CC-BY-4.0).

    [{"id": "000000393212", "image": "000000393212.jpg",
      "conversations":          [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour at dusk."}],
      "rejected_conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour with fishing poles."}]}, ...]

A Pair holds one question, so a row with several exchanges is a bad row and is named (the official code scores every
turn of it). The official loader never compares the two questions; here a pair whose questions differ is a bad row too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minipovid.errors import MinipovidError
from minipovid.pairs import Bad, checked, short, text
from minipovid.types import BadRow, Pair

PLACEHOLDER = "<image>"
SOURCE = {"chosen": "ground truth", "rejected": "GPT-4V (POVID)"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    """Every row of the file, in order. Raises MinipovidError where the file as a whole is not a JSON list."""
    yield from checked(enumerate(_rows(path), 1), _pair)


def _rows(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise MinipovidError(f"There is no file {path}; data.path must name the pairs.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MinipovidError(f"The pairs {path} cannot be read: {error}.") from None
    except (ValueError, RecursionError) as error:
        raise MinipovidError(
            f"{path} is not JSON ({error}); data.format povid is one JSON list, jsonl one object per line."
        ) from None
    if not isinstance(rows, list):
        raise MinipovidError(f"{path} holds {short(rows)}, but data.format povid is one JSON list of rows.")
    return rows


def _pair(row: dict[str, Any]) -> Pair:
    """One row as a Pair; `image` stays as it is written. Raises Bad."""
    if row.get("image") is None:
        raise Bad("image is missing; a preference about a picture needs one")
    name = row.get("id")
    identity = str(name) if isinstance(name, int) and not isinstance(name, bool) else text(row, "id")
    prompt, chosen = _exchange(row, "conversations")
    rejected_prompt, rejected = _exchange(row, "rejected_conversations")
    if prompt != rejected_prompt:
        raise Bad(f"the two conversations ask different questions: {short(prompt)} and {short(rejected_prompt)}")
    return Pair(identity, text(row, "image"), prompt, chosen, rejected, SOURCE)


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
