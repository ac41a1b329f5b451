"""Any model behind an OpenAI-compatible server answers, hosted or local.

Address and key come from MINIPOVID_MODEL_BASE_URL and MINIPOVID_MODEL_API_KEY, or OPENAI_BASE_URL and OPENAI_API_KEY.
Requests are retried, limited and kept as the teacher's are (minipovid.teacher).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minipovid.backends import Choice, Decoding
from minipovid.errors import MinipovidError
from minipovid.teacher import Message, Stopped, Unanswered
from minipovid.teacher.client import Teacher
from minipovid.teacher.picture import Picture
from minipovid.teacher.server import Server
from minipovid.types import Question

VERSION = "eval v1"
MAX_SIDE = 1024  # pixels of a picture that is sent; COCO's have 640
_log = logging.getLogger(__name__)


def open(choice: Choice) -> Remote:
    """Raises MinipovidError where no model is named, or the environment names no server."""
    if choice.model is None:
        raise MinipovidError("This backend asks a server: name the model with --model, as the server calls it.")
    server = Server.from_environment(own="MINIPOVID_MODEL", who="server")
    teacher = Teacher(choice.model, server, concurrency=choice.concurrency, temperature=choice.decoding.temperature)
    return Remote(teacher, choice.decoding)


class Remote:
    """The backend."""

    name = "openai"

    def __init__(self, teacher: Teacher, decoding: Decoding) -> None:
        self._teacher, self._decoding = teacher, decoding
        self.hands = teacher.concurrency

    @property
    def decoding(self) -> dict[str, Any]:
        return {"temperature": self._decoding.temperature} if self._decoding.temperature else {}

    def check(self, questions: Sequence[Question]) -> None:
        """It answers anything."""

    def identity(self) -> dict[str, Any]:
        told = self._teacher.identity()
        return {"backend": self.name, "server": told["server"], "model": told["model"], **self.decoding}

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
        for question in questions:
            message = Message("user", question.prompt, Picture(picture, MAX_SIDE, lossless=True) if picture else None)
            try:
                reply = self._teacher.ask([message], None, VERSION, max_tokens=question.max_tokens)
                yield reply.text.strip()
            except Unanswered as why:
                _log.warning("question %s: %s", question.id, why)
                yield None
            except Stopped as why:
                if why.mend:
                    raise MinipovidError(f"{why} What was answered is kept.") from None
                yield None

    def close(self) -> None:
        self._teacher.close()
