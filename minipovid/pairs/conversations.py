"""Conversations in every dialect that data sets speak, brought down to what a pair holds: one question, one answer.

    {"from": "human", "value": "<image>\\nWhat is this?"}                                       LLaVA, sharegpt
    {"role": "user", "content": "<image>What is this?"}                                        OpenAI, ms-swift, TRL
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}  TRL, transformers

The picture may be in the message: transformers has {"type": "image", "path": ...} or "url", "image" or "base64" there,
OpenAI {"type": "image_url", "image_url": {"url": "data:..."}}.

A pair asks one question about one picture. What would be lost by that is refused by name and never cut: a system text,
earlier exchanges, a second placeholder. The placeholder itself goes: the family's template places the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minipovid.common.data_files import Bad, is_absent, short, text
from minipovid.images import embedded
from minipovid.models.chat_template import IMAGE

ROLES = {
    **dict.fromkeys(["human", "user"], "user"),
    **dict.fromkeys(["gpt", "assistant", "model", "bot"], "assistant"),
    **dict.fromkeys(["system", "developer"], "system"),
}
PICTURE_PARTS = ("image", "image_url")
# Columns of other tools for what a pair has no place for.
UNKEPT = ("system", "system_prompt", "history", "tools", "videos", "audios")


class TextTurn(NamedTuple):
    """One turn: who ("user", "assistant", "system") and what, each picture as a placeholder."""

    role: str
    text: str


def turns_of(row: Mapping[str, Any], key: str) -> list[TextTurn]:
    """row[key], a list of turns or one turn. Raises Bad."""
    if row.get(key) is None:
        raise Bad(f"{key} is missing")
    turns = [row[key]] if isinstance(row[key], Mapping) else row[key]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise Bad(f"{key} is {short(row[key])}, but it must be a list of turns")
    return [_turn(turn, key) for turn in turns]


def _turn(turn: Mapping[str, Any], key: str) -> TextTurn:
    name = turn.get("role") if turn.get("from") is None else turn["from"]
    if not isinstance(name, str) or name not in ROLES:
        raise Bad(f"{key} has a turn from {short(name)}; known are {', '.join(ROLES)}")
    field = "content" if turn.get("value") is None else "value"
    if isinstance(turn.get(field), list):
        return TextTurn(ROLES[name], "".join(_part(part, key) for part in turn[field]))
    try:
        return TextTurn(ROLES[name], text(turn, field))
    except Bad as bad:
        raise Bad(f"{key}: {bad}") from None


def _part(part: Any, key: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in PICTURE_PARTS:
        return IMAGE
    if kind != "text":
        raise Bad(f"{key} has a part {short(part)}; known are text and image")
    return text(part, "text")


def picture(row: Mapping[str, Any], columns: Sequence[str], talks: Sequence[str]) -> str:
    """The one picture of a row: in the first of the columns that holds any, or in the messages of these conversations.

    A path as it is written, or images.embedded.Embedded. Raises Bad for none, several and what is no picture.
    """
    parts = [(key, part) for key in talks for part in _pictures(row.get(key))]
    names = dict.fromkeys(embedded.of({key: part}, key) for key, part in parts)
    if not names or any(embedded.has(row, column) for column in columns):
        names = {embedded.of(row, *columns): None} | names
    if len(names) > 1:
        raise Bad(f"the row shows {len(names)} pictures, and a pair has one; leave it out or split it")
    return next(iter(names))


def _pictures(talk: Any) -> list[Mapping[str, Any]]:
    """The parts of a conversation that hold a picture; a bare placeholder holds none."""
    turns = [talk] if isinstance(talk, Mapping) else talk if isinstance(talk, list) else []
    contents = [turn.get("content") for turn in turns if isinstance(turn, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if isinstance(part, Mapping) and _holds_picture(part)]


def _holds_picture(part: Mapping[str, Any]) -> bool:
    return part.get("type") in PICTURE_PARTS and any(embedded.has(part, key) for key in embedded.HOLDERS)


def nothing_else(row: Mapping[str, Any]) -> None:
    """Raise Bad where a column holds what a pair cannot keep and training without it would belie."""
    for key in UNKEPT:
        value = row.get(key)
        if is_absent(value) or not value or (isinstance(value, str) and value.strip() in ("", "[]")):
            continue
        what = "a text" if isinstance(value, str) else short(value)
        raise Bad(f"{key} holds {what}, which a pair cannot keep; take it out, or put it into the question")


def question_of(turns: Sequence[TextTurn], key: str) -> str:
    """The question of turns that hold nothing else; an empty system turn is nothing. Raises Bad."""
    meant = [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    roles = [turn.role for turn in meant]
    if "system" in roles:
        raise Bad(f"{key} has a system turn, which a pair cannot keep; take it out, or put its text into the question")
    if roles.count("user") > 1:
        raise Bad(f"{key} holds {roles.count('user')} exchanges; split it into rows of one question each")
    if roles != ["user"]:
        raise Bad(f"{key} must hold one question from the user; its turns are from {short(roles)}")
    return question(meant[0].text, key)


def answer_of(turns: Sequence[TextTurn], key: str) -> str:
    """The text of turns that are one answer. Raises Bad."""
    roles = [turn.role for turn in turns]
    if roles != ["assistant"]:
        raise Bad(f"{key} must be one answer from the assistant; its turns are from {short(roles)}")
    return answer(turns[0].text, key)


def exchange(turns: Sequence[TextTurn], key: str) -> tuple[str, str]:
    """(question, answer) of a conversation of one exchange. Raises Bad."""
    return question_of(turns[:-1], key), answer_of(turns[-1:], key)


def question(words: str, key: str) -> str:
    """A question without the picture's placeholder, which may open or close it. Raises Bad."""
    bare = words.strip()
    opened = bare.removeprefix(IMAGE)
    bare = (opened if opened != bare else bare.removesuffix(IMAGE)).strip()
    if IMAGE in bare:
        raise Bad(
            f"{key} has {IMAGE} in the middle or twice; a pair has one picture, before or after a bare question "
            "(no model's own chat format)"
        )
    return bare


def instruction(row: Mapping[str, Any]) -> str:
    """The question of Alpaca's columns: `instruction`, and `input` in a line of its own. Raises Bad."""
    parts = (text(row, key) for key in ("instruction", "input") if row.get(key) is not None)
    return question("\n".join(part for part in parts if part.strip()), "instruction")


def answer(words: str, key: str) -> str:
    """An answer, which shows no picture. Raises Bad."""
    if IMAGE in words:
        raise Bad(f"{key} has {IMAGE} in an answer; only the question has the picture")
    return words.strip()
