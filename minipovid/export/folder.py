"""RUN/gguf: which files shall stand there, which do already, and the order in which the others are made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, need_space, sweep
from minipovid.export import importance, quants, writer
from minipovid.export.gguf_pair import STAMP, GgufPair
from minipovid.export.importance import CalibrationExample
from minipovid.export.quants import QUANTS
from minipovid.export.source import ADAPTER, ExportSource
from minipovid.inference.llama_cpp import Runtime

K_SHARE = 0.55  # of a matrix in F16: more than any quantisation made by llama.cpp takes, where its blocks of 256 fit
VOCABULARY = 16 * 2**20  # bytes that a file's metadata stay below
log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]  # (file name, bytes written, bytes in all)


@dataclass(frozen=True)
class PairOptions:
    """What an export shall leave behind."""

    merge_bases: Mapping[str, str]  # by quantisation of the text file: the base that the adapter is added to
    mmproj: str = "f16"
    # What an importance matrix is gathered on; none: no matrix.
    examples: Sequence[CalibrationExample] = field(default=())
    n_ctx: int | None = None  # tokens of the longest example, or more


def write_pair(pair: GgufPair, out: Path, options: PairOptions, progress: Progress | None = None) -> list[Path]:
    """The text GGUF of each quantisation and the mmproj, in this order; finished ones are left as they are.

    What an earlier, killed export left unfinished is removed. Raises MinipovidError where the disk is too small, before
    anything is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)
    work = _Export(pair, out, options, progress)
    need_space(out, work.n_bytes())
    work.mmproj()
    for quant in work.missing(by_llama_cpp=False):
        work.text(quant)
    by_llama_cpp = work.missing(by_llama_cpp=True)
    for merge_base in dict.fromkeys(options.merge_bases[quant] for quant in by_llama_cpp):
        with work.f16(merge_base) as source:
            for quant in by_llama_cpp:
                if options.merge_bases[quant] == merge_base:
                    work.requantised(source, quant)
    remove_stale(pair, out)
    return [*(work.path(quant) for quant in options.merge_bases), work.vision]


