"""The reference: the model as the stage began, asked once per answer and picture and remembered on disk.

    reference = Reference(model, loss.views, cache_gib)
    table = reference(batch)                  # {view: Scores}, from disk where that is there
    reference.keep()                          # write what was computed since the last time

What is kept of a view is what the loss asks (`View.reference`): the log-probabilities of the answer's own tokens
(400 bytes for 100 tokens), or, for any question, the hidden rows from which the output head answers it (800 KB on
a 7B model). A score is found again by two digests, of everything that it depends on:

    the file     every weight as it was loaded, quantised or not, the frozen adapter's too; configuration, versions
    the entry    pixels and token ids as they reach the model: template, transform, noise, seed, data (data.collate)

There is no list of settings that could miss one: other bytes, another name. The file is shared by all runs from the
same base. Pairs scored in another company differ in a float's last digit, so a run that finds scores of another run may
differ from one that computes its own, in the last digits too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minipovid import __version__
from minipovid.common.caches import cache_folder
from minipovid.common.caches.store import StoreCache
from minipovid.train.losses import Scores, ScoreTable, View
from minipovid.train.scoring import HiddenScores, Rows, score

# per pair what is kept of a view: log-probabilities [A] or hidden rows [A, H]; None where they are yet to be computed
Kept = list[Tensor | None]

if TYPE_CHECKING:
    from minipovid.models.model import Model
    from minipovid.models.tree_attention.tokens import Tokens
    from minipovid.train.batch import Batch


class Reference:
    """Scores of the reference model for one stage; `passes` counts the pairs that the model was run on."""

    def __init__(self, model: Model, views: Sequence[View], cache_gib: float, keep_hidden: bool = True) -> None:
        """`keep_hidden`: hidden rows are kept too. A stage that sees every pair once has no use for so much disk."""
        self.model, self.passes, self.keep_hidden = model, 0, keep_hidden
        self.views = [view._replace(grad=False) for view in views if view.reference != "nothing"]
        name = digest(model) if cache_gib and self.views else "nothing"
        self.cache = StoreCache(cache_folder() / "reference", "reference", "scores", name, cache_gib)
        self.computed: dict[bytes, Tensor] = {}  # and not written yet

    def __call__(self, batch: Batch) -> ScoreTable:
        """The scores of every view that the loss asks of the reference."""
        table = {view: self._kept(batch, view) for view in self.views}
        missing: dict[tuple[View, ...], list[int]] = {}  # views -> the pairs that lack just these
        for pair in range(len(batch)):
            missing.setdefault(tuple(view for view in self.views if table[view][pair] is None), []).append(pair)
        for views, pairs in missing.items():
            if views:
                self._compute(batch, views, pairs, table)
        return {view.key: self._scores(batch, view, table[view]) for view in self.views}

    def keep(self) -> None:
        """Write what was computed. Called once a step, behind the optimiser's; the rows come from the GPU together."""
        if self.cache.limit_gib and self.computed:
            rows = [value.flatten().view(torch.uint8) for value in self.computed.values()]
            together = torch.cat(rows).cpu().split([len(row) for row in rows])
            self.cache.write({entry: _bytes(row) for entry, row in zip(self.computed, together, strict=True)})
        self.computed.clear()

    def _kept(self, batch: Batch, view: View) -> Kept:
        found = self.cache.read([_entry(view, key) for key in batch.keys[view.key]])
        lengths = batch.answers[view.answer].lengths
        return [None if value is None else self._read(value, view, n) for value, n in zip(found, lengths, strict=True)]

    def _read(self, value: bytes, view: View, length: int) -> Tensor:
        """Log-probabilities [A] or hidden rows [A, H] of A = `length` positions."""
        head = self.model.head
        if view.reference == "own":
            return torch.frombuffer(bytearray(value), dtype=torch.float32)
        return torch.frombuffer(bytearray(value), dtype=head.weight.dtype).view(length, head.in_features)

    def _compute(self, batch: Batch, views: Sequence[View], pairs: list[int], table: dict[View, Kept]) -> None:
        """Run the reference model on the `pairs` of the batch that lack these views, and fill in their rows."""
        some = batch if len(pairs) == len(batch) else batch.subset(pairs)
        self.passes += len(pairs)
        with torch.no_grad(), self.model.as_reference():
            scored = score(self.model, some, views)
        for view in views:
            answer = some.answers[view.answer]
            scores = scored[view.key]
            assert isinstance(scores, HiddenScores)
            rows = scores.hidden if view.reference == "any" else scores.logps().flatten().index_select(0, answer.real)
            for pair, row in zip(pairs, rows.split(answer.lengths), strict=True):
                table[view][pair] = row
                if view.reference == "own" or self.keep_hidden:
                    self.computed[_entry(view, batch.keys[view.key][pair])] = row

    def _scores(self, batch: Batch, view: View, rows: Kept) -> Scores:
        answer = batch.answers[view.answer]
        together = torch.cat([row.to(self.model.device, non_blocking=True) for row in rows if row is not None])
        if view.reference == "own":
            return OwnLogps(together, answer)
        return HiddenScores(
            Rows(together, self.model.head), torch.arange(len(together), device=together.device), answer
        )


class OwnLogps:
    """The Scores of a view of which the loss asks no more than the log-probabilities [N] of the answer's own tokens."""

    def __init__(self, rows: Tensor, answer: Tokens) -> None:
        self.ids, self.mask = answer.ids, answer.mask
        self._logps = rows.new_zeros(self.mask.numel()).index_copy(0, answer.real, rows).view_as(self.mask)

    def logps(self, ids: Tensor | None = None) -> Tensor:
        """Float32 log-probabilities [B, A] of the answer itself; 0 at padded positions."""
        if ids is not None:
            raise self._too_much("logps(ids)")
        return self._logps

    def argmax(self) -> Tensor:
        raise self._too_much("argmax()")

    def logits(self) -> Tensor:
        raise self._too_much("logits()")

    def _too_much(self, question: str) -> RuntimeError:
        return RuntimeError(f"the loss asks {question} of a view that it declares with reference='own'; declare 'any'")


def digest(model: Model) -> str:
    """64 hex digits that name the reference model: every tensor, the configuration, the versions that compute.

    The weights are read as they lie in memory: a changed file, another quantisation or dtype gives other bytes.
    """
    content = hashlib.sha256()
    config = model.base.config.to_diff_dict()  # type: ignore[operator,union-attr]
    facts: list[object] = [sorted((key, repr(value)) for key, value in config.items() if key != "_name_or_path")]
    versions = [(name, version(name)) for name in ("torch", "transformers", "peft", "bitsandbytes")]
    facts += [model.device.type, __version__, *versions]
    frozen = model.peft.peft_config.get("reference")
    if frozen is not None:
        facts += [frozen.r, frozen.lora_alpha, frozen.use_rslora]  # type: ignore[attr-defined]
    content.update(repr(facts).encode())
    for name, value in model.base.state_dict().items():
        if ".default." not in name:  # the policy's
            content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            content.update(_bytes(value))
    return content.hexdigest()


def _entry(view: View, key: bytes) -> bytes:
    """The two kinds of rows of one view are two entries."""
    return hashlib.sha256(view.reference.encode() + key).digest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
