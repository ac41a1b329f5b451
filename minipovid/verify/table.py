"""The rows of the table: the trained model, its base, the merged weights, and each file beside its mmproj."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

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
from minipovid.verify import vision as eyes
from minipovid.verify.answers import Said, ask, judge
from minipovid.verify.causes import Cause, distinct
from minipovid.verify.expected import Expected, has_4bit
from minipovid.verify.sheet import ANSWERS, Sheet
from minipovid.verify.verdict import Measured

SHEET, MERGED = Path(run_folder.VERIFY, "trained.safetensors"), Path(run_folder.VERIFY, "merged")  # in the run folder
ROOM = 64  # tokens beyond data.max_length: a faulty file may add some
Progress = Callable[[str, int, int], None]  # (who is being asked, pairs done, pairs in all)


@dataclass
class Bench:
    """What every row is made with."""

    run: Path
    recipe: Recipe
    pairs: Sequence[Pair]
    root: Path  # of their pictures
    made: GgufPair | None  # what the files were made of; None where the base is not here
    progress: Progress
    n_gpu_layers: int = 0  # of a GGUF that llama.cpp computes on a GPU; -1: all
    _due: dict[tuple[str, str], Expected] = field(default_factory=dict)  # by file and merge base
    _seen_already: dict[Path, list[Cause]] = field(default_factory=dict)  # mmproj files and what is wrong with them

    @cached_property
    def sheet(self) -> Sheet:
        """What the trained model says: from the run folder, or computed and kept there.

        Raises MinipovidError where neither can be.
        """
        path, key = self.run / SHEET, self._key()
        digests = [sheets.digest(pair, self.root) for pair in self.pairs]
        kept = sheets.load(path, key)
        found = kept.only(digests) if kept is not None else None
        if found is None:
            self._need_means(path)
            from minipovid.verify import trained

            assert self.made is not None
            found = trained.compute(self.made, self.recipe, self.pairs, digests, self.root, self.progress)
            sheets.save(path, key, found)
        return found

    @cached_property
    def margins(self) -> list[float]:
        """The trained ones."""
        return self.sheet.margins()

    def _key(self) -> str:
        """Of what the trained model says: the adapter, its base by name, how that was loaded."""
        model = self.recipe.model
        settings = [model.path, model.revision, model.load_in_4bit, model.dtype, self.recipe.data.max_length]
        return json.dumps([sheets.FORMAT, lora.sha256(self.run / run_folder.ADAPTER), *settings])

    def _need_means(self, path: Path) -> None:
        if self.can_compute:
            return
        lack = "the base model" if self.made is None else "a GPU, and on a CPU it is too large"
        raise MinipovidError(
            f"{path} does not hold what the trained model says of these pairs, and to compute it this machine lacks "
            f"{lack}; run `minipovid verify` once where the run was trained, and copy that file here."
        )

    @cached_property
    def can_compute(self) -> bool:
        """Can transformers run the model here?"""
        if self.made is None:
            return False
        import torch

        from minipovid.models.shapes import CPU_LIMIT

        return torch.cuda.is_available() or sum(tensor.size for tensor in self.made.base.values()) <= CPU_LIMIT

    def rows(self, quants: Sequence[str], notes: list[str]) -> list[Measured]:
        """The whole table."""
        return [self._trained(), self._base(), *self._merged(notes), *(self._gguf(quant, notes) for quant in quants)]

    @property
    def _seen(self) -> str:
        """Which base training saw."""
        return "nf4" if self.recipe.model.load_in_4bit else "original"

    def _trained(self) -> Measured:
        same = measures.margins(self.margins, self.margins)
        return Measured("trained (transformers)", self._seen, kl=0.0, agreement=1.0, parity=1.0, margins=same)

    def _base(self) -> Measured:
        """The adapter off: what a file that has lost it would look like."""
        told = [each for row in self.sheet.rows for each in row.answers.values()]
        row = Measured("base (transformers)", self._seen, parity=1.0, note="for comparison")
        row.kl = float(np.concatenate([each.base_kl for each in told]).mean())
        row.agreement = float(np.concatenate([each.base_same for each in told]).mean())
        row.margins = measures.margins([0.0] * len(self.margins), self.margins)
        return row

    def _merged(self, notes: list[str]) -> Iterator[Measured]:
        """The merged weights in transformers, before anything is made a GGUF of them."""
        if self.made is None or not self.can_compute:
            notes.append("The merged weights were not run in transformers: this machine cannot.")
            return
        from minipovid.export.safetensors import write_merged
        from minipovid.verify import trained

        row = Measured("merged (transformers)", self._seen, bits=16)
        row.causes += weights.scales(self.made.factors, self.sheet.scales, row.file)
        said, folder = [], self.run / MERGED
        try:
            write_merged(self.made, folder, self._seen)
            answers = trained.logits_of_merged(self.recipe, folder, self.pairs, self.root)
            for told, logits in zip(self.sheet.rows, answers, strict=True):
                said.append(judge(told, logits, {kind: told.answers[kind].ids.tolist() for kind in ANSWERS}, True))
                self.progress(row.file, len(said), len(self.pairs))
        except MinipovidError as error:  # no room on the disk or the GPU: the files can be verified without it
            notes.append(f"The merged weights were not run in transformers: {error}")
            return
        finally:
            remove(folder)
        yield row.hear(said, self.margins)

    def _gguf(self, quant: str, notes: list[str]) -> Measured:
        """One file beside its mmproj: looked into, loaded, asked."""
        text, vision = find_pair(self.run, quant)
        row = Measured(text.name, mib=text.stat().st_size / 2**20, bits=measures.bits(quant))
        header, sight = files.opened(text), files.opened(vision)
        if isinstance(header, Cause):
            row.causes.append(header)
        else:
            row.merge_base = str(files.value(header, "minipovid.merge_base") or "")
            row.same_base = row.merge_base == self._seen
            row.stamp = str(files.value(header, STAMP) or "")
            row.causes += self._look_into(text, header)
            notes += files.unread(text.name, header) if self.made is not None else ()
        row.causes += [sight] if isinstance(sight, Cause) else self._look_at(vision, sight)
        if not isinstance(header, Cause) and not isinstance(sight, Cause):
            self._load(row, text, vision, header)
        row.causes = distinct(row.causes)
        return row

    def _look_into(self, text: Path, header: files.Header) -> Iterator[Cause]:
        yield from tokens.examine(text.name, header, self.sheet.chat)
        merge_base = str(files.value(header, "minipovid.merge_base") or "original")
        expected = self._expected("text", merge_base)
        if expected is not None:
            other = self._expected("text", "original" if merge_base == "nf4" else "nf4")
            yield from files.examine(text.name, header, expected, other)

    def _look_at(self, vision: Path, header: files.Header) -> Sequence[Cause]:
        """The mmproj, once for all files beside it."""
        expected = self._expected("mmproj", "original")
        if vision not in self._seen_already and expected is not None:
            self._seen_already[vision] = list(files.examine(vision.name, header, expected, None))
        return self._seen_already.get(vision, [])

    def _expected(self, file: Literal["text", "mmproj"], merge_base: str) -> Expected | None:
        """What such a file should hold; None where that cannot be had: no base here, or none in 4 bits."""
        if self.made is None or (merge_base == "nf4" and not has_4bit(self.made)):
            return None
        key = (file, merge_base)
        if key not in self._due:
            self._due[key] = Expected(self.made, file, merge_base, self.sheet.scales)
        return self._due[key]

    def _load(self, row: Measured, text: Path, vision: Path, header: files.Header) -> None:
        """A file that cannot be asked is a faulty file: the others are judged all the same."""
        doing = "loaded"
        try:
            with Runtime(text, vision, n_ctx=self._n_ctx(header), n_gpu_layers=self.n_gpu_layers) as runtime:
                doing = "asked"
                self._read(row, runtime, header)
                self._see(row, runtime, vision)
                row.hear(list(self._asked(runtime, row.file)), self.margins)
        except MinipovidError as error:
            if not row.causes:
                row.causes.append(Cause.of(row.file, f"cannot be {doing}", str(error).rstrip(".")))

    def _n_ctx(self, header: files.Header) -> int:
        """Room for every pair, as far as the model was trained for it."""
        room = self.recipe.data.max_length + ROOM
        trained = files.value(header, f"{files.value(header, 'general.architecture')}.context_length")
        return min(room, int(trained)) if trained else room

    def _read(self, row: Measured, runtime: Runtime, header: files.Header) -> None:
        """Differences of the tokens that our runtime makes, by the first pair that shows one."""
        chat, before = self.sheet.chat, len(row.causes)
        both = list(zip(self.sheet.rows, self.pairs, strict=True))
        prompts = (
            tokens.compare(row.file, header, runtime, chat, pair.prompt, told.prompt_ids.tolist())
            for told, pair in both
        )
        row.causes += filter(None, [next(filter(None, prompts), None), tokens.answers(row.file, runtime, chat)])
        if len(row.causes) > before:
            return  # answers have other tokens because of that
        answers = (
            tokens.compare_answer(
                row.file, header, runtime, pair.prompt, getattr(pair, kind), told.answers[kind].ids.tolist()
            )
            for told, pair in both
            for kind in ANSWERS
        )
        row.causes += [cause for cause in [next(filter(None, answers), None)] if cause is not None]

    def _see(self, row: Measured, runtime: Runtime, vision: Path) -> None:
        """What the pictures look like, unless the mmproj is known to be wrong."""
        if not any(cause.file == vision.name for cause in row.causes):
            row.causes += filter(None, [eyes.look(runtime, self.sheet.features, vision.name)])

    def _asked(self, runtime: Runtime, file: str) -> Iterator[Said]:
        for done, (told, pair) in enumerate(zip(self.sheet.rows, self.pairs, strict=True), 1):
            yield ask(runtime, told, pair, inside(self.root, pair.image))
            self.progress(file, done, len(self.pairs))
