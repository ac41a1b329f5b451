"""WHO ANSWERS: one file per backend, named as on the command line (`minipovid eval --backend gguf`).

    with backends.opened("gguf", Path("runs/mine"), {"quant": "q4_k_m"}) as backend:
        for text in backend.answers(questions, Path("photo.jpg")): ...

A file here defines two things, and nothing else need be edited; predictions.py is the neighbour to begin from:

    Options                        a frozen dataclass: what users may set of this backend alone, a default for each
    open(run, options, decoding)   a Backend; raises MinipovidError where it cannot answer

Options are set with `minipovid eval --option NAME=VALUE` and checked strictly. Where the command has a flag of the same
name (--quant, --weights, --model), the flag sets it, and says that this backend is meant. What a file's options are
called is read from its text, for to import it may be to import torch: `class Options` stands in the file itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.models.chat_template import Chat
from minipovid.recipe.strict import validated

OptionPath = Annotated[Path, Field(strict=False)]  # an option that is a path, which users write as text


@dataclass(frozen=True)
class Question:
    """One benchmark question; `truth` holds what the benchmark needs to score the answer, and under "question" its own
    words where the prompt adds to them: answers from a file are told by these, and by what else is text or a number.

    `image` is relative to the pictures' folder, or an images.embedded.Embedded, or "" where the question is about text
    alone.
    """

    id: str
    image: str
    prompt: str
    truth: Mapping[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen: greedily, unless a temperature is set."""

    temperature: float = 0.0
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Empty where greedy."""
        return asdict(self) if self.temperature else {}


GREEDY = Decoding()


class Backend(Protocol):
    """Whoever answers questions about pictures."""

    @property
    def name(self) -> str:
        """A part of file names: "gguf-q4_k_m"."""

    @property
    def concurrency(self) -> int:
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
def opened(
    name: str, run: Path, own: Mapping[str, Any] | None = None, decoding: Decoding = GREEDY
) -> Iterator[Backend]:
    """A backend, closed at the end. `own` are its options; what is None there is not set.

    Raises MinipovidError for an unknown name or option, a wrong value, and where the backend cannot answer.
    """
    module = shelf.load("inference.backends", name)
    options = {key: value for key, value in (own or {}).items() if value is not None}
    backend: Backend = module.open(run, validated(module.Options, options, name, f"the {name} backend"), decoding)
    try:
        yield backend
    finally:
        backend.close()


def option_names(name: str) -> list[str]:
    """The fields of a backend's Options, as its text has them: nothing is imported. [] where there is no such file."""
    spec = find_spec(f"{__name__}.{name}") if name in shelf.names("inference.backends") else None
    if spec is None or spec.origin is None:
        return []
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    bodies = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options")
    fields = (line.target for body in bodies for line in body if isinstance(line, ast.AnnAssign))
    return [field.id for field in fields if isinstance(field, ast.Name)]


def refuse_obeyed(questions: Sequence[Question], chat: Chat) -> None:
    """Raises MinipovidError for a question that holds what the model would obey: a placeholder or special token."""
    for question in questions:
        if why := chat.obeyed(question.prompt):
            raise MinipovidError(f"Question {question.id} {why}.")
