"""llama.cpp answers from the run's GGUF pair: the model that is really used.

The picture is encoded once, and what the questions about it have in common is read once (runtime/memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minipovid.inference.backends import BackendOptions, Decoding, Question, refuse_placeholders
from minipovid.inference.llama_cpp import Runtime, Sampling, find_pair
from minipovid.models.chat_template import Turn


def open(choice: BackendOptions) -> Files:
    """Raises MinipovidError where the run has no such file, or llama.cpp cannot load it."""
    return Files(choice)


class Files:
    """The backend."""

    hands = 1  # one answer is computed at a time

    def __init__(self, choice: BackendOptions) -> None:
        self._files = find_pair(choice.run, choice.quant)
        self._decoding: Decoding = choice.decoding
        self._options = dict(choice.runtime)
        self._runtime = Runtime(*self._files, **self._options)

    @property
    def name(self) -> str:
        lora = "-lora" if self._options.get("lora") else ""
        return f"gguf-{self._files[0].stem.rpartition('-')[2].lower()}{lora}"

    @property
    def decoding(self) -> dict[str, Any]:
        return self._decoding.told()

    def check(self, questions: Sequence[Question]) -> None:
        refuse_placeholders(questions)

    def identity(self) -> dict[str, Any]:
        """The files by name, size and time of writing: to read 14 GB for their digest takes longer than it is worth."""
        lora = self._options.get("lora")
        files = [*self._files, *([Path(lora)] if lora else [])]
        told = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        numbers = {key: self._options[key] for key in ("n_ctx", "n_gpu_layers") if self._options.get(key) is not None}
        return {"backend": "llama.cpp", "files": told, **numbers, **self.decoding}

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        for question in questions:
            turn = Turn("user", question.prompt, (picture,) if picture else ())
            sampling = Sampling(question.max_tokens, self._decoding.temperature, seed=self._decoding.seed)
            with self._runtime.say([turn], sampling) as reply:
                yield "".join(reply)

    def close(self) -> None:
        self._runtime.close()
