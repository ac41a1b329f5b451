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

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minipovid.common.data_files import Bad, looks_like, of_text, short, text
from minipovid.common.errors import MinipovidError
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import PAIRS, known, pairs_of

PLACEHOLDER = "<image>"
SOURCE = {"chosen": "ground truth", "rejected": "GPT-4V (POVID)"}


def read(path: Path) -> Iterator[Pair | BadRow]:
    """Every row of the file, in order. Raises MinipovidError where the file as a whole is not a JSON list."""
    if looks_like(path, PAIRS) != "list":
        raise _no_list(path)
    yield from pairs_of(of_text(path, "list", PAIRS), _pair)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("image", "conversations", "rejected_conversations"), ("id",))


def _no_list(path: Path) -> MinipovidError:
    """What the file is instead."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        return MinipovidError(f"The pairs {path} cannot be read: {error}.")
    except (ValueError, RecursionError) as error:
        return MinipovidError(
            f"{path} is not JSON ({error}); data.format povid is one JSON list, jsonl one object per line."
        )
    return MinipovidError(f"{path} holds {short(content)}, but data.format povid is one JSON list of rows.")


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
