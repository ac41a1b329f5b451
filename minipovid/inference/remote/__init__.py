"""A teacher model behind an OpenAI-compatible server: asked once, retried where that can heal, never over the budget.

    teacher = Teacher("gpt-4o", cache=Path("answers.sqlite"), limits=Limits(money=5), prices=Prices(2.5, 10))   # client
    reply = teacher.ask([Message("user", "What is this?", Picture(path))], schema, "description.v1")

Here: the nouns. client.py asks, retry.py says what can heal, budget.py what may be spent, cache.py what was answered
already, picture.py how a picture travels, structured.py how a reply is read. Only client.py imports openai.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from minipovid.inference.remote.picture import Picture
from minipovid.models.chat_template import Role

BYTES_PER_TOKEN = 4  # of UTF-8 text, a rule of thumb
TURN_TOKENS = 4  # what a template writes round a turn


class Message(NamedTuple):
    """One turn of the conversation with the teacher."""

    role: Role
    text: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Usage:
    """What was asked and what it took. `estimated` counts the requests whose server did not say its token counts."""

    requests: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    estimated: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.estimated + other.estimated,
        )


@dataclass(frozen=True)
class Prices:
    """What the user pays per million tokens, in the user's currency; minipovid knows no price list."""

    prompt: float
    answer: float

    def of(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt + usage.answer_tokens * self.answer) / 1e6


@dataclass(frozen=True)
class Limits:
    """How much one call of the program may spend; None is without limit. Cached answers cost nothing."""

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None


@dataclass(frozen=True)
class Reply:
    """What the teacher said. `refused` is the server's own word for a refusal, empty where it has none.

    `model` is who the server says answered, often more exactly than it was asked for; empty where it does not say.
    `text` is without thoughts; `mute` where there was nothing beside them, or no text at all (null).
    """

    text: str
    finish_reason: str
    refused: str
    usage: Usage
    cached: bool = False
    model: str = ""
    mute: bool = False

    @property
    def why_none(self) -> str:
        """Why it is no answer; empty where it is one. An empty text is one, if that is what the server sent."""
        if self.refused or self.finish_reason == "content_filter":
            return f"the server refused: {self.refused or self.finish_reason}"
        if self.finish_reason == "length" and not self.text.strip():
            return "nothing was said within max_tokens; raise it"
        return "the reply holds no answer" if self.mute else ""


class Unanswered(Exception):
    """One request got no answer. `heals`: it was the server's trouble, and a later run may ask again."""

    def __init__(self, why: str, *, heals: bool) -> None:
        super().__init__(why)
        self.heals = heals


class Stopped(Exception):
    """No more requests are sent. `mend` where the user must change something first: key, model, address."""

    def __init__(self, why: str, *, mend: bool = False) -> None:
        super().__init__(why)
        self.mend = mend


class ChatModel(Protocol):
    """Whoever answers: minipovid.inference.remote.client.Teacher is one."""

    @property
    def model(self) -> str: ...

    @property
    def concurrency(self) -> int: ...

    @property
    def prices(self) -> Prices | None: ...

    @property
    def max_tokens(self) -> int: ...

    def identity(self) -> Mapping[str, Any]:
        """What of it decides an answer, ready for JSON: address, model, parameters. Never the key."""

    def ask(
        self,
        messages: Sequence[Message],
        schema: Mapping[str, Any] | None,
        version: str,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Reply:
        """Without a schema the answer is free text; what is None decodes as always. Raises Unanswered and Stopped."""

    def stop(self) -> None:
        """From now on whoever asks gets Stopped; waiting ones wake."""

    def spent(self) -> Usage:
        """What was really asked since it began, cached answers left out."""


def tokens(messages: Sequence[Message]) -> int:
    """An estimate of a prompt's tokens: one for four bytes, four round a turn, a picture by its tiles."""
    pictures = sum(each.picture.tokens() for each in messages if each.picture)
    return pictures + sum(TURN_TOKENS + text_tokens(each.text) for each in messages)


def text_tokens(text: str) -> int:
    """An estimate: one token for four bytes."""
    return len(clean(text).encode()) // BYTES_PER_TOKEN


def clean(text: str) -> str:
    """Without halves of surrogate pairs, which a teacher may have written and no request can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
