"""Base and adapter as one set of weights, computed a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minipovid.common.errors import MinipovidError
from minipovid.common.threads import ahead
from minipovid.models.adapter import Factor
from minipovid.models.parts import Place
from minipovid.models.stored_tensors import StoredTensor

BLOCK = 2**20  # numbers in a block of rows: 4 MiB of float32


class RowReader(Protocol):
    """Rows of one tensor in float32, on demand."""

    def rows(self, start: int, stop: int) -> npt.NDArray[np.float32]: ...


@dataclass
class Merged:
    """The tensors of one GGUF: base values, through NF4 and back where training saw them so, plus the adapter's."""

    base: Mapping[str, StoredTensor]  # by canonical name
    factors: Mapping[str, Factor]  # by canonical name
    nf4: Callable[[StoredTensor], RowReader] | None  # rounds what is `in_4bit`; None: original values
    used: set[str] = field(default_factory=set)

    def blocks(self, name: str, place: Place) -> Iterator[npt.NDArray[np.float32]]:
        """The rows of one tensor in float32 and in GGUF order. Raises MinipovidError where adapter and base differ."""
        tensor, factor = self.base[name], self.factors.get(name)
        if factor is not None:
            self.used.add(name)
            out, rank = factor.b.shape
            if tensor.shape != (out, factor.a.shape[1]) or rank != factor.a.shape[0]:
                raise MinipovidError(
                    f"The adapter changes {tensor.name} as [{out}, {factor.a.shape[1]}], but the base's is "
                    f"{list(tensor.shape)}: it was trained on another model."
                )
        source = self.nf4(tensor) if self.nf4 is not None and place.in_4bit else tensor
        head = tensor.shape[0] // place.heads if place.heads else 1
        step = max(1, BLOCK // (tensor.size // tensor.shape[0]) // head) * head
        a = factor.a.rows() if factor is not None else None  # once: every block of rows needs the whole of it
        bounds = [(start, min(start + step, tensor.shape[0])) for start in range(0, tensor.shape[0], step)]
        for (start, stop), rows in zip(bounds, ahead(source.rows(*each) for each in bounds), strict=True):
            if factor is not None:
                rows += factor.rows(start, stop, a)
            if not np.isfinite(rows).all():
                raise MinipovidError(f"{name} holds infinities or NaN; the training or the base checkpoint is broken.")
            yield interleave(rows, head) if place.heads else rows

    def check_used(self, names: Iterable[str]) -> None:
        """Raises MinipovidError where the adapter's part in one of these tensors was not asked for."""
        unused = set(names) - self.used
        if unused:
            raise MinipovidError(f"The adapter's {min(unused)} was not merged; this is a defect of minipovid.")


def interleave(rows: npt.NDArray[np.float32], head: int) -> npt.NDArray[np.float32]:
    """Rows of whole heads, from rotate-half order (0..d/2, d/2..d) to llama.cpp's pairs (0, d/2, 1, d/2 + 1, ...)."""
    halves = rows.reshape(-1, 2, head // 2, *rows.shape[1:])  # [heads, half, d/2, in]
    pairs: npt.NDArray[np.float32] = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
    return pairs
