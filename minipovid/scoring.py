"""score(model, batch, views) -> {view: Scores}: every answer that shares a picture is scored behind one shared prefix.

On LLaVA-1.5, 636 of a pair's 736 tokens are picture and prompt. They are computed once, in a tree:

    columns     [ picture + prompt | answer 1 | answer 2 | ... ]
    positions     0 .. p-1           p ..       p ..                each answer continues the prefix
    attention     causal             prefix and itself, never another answer

Padding (prompts and answers of unequal length) is masked out and never scored. The result equals separate forward
passes to float error, forward and gradient. Letters of the shapes: see minipovid.types.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipovid.types import AnswerKind, ImageKind, ScoreTable, View

if TYPE_CHECKING:
    from minipovid.data import Batch
    from minipovid.model import Model

VOCAB_CHUNK = 8192  # columns of the output head that are in float32 at a time


def score(model: Model, batch: Batch, views: Sequence[View]) -> ScoreTable:
    """The scores of every view, keyed by (answer, image). Views without `grad` keep no activations."""
    table = {}
    for image, grad in dict.fromkeys((view.image, view.grad) for view in views):
        answers = list(dict.fromkeys(view.answer for view in views if (view.image, view.grad) == (image, grad)))
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            rows = _answer_rows(model, batch, image, answers)
        for answer, hidden in zip(answers, rows, strict=True):
            table[answer, image] = HiddenScores(hidden, model.head, *batch.answers[answer])
    return table


class HiddenScores:
    """Scores from the hidden rows [B, A, H] that predict an answer's tokens, and the output head [V, H]."""

    def __init__(self, hidden: Tensor, head: nn.Linear, ids: Tensor, mask: Tensor) -> None:
        self.hidden, self.head, self.ids, self.mask = hidden, head, ids, mask

    def logps(self, ids: Tensor | None = None) -> Tensor:
        """Float32 log-probabilities [B, A] of `ids` (default: the answer itself); 0 at padded positions."""
        wanted = (self.ids if ids is None else ids)[self.mask]  # [R]
        rows = _Logps.apply(self.hidden[self.mask], self.head.weight, self.head.bias, wanted)
        return torch.zeros(self.mask.shape, device=rows.device).masked_scatter(self.mask, rows)

    def argmax(self) -> Tensor:
        """The most probable token [B, A] at each position; 0 at padded positions."""
        with torch.no_grad():
            rows = self.hidden[self.mask]
            best, ids = rows.new_full(rows.shape[:1], -torch.inf, dtype=torch.float32), self.ids[self.mask].clone()
            for start, logits in _logit_chunks(rows, self.head.weight, self.head.bias):
                value, index = logits.max(-1)
                ids = torch.where(value > best, index + start, ids)
                best = torch.maximum(value, best)
            return torch.zeros_like(self.ids).masked_scatter(self.mask, ids)

    def logits(self) -> Tensor:
        """Float32 logits [B, A, V]; nonsense at padded positions."""
        return _logits(self.hidden, self.head.weight, self.head.bias)


class _Logps(torch.autograd.Function):
    """log softmax(h W^T + b)[id] for rows h [R, H], without ever holding [R, V]: forward streams the log-sum-exp over
    vocabulary chunks, backward recomputes each chunk. The head is frozen and gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
        total = hidden.new_full(ids.shape, -torch.inf, dtype=torch.float32)  # [R] running log-sum-exp
        wanted = torch.zeros_like(total)
        for start, logits in _logit_chunks(hidden, weight, bias):
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside, column = _columns(ids, start, logits.shape[-1])
            wanted = torch.where(inside, logits.gather(-1, column[:, None])[:, 0], wanted)
        ctx.save_for_backward(hidden, weight, bias, ids, total)
        return wanted - total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        hidden, weight, bias, ids, total = ctx.saved_tensors
        result = torch.zeros_like(hidden, dtype=torch.float32)
        for start, logits in _logit_chunks(hidden, weight, bias):
            slope = -(logits - total[:, None]).exp()  # d logp / d logits = onehot - softmax
            inside, column = _columns(ids, start, logits.shape[-1])
            slope.scatter_add_(-1, column[:, None], inside[:, None].to(slope.dtype))
            part = weight[start : start + logits.shape[-1]]
            result += (slope * grad[:, None]) @ part.float()
        return result.to(hidden.dtype), None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplied in float32: in bfloat16 a logit of 16 is known to a sixteenth, and DPO lives on less than that."""
    return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())


def _logit_chunks(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[tuple[int, Tensor]]:
    """(first vocabulary id, float32 logits [R, at most VOCAB_CHUNK]) over the whole vocabulary."""
    for start in range(0, weight.shape[0], VOCAB_CHUNK):
        part = slice(start, start + VOCAB_CHUNK)
        yield start, _logits(hidden, weight[part], None if bias is None else bias[part])


def _columns(ids: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Which ids [R] fall into the chunk, and their column in it (0 where they do not)."""
    inside = (ids >= start) & (ids < start + width)
    return inside, (ids - start).where(inside, torch.zeros_like(ids))


def _answer_rows(model: Model, batch: Batch, image: ImageKind, answers: Sequence[AnswerKind]) -> list[Tensor]:
    """Per answer the hidden rows [B, A, H] that predict its tokens: the prompt's last, then all but its own last."""
    parts = [batch.prompt, *(batch.answers[answer] for answer in answers)]
    lengths = batch.prompt.mask.sum(-1, keepdim=True)  # [B, 1]
    positions = [_arange(part.ids) + (lengths if index else 0) for index, part in enumerate(parts)]
    widths = [part.ids.shape[1] for part in parts]
    branches = torch.arange(len(parts)).repeat_interleave(torch.tensor(widths)).to(lengths.device)  # [S]
    hidden = model.hidden(
        model.embed(torch.cat([part.ids for part in parts], 1), _features(model, batch, image)),
        tree_mask(torch.cat([part.mask for part in parts], 1), branches),
        torch.cat(positions, 1),
    )  # [B, S, H]
    last = hidden.gather(1, (lengths - 1)[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, 1, H]
    return [torch.cat([last, rows[:, :-1]], 1) for rows in hidden.split(widths, dim=1)[1:]]


def tree_mask(valid: Tensor, branches: Tensor) -> Tensor:
    """Who may attend to whom: bool [B, 1, S, S] from real positions `valid` [B, S] and branch numbers [S], 0 = prefix.

    A position sees itself and every real position before it in the prefix or in its own branch.
    """
    size = branches.shape[0]
    kin = (branches[None, :] == 0) | (branches[None, :] == branches[:, None])  # [S query, S key]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    itself = torch.eye(size, dtype=torch.bool, device=valid.device)  # keeps padded rows free of NaN
    return ((kin & causal) & valid[:, None, :] | itself)[:, None]


def _features(model: Model, batch: Batch, image: ImageKind) -> Tensor:
    """Projected features [B, N, H]; the tower runs once per picture of a batch, whoever asks, policy or reference."""
    if image not in batch.features:
        batch.features[image] = model.image_features(batch.images[image])
    return batch.features[image]


def _arange(like: Tensor) -> Tensor:
    return torch.arange(like.shape[1], device=like.device).expand_as(like)
