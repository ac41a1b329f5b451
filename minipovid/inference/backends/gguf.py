"""llama.cpp answers from the run's GGUF pair: the model that is really used.

The picture is encoded once, and what the questions about it have in common is read once (llama_cpp/kv_cache.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minipovid.inference.backends import Decoding, OptionPath, Question, refuse_obeyed
from minipovid.inference.llama_cpp import Runtime, Sampling, find_pair
from minipovid.models.chat_template import Turn


@dataclass(frozen=True)
class Options:
    """`quant`: which of the run's files, the most exact where None. All else are keywords of Runtime."""

    quant: str | None = None
    n_ctx: int | None = None
    n_gpu_layers: int | None = None
    n_threads: int | None = None
    lora: OptionPath | None = None


def open(run: Path, options: Options, decoding: Decoding) -> GgufBackend:
    """Raises MinipovidError where the run has no such file, or llama.cpp cannot load it."""
    return GgufBackend(run, options, decoding)


class GgufBackend:
    """A pair of files in llama.cpp."""

    concurrency = 1  # one answer is computed at a time

    def __init__(self, run: Path, options: Options, decoding: Decoding) -> None:
        self._files, self._options, self._decoding = find_pair(run, options.quant), options, decoding
        keywords = {name: value for name, value in asdict(options).items() if name != "quant" and value is not None}
        self._runtime = Runtime(*self._files, **keywords)

    @property
    def name(self) -> str:
        lora = "-lora" if self._options.lora else ""
        return f"gguf-{self._files[0].stem.rpartition('-')[2].lower()}{lora}"

    @property
    def decoding(self) -> dict[str, Any]:
        return self._decoding.as_dict()

    def check(self, questions: Sequence[Question]) -> None:
        refuse_obeyed(questions, self._runtime.chat)

    def identity(self) -> dict[str, Any]:
        """The files by name, size and time of writing: to read 14 GB for their digest takes longer than it is worth."""
        files = [*self._files, *([self._options.lora] if self._options.lora else [])]
        states = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        known = {} if self._options.n_ctx is None else {"n_ctx": self._options.n_ctx}
        layers = self._runtime.n_gpu_layers  # a GPU's last digits are its own
        return {"backend": "llama.cpp", "files": states, **known, "n_gpu_layers": layers, **self.decoding}

    def answers(self, questions: Sequence[Question], picture: Path | None) -> Iterator[str]:
        for question in questions:
            turn = Turn("user", question.prompt, (picture,) if picture else ())
            sampling = Sampling(question.max_tokens, self._decoding.temperature, seed=self._decoding.seed)
            with self._runtime.say([turn], sampling) as reply:
                yield "".join(reply)

    def close(self) -> None:
        self._runtime.close()