class _Export:
    """One export: the files, their stamps, and how each is made."""

    def __init__(self, pair: GgufPair, out: Path, options: PairOptions, progress: Progress | None) -> None:
        self.pair, self.out, self.options, self.progress = pair, out, options, progress
        self.vision = out / pair.title.mmproj(options.mmproj)
        self._keys: dict[str, str] = {}  # of the importance matrices, by merge base

    def path(self, quant: str) -> Path:
        return self.out / self.pair.title.text(quant)

    def missing(self, by_llama_cpp: bool) -> list[str]:
        """Quantisations that do not stand there yet, made of these very inputs."""
        mine = [quant for quant in self.options.merge_bases if (QUANTS[quant].kind is None) == by_llama_cpp]
        return [quant for quant in mine if writer.stamp(self.path(quant), STAMP) != self._stamp(quant)]

    def _stamp(self, quant: str) -> str:
        made_here = QUANTS[quant].kind is not None
        merge_base = self.options.merge_bases[quant]
        metadata = self.pair.metadata("text", quant, merge_base)
        return self.pair.stamp(metadata, None if made_here else self._imatrix_key(merge_base))

    def _imatrix_key(self, merge_base: str) -> str | None:
        """Of the importance matrix: the model that is asked, what its vision side is stored as, and the examples."""
        if not self.options.examples:
            return None
        if merge_base not in self._keys:
            files = self.pair.stamp(self.pair.metadata("text", "f16", merge_base)) + self.options.mmproj
            self._keys[merge_base] = importance.key(files, self.options.examples)
        return self._keys[merge_base]

    def _has_mmproj(self) -> bool:
        return writer.stamp(self.vision, STAMP) == self.pair.stamp(self.pair.metadata("mmproj", self.options.mmproj))

    def n_bytes(self) -> int:
        """Disk that what is missing will take, drafts included."""
        sizes = [] if self._has_mmproj() else [self.pair.n_bytes("mmproj", self.options.mmproj)]
        sizes += [self.pair.n_bytes("text", quant) for quant in self.missing(by_llama_cpp=False)]
        by_llama_cpp = self.missing(by_llama_cpp=True)
        f16 = self.pair.n_bytes("text", "f16") if by_llama_cpp else 0
        sizes += [self.pair.n_bytes("text", "f16", K_SHARE) for _ in by_llama_cpp]
        drafts = [f16] if any(not self._has_f16(self.options.merge_bases[quant]) for quant in by_llama_cpp) else []
        return sum(sizes) + sum(drafts) + VOCABULARY * (len(sizes) + len(drafts))

    def mmproj(self) -> None:
        if not self._has_mmproj():
            with finished(self.vision) as draft:
                self.pair.write_mmproj(draft, self.options.mmproj, self._on_bytes(self.vision))

    def text(self, quant: str) -> None:
        with finished(self.path(quant)) as draft:
            self.pair.write_text(draft, quant, self.options.merge_bases[quant], self._on_bytes(self.path(quant)))

    def _has_f16(self, merge_base: str) -> bool:
        """Is it wanted, and so made by then, or there from an earlier export?"""
        stamp = self.pair.stamp(self.pair.metadata("text", "f16", merge_base))
        return self.options.merge_bases.get("f16") == merge_base or writer.stamp(self.path("f16"), STAMP) == stamp

    @contextmanager
    def f16(self, merge_base: str) -> Iterator[Path]:
        """An F16 file of this merge base, for llama.cpp to quantise; one that nobody asked for goes afterwards."""
        if self._has_f16(merge_base):
            yield self.path("f16")
            return
        draft = self.out / f".{self.pair.title.stem}-F16-{merge_base}.gguf.draft"
        try:
            self.pair.write_text(draft, "f16", merge_base, self._on_bytes(draft))
            yield draft
        finally:
            draft.unlink(missing_ok=True)

    def requantised(self, source: Path, quant: str) -> None:
        with finished(self.path(quant)) as draft:
            weights = self._importance(source, self.options.merge_bases[quant])
            quants.by_llama_cpp(source, draft, quant, weights, keys={STAMP: self._stamp(quant)})

    def _importance(self, source: Path, merge_base: str) -> Mapping[str, importance.Floats] | None:
        """The importance matrix, gathered once and kept beside the folder."""
        key = self._imatrix_key(merge_base)
        if key is None:
            return None
        path = self.out.parent / "imatrix.gguf"
        weights = importance.load(path, key)
        if weights is None:
            log.info("Reading %d answers to weigh the columns (export.imatrix) ...", len(self.options.examples))
            room = self.options.n_ctx
            gathered = importance.gather(
                lambda observe: Runtime(source, self.vision, n_ctx=room, observe=observe), self.options.examples
            )
            importance.save(path, gathered, key)
            weights = gathered.means()
        return weights

    def _on_bytes(self, file: Path) -> Callable[[int, int], None] | None:
        return partial(self.progress, file.name) if self.progress is not None else None


def remove_stale(source: ExportSource, out: Path) -> None:
    """Files of this name made of another adapter (after a new training they would answer with the old one), and files
    of ours under another name: twins of those that stand here now."""
    for path in out.glob("*.gguf"):
        own = path.name.removeprefix("mmproj-").startswith(f"{source.title.stem}-")
        made_of = writer.stamp(path, ADAPTER)
        if made_of != source.adapter_sha256 and (own or made_of is not None):
            log.warning("%s was made of an earlier adapter and is removed; export it again if you need it.", path)
            path.unlink()
        elif made_of is not None and not own:
            log.warning("%s is now called %s and is removed.", path, source.title.stem)
            path.unlink()


def check_quants(names: Sequence[str], has_imatrix: bool) -> None:
    """Raises MinipovidError for a quantisation that needs an importance matrix where there will be none."""
    for name in names:
        if not has_imatrix and quants.needs_imatrix(name):
            raise MinipovidError(
                f"{name} needs an importance matrix, or the model would be spoilt: set export.imatrix, for example "
                "`--imatrix 32`, or take a larger quantisation."
            )
