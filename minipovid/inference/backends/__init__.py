"""WHO ANSWERS: one file per backend, named as on the command line (`minipovid eval --backend gguf`).

    with backends.opened("gguf", Choice(run=Path("runs/mine"), quant="q4_k_m")) as backend:
        for text in backend.answers(questions, Path("photo.jpg")): ...

A module has `open(choice)`, which raises MinipovidError where it cannot answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.models.chat_template import IMAGE


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen: greedily, unless a temperature is set."""

    temperature: float = 0.0
    seed: int = 0

    def told(self) -> dict[str, Any]:
        """Empty where greedy."""
        return asdict(self) if self.temperature else {}


@dataclass(frozen=True)
class BackendOptions:
    """What a user may say about who answers; each backend takes what concerns it."""

    run: Path
    decoding: Decoding = Decoding()
    quant: str | None = None  # gguf: which file; None: the most exact
    runtime: Mapping[str, Any] = field(default_factory=dict)  # gguf: keywords of Runtime
    weights: Literal["adapter", "merged", "base"] = "adapter"  # hf
    model: str | None = None  # openai: what the server calls it
    concurrency: int = 8  # openai
    predictions: Path | None = None  # predictions


class Backend(Protocol):
    """Whoever answers questions about pictures."""

    @property
    def name(self) -> str:
        """A part of file names: "gguf-q4_k_m"."""

    @property
    def hands(self) -> int:
        """How many pictures it wants to have in hand at once, each in a thread of its own."""

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How answers are chosen; empty where greedily, or where nobody knows."""

    def check(self, questions: Sequence[Question]) -> None:
        """Raises MinipovidError, before anything is asked, for questions that it cannot answer."""

    def identity(self) -> Mapping[str, Any]:
        """What decides an answer, beside question and picture; ready for JSON."""

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str | None]:
        """The answers to questions about one picture, in order; None for one that could not be had this time."""

    def close(self) -> None: ...


@contextmanager
def opened(name: str, choice: BackendOptions) -> Iterator[Backend]:
    """Raises MinipovidError for an unknown name, and what the backend raises."""
    backend: Backend = shelf.load("inference.backends", name).open(choice)
    try:
        yield backend
    finally:
        backend.close()


def refuse_placeholders(questions: Sequence[Question]) -> None:
    """Raises MinipovidError for a question that holds the picture's placeholder: it would be obeyed."""
    for question in questions:
        if IMAGE in question.prompt:
            raise MinipovidError(f"Question {question.id} holds the placeholder {IMAGE}; leave it out.")


@dataclass(frozen=True)
class Question:
    """One benchmark question; `truth` holds what the benchmark needs to score the answer.

    `image` is relative to the pictures' folder, or a pictures.Embedded, or "" where the question is about text alone.
    """

    id: str
    image: str
    prompt: str
    truth: Mapping[str, Any]
    max_tokens: int
