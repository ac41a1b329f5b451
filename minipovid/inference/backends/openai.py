"""Any model behind an OpenAI-compatible server answers, hosted or local.

Address and key come from MINIPOVID_MODEL_BASE_URL and MINIPOVID_MODEL_API_KEY, or OPENAI_BASE_URL and OPENAI_API_KEY.
Requests are retried, limited and kept as the teacher's are (minipovid.inference.remote).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.inference.backends import Decoding, Question
from minipovid.inference.remote import Message, Stopped, Unanswered
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.picture import Picture
from minipovid.inference.remote.server import Server

VERSION = "eval v1"
MAX_SIDE = 1024  # pixels of a picture that is sent; COCO's have 640
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """`model`: what the server calls it; `concurrency`: requests at a time."""

    model: str | None = None
    concurrency: int = 8


def open(run: Path, options: Options, decoding: Decoding) -> ServerBackend:
    """Raises MinipovidError where no model is named, or the environment names no server."""
    if options.model is None:
        raise MinipovidError("This backend asks a server: name the model with --model, as the server calls it.")
    server = Server.from_environment(own="MINIPOVID_MODEL", who="server")
    teacher = Teacher(
        options.model, server, concurrency=options.concurrency, temperature=decoding.temperature, who="model"
    )
    return ServerBackend(teacher, decoding)


class ServerBackend:
    """A model behind a server; the run folder is not looked into."""

    def __init__(self, teacher: Teacher, decoding: Decoding) -> None:
        self._teacher, self._decoding = teacher, decoding
        self.name = f"openai-{re.sub(r'[^A-Za-z0-9_-]+', '-', teacher.model).strip('-')}"
        self.concurrency = teacher.concurrency

    @property
    def decoding(self) -> dict[str, Any]:
        return {"temperature": self._decoding.temperature} if self._decoding.temperature else {}

    def check(self, questions: Sequence[Question]) -> None:
        """It answers anything."""

    def identity(self) -> dict[str, Any]:
        teacher = self._teacher.identity()
        server = {"backend": "openai", "server": teacher["server"], "model": teacher["model"]}
        return {**server, "max_side": MAX_SIDE, **self.decoding}

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
        for question in questions:
            message = Message("user", question.prompt, Picture(picture, MAX_SIDE, lossless=True) if picture else None)
            try:
                reply = self._teacher.ask([message], None, VERSION, max_tokens=question.max_tokens)
            except Unanswered as error:
                why, text = str(error), ""
            except Stopped as error:
                raise MinipovidError(f"{error} What was answered is kept.") from None
            else:
                why, text = reply.why_none, reply.text.strip()
            if why:
                _log.warning("question %s: %s", question.id, why)
            yield None if why else text

    def close(self) -> None:
        self._teacher.close()
