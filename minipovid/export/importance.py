"""The importance matrix: how strongly each input column of each matrix is driven while the model looks and answers.

    importance = gather(lambda observe: Runtime(text, mmproj, observe=observe), [(picture, prompt, chosen), ...])
    quants.by_llama_cpp(f16, q4_k_m, "q4_k_m", importance.means())

llama.cpp's quantisers weigh the error of column j of W by the mean square of x_j, the j-th input of W x: it is what one
unit of error there costs in the squared error of W x, where inputs are uncorrelated. Its own tool gathers it from text
alone; a LLaVA's inputs are mostly picture rows, which drive other columns. Ours comes from the run's own pictures,
prompts and chosen answers, through the very graph that will run. The file is one that `llama-quantize --imatrix` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from minipovid.common.arrays import Doubles, Floats
from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.export import writer
from minipovid.inference.llama_cpp.activations import Observe

if TYPE_CHECKING:
    from minipovid.inference.llama_cpp import Runtime

CalibrationExample = tuple[Path, str, str]  # (picture, prompt, answer)
KEY = "minipovid.inputs"  # what the file was made of
SUMS, COUNTS = ".in_sum2", ".counts"  # llama.cpp's names of a weight's two tensors


class Importance:
    """Sums of squares per column of each weight, and of how many rows."""

    def __init__(self) -> None:
        self.sums: dict[str, Doubles] = {}
        self.counts: dict[str, int] = {}

    def __call__(self, name: str, rows: Floats) -> None:
        """One matrix product is about to be computed: the weight's name and its input rows [rows, columns]."""
        squares = np.square(rows).sum(0, dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0.0) + squares
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def means(self) -> dict[str, Floats]:
        return {name: (total / self.counts[name]).astype(np.float32) for name, total in self.sums.items()}


def gather(open_runtime: Callable[[Observe], Runtime], examples: Iterable[CalibrationExample]) -> Importance:
    """Read every example's picture, prompt and answer once. In the last layer llama.cpp drops all rows but those that
    predict, so its later matrices are measured on answer rows alone.

    Raises MinipovidError where there are no examples, or for a picture or answer that the model cannot take.
    """
    importance = Importance()
    with open_runtime(importance) as runtime:
        for picture, prompt, answer in examples:
            runtime.logps(picture, prompt, answer)
    if not importance.counts:
        raise MinipovidError("An importance matrix needs at least one pair with its picture; the run has none.")
    return importance


def key(made_of: str, examples: Sequence[CalibrationExample]) -> str:
    """A digest of model and examples: `made_of` is the stamp of the GGUF that is asked."""
    digest = hashlib.sha256(made_of.encode())
    for picture, prompt, answer in examples:
        digest.update(hashlib.sha256(picture.read_bytes()).digest())
        digest.update(repr((prompt, answer)).encode())
    return digest.hexdigest()


def save(path: Path, importance: Importance, stamp: str) -> None:
    """Write a GGUF in the layout of llama.cpp's imatrix files."""
    metadata = {
        "general.architecture": "imatrix",
        "general.type": "imatrix",
        "imatrix.datasets": ["the run's pictures, prompts and chosen answers"],
        "imatrix.chunk_count": 1,
        "imatrix.chunk_size": max(importance.counts.values()),
        KEY: stamp,
    }
    entries = []
    for name, total in importance.sums.items():
        count = np.array([[importance.counts[name]]])
        entries += [_entry(name + SUMS, total[None]), _entry(name + COUNTS, count)]
    with finished(path) as draft:
        writer.write(draft, metadata, entries)


def _entry(name: str, numbers: Doubles) -> writer.TensorEntry:
    return writer.TensorEntry(name, numbers.shape, Kind.F32, lambda: iter([numbers.astype(np.float32)]))


def load(path: Path, stamp: str) -> dict[str, Floats] | None:
    """The mean square of each column by the weight's name; None where no file stands there that was made of this."""
    if writer.stamp(path, KEY) != stamp:
        return None
    numbers = {tensor.name: np.array(tensor.data, np.float32).reshape(-1) for tensor in gguf.GGUFReader(path).tensors}
    names = [name.removesuffix(SUMS) for name in numbers if name.endswith(SUMS)]
    return {name: numbers[name + SUMS] / numbers[name + COUNTS] for name in names}
