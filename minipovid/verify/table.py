"""The rows of the table: the trained model, its base, the merged weights, and each file beside its mmproj."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from gguf import GGUFReader

from minipovid.common.errors import MinipovidError
from minipovid.common.files import remove
from minipovid.export.gguf_pair import STAMP, GgufPair
from minipovid.images.load import inside
from minipovid.inference.llama_cpp import Runtime, find_pair
from minipovid.models import adapter as lora
from minipovid.pairs.pair import Pair
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.verify import files, measures, tokens, weights
from minipovid.verify import sheet as sheets
from minipovid.verify import vision as sight
from minipovid.verify.answers import PairComparison, ask, compare
from minipovid.verify.causes import Cause, distinct
from minipovid.verify.expected import Expected, has_4bit
from minipovid.verify.inputs import VerifyProgress
from minipovid.verify.sheet import ANSWERS, TrainedSheet
from minipovid.verify.verdict import Measured, against_training

SHEET, MERGED = Path(run_folder.VERIFY, "trained.safetensors"), Path(run_folder.VERIFY, "merged")  # in the run folder
ROOM = 64  # tokens beyond data.max_length: a faulty file may add some


@dataclass
class VerifyTable:
    """What every row is made of."""

    run: Path
    recipe: Recipe
    pairs: Sequence[Pair]
    root: Path  # of their pictures
    origin: GgufPair | None  # what the files were made of; None where the base is not here
    progress: VerifyProgress
    n_gpu_layers: int | None = None  # of a GGUF that llama.cpp computes on a GPU; -1: all, None: all that fit
    _due: dict[tuple[str, str], Expected] = field(default_factory=dict)  # by file and merge base
    _mmproj_causes: dict[Path, list[Cause]] = field(default_factory=dict)  # mmproj files and what is wrong with them

    @cached_property
    def sheet(self) -> TrainedSheet:
        """What the trained model says: from the run folder, or computed and kept there.

        Raises MinipovidError where neither can be.
        """
        path, key = self.run / SHEET, self._key()
        digests = [sheets.digest(pair, self.root) for pair in self.pairs]
        saved = sheets.load(path, key)
        sheet = saved.only(digests) if saved is not None else None
        if sheet is None:
            if not self.can_compute:
                lack = "the base model" if self.origin is None else "a GPU, and on a CPU it is too large"
                raise MinipovidError(
                    f"{path} does not hold what the trained model says of these pairs, and to compute it this machine "
                    f"lacks {lack}; run `minipovid verify` once where the run was trained, and copy that file here."
                )
            from minipovid.verify import trained

            assert self.origin is not None
            sheet = trained.compute(self.origin, self.recipe, self.pairs, digests, self.root, self.progress)
            sheets.save(path, key, sheet)
        return sheet

    @cached_property
    def margins(self) -> list[float]:
        """The trained ones."""
        return self.sheet.margins()

    def _key(self) -> str:
        """Of what the trained model says: the adapter, its base by name, how that was loaded."""
        model = self.recipe.model
        settings = [model.path, model.revision, model.load_in_4bit, model.dtype, self.recipe.data.max_length]
        return json.dumps([sheets.FORMAT, lora.sha256(self.run / run_folder.ADAPTER), *settings])

    @cached_property
    def can_compute(self) -> bool:
        """Can transformers run the model here?"""
        if self.origin is None:
            return False
        import torch

        from minipovid.models.shapes import CPU_LIMIT

        return torch.cuda.is_available() or sum(tensor.size for tensor in self.origin.base.values()) <= CPU_LIMIT

    def rows(self, quants: Sequence[str], notes: list[str]) -> list[Measured]:
        same = measures.margins(self.margins, self.margins)
        base = self._training_base
        trained = Measured("trained (transformers)", base, kl=0.0, agreement=1.0, parity=1.0, margins=same)
        trained.causes += against_training(trained, len(self.pairs))
        return [trained, self._base(), *self._merged(notes), *(self._gguf(quant, notes) for quant in quants)]

    @property
    def _training_base(self) -> str:
        return "nf4" if self.recipe.model.load_in_4bit else "original"

    def _base(self) -> Measured:
        """The adapter off: what a file that has lost it would look like."""
        answers = [each for row in self.sheet.rows for each in row.answers.values()]
        row = Measured("base (transformers)", self._training_base, parity=1.0, note="for comparison")
        row.kl = float(np.concatenate([each.base_kl for each in answers]).mean())
        row.agreement = float(np.concatenate([each.base_same for each in answers]).mean())
        row.margins = measures.margins([0.0] * len(self.margins), self.margins)
        return row

    def _merged(self, notes: list[str]) -> Iterator[Measured]:
        """The merged weights in transformers, before anything is made a GGUF of them."""
        if self.origin is None or not self.can_compute:
            notes.append("The merged weights were not run in transformers: this machine cannot.")
            return
        from minipovid.export.safetensors import write_merged
        from minipovid.verify import trained

        row = Measured("merged (transformers)", self._training_base, bits=16)
        row.causes += weights.scales(self.origin.factors, self.sheet.scales, row.file)
        pairs, folder = list[PairComparison](), self.run / MERGED
        try:
            write_merged(self.origin, folder, self._training_base)
            answers = trained.logits_of_merged(self.recipe, folder, self.pairs, self.root)
            for trained_pair, logits in zip(self.sheet.rows, answers, strict=True):
                ids = {kind: trained_pair.answers[kind].ids.tolist() for kind in ANSWERS}
                pairs.append(compare(trained_pair, logits, ids, True))
                self.progress(row.file, len(pairs), len(self.pairs))
        except MinipovidError as error:  # no room on the disk or the GPU: the files can be verified without it
            notes.append(f"The merged weights were not run in transformers: {error}")
            return
        finally:
            remove(folder)
        yield row.fill_in(pairs, self.margins)

    def _gguf(self, quant: str, notes: list[str]) -> Measured:
        """One file beside its mmproj: looked into, loaded, asked."""
        text, vision = find_pair(self.run, quant)
        row = Measured(text.name, mib=text.stat().st_size / 2**20, bits=measures.bits(quant))
        header, mmproj = files.opened(text), files.opened(vision)
        if isinstance(header, Cause):
            row.causes.append(header)
        else:
            row.merge_base = str(files.value(header, "minipovid.merge_base") or "")
            row.same_base = row.merge_base == self._training_base
            row.stamp = str(files.value(header, STAMP) or "")
            row.causes += tokens.examine(text.name, header, self.sheet.chat)
            expected = self._expected("text", row.merge_base or "original")
            if expected is not None:
                other = self._expected("text", "original" if expected.merge_base == "nf4" else "nf4")
                row.causes += files.examine(text.name, header, expected, other)
            notes += files.unread(text.name, header) if self.origin is not None else ()
        row.causes += [mmproj] if isinstance(mmproj, Cause) else self._look_at(vision, mmproj)
        if not isinstance(header, Cause) and not isinstance(mmproj, Cause):
            self._load(row, text, vision, header)
        row.causes = distinct(row.causes)
        return row

    def _look_at(self, vision: Path, header: GGUFReader) -> Sequence[Cause]:
        """The mmproj, once for all files beside it."""
        expected = self._expected("mmproj", "original")
        if vision not in self._mmproj_causes and expected is not None:
            self._mmproj_causes[vision] = list(files.examine(vision.name, header, expected, None))
        return self._mmproj_causes.get(vision, [])

    def _expected(self, file: Literal["text", "mmproj"], merge_base: str) -> Expected | None:
        """What such a file should hold; None where that cannot be had: no base here, or none in 4 bits."""
        if self.origin is None or (merge_base == "nf4" and not has_4bit(self.origin)):
            return None
        key = (file, merge_base)
        if key not in self._due:
            self._due[key] = Expected(self.origin, file, merge_base, self.sheet.scales)
        return self._due[key]

    def _load(self, row: Measured, text: Path, vision: Path, header: GGUFReader) -> None:
        """A file that cannot be asked is a faulty file: the others are judged all the same."""
        doing = "loaded"
        try:
            with Runtime(text, vision, n_ctx=self._n_ctx(header), n_gpu_layers=self.n_gpu_layers) as runtime:
                doing = "asked"
                self._read(row, runtime, header)
                if not any(cause.file == vision.name for cause in row.causes):  # else the mmproj is known to be wrong
                    row.causes += filter(None, [sight.compare(runtime, self.sheet.features, vision.name)])
                pairs = list[PairComparison]()
                for trained, pair in zip(self.sheet.rows, self.pairs, strict=True):
                    pairs.append(ask(runtime, trained, pair, inside(self.root, pair.image)))
                    self.progress(row.file, len(pairs), len(self.pairs))
                row.fill_in(pairs, self.margins)
        except MinipovidError as error:
            if not row.causes:
                row.causes.append(Cause.of(row.file, f"cannot be {doing}", str(error).rstrip(".")))

    def _n_ctx(self, header: GGUFReader) -> int:
        """Room for every pair, as far as the model was trained for it."""
        room = self.recipe.data.max_length + ROOM
        trained = files.value(header, f"{files.value(header, 'general.architecture')}.context_length")
        return min(room, int(trained)) if trained else room

    def _read(self, row: Measured, runtime: Runtime, header: GGUFReader) -> None:
        """Differences of the tokens that our runtime makes, by the first pair that shows one."""
        chat, before = self.sheet.chat, len(row.causes)
        both = list(zip(self.sheet.rows, self.pairs, strict=True))
        prompts = (
            tokens.compare(row.file, header, runtime, chat, pair.prompt, trained.prompt_ids.tolist())
            for trained, pair in both
        )
        row.causes += filter(None, [next(filter(None, prompts), None), tokens.answers(row.file, runtime, chat)])
        if len(row.causes) > before:
            return  # answers have other tokens because of that
        answers = (
            tokens.compare_answer(
                row.file, header, runtime, pair.prompt, getattr(pair, kind), trained.answers[kind].ids.tolist()
            )
            for trained, pair in both
            for kind in ANSWERS
        )
        row.causes += [cause for cause in [next(filter(None, answers), None)] if cause is not None]
