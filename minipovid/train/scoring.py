"""score(model, batch, views) -> {view: Scores}: every answer that shares a picture is scored behind one shared prefix.

On LLaVA-1.5, 636 of a pair's 736 tokens are picture and prompt. They are computed once, in a tree:

    columns     [ picture + prompt | answer 1 | answer 2 | ... ]
    positions     0 .. p-1           p ..       p ..                each answer continues the prefix
    attention     causal             prefix and itself, never another answer

Trees stand close together, several in one row where they fit beside the longest (see forest.py). The result equals
separate forward passes to float error, forward and gradient. The letters of shapes are those of losses/; N counts the
answer positions of all pairs, padding left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipovid.train.losses import ScoreTable, View

if TYPE_CHECKING:
    from minipovid.models.model import Model
    from minipovid.models.tree_attention.forest import Forest
    from minipovid.models.tree_attention.tokens import Tokens
    from minipovid.train.batch import Batch

VOCAB_CHUNK = 8192  # columns of the output head that are in float32 at a time
ROW_CHUNK = 1024  # and rows


def score(model: Model, batch: Batch, views: Sequence[View]) -> ScoreTable:
    """The scores of every view, keyed by (answer, image). Views without `grad` keep no activations."""
    table = {}
    # Those without gradient come first: what the others keep for the backward pass is not there yet.
    for (image, grad), answers in sorted(passes(views).items(), key=lambda each: each[0][1]):
        forest = batch.forest(answers)
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            read = Rows(_hidden(model, batch, image, forest).index_select(0, forest.read), model.head)
            for answer, which in zip(answers, forest.predicting, strict=True):
                table[answer, image] = HiddenScores(read, which, batch.answers[answer])
    return table


def passes(views: Sequence[View]) -> dict[tuple[str, bool], tuple[str, ...]]:
    """(image, grad) -> the answers that one pass through the model scores behind the prefix."""
    groups: dict[tuple[str, bool], dict[str, None]] = {}
    for view in views:
        groups.setdefault((view.image, view.grad), {})[view.answer] = None
    return {group: tuple(answers) for group, answers in groups.items()}


def count_tokens(batch: Batch, views: Sequence[View]) -> int:
    """How many tokens `score` computes for these views."""
    every = passes(views).values()
    answers = sum(sum(batch.answers[answer].lengths) for answers in every for answer in answers)
    return len(every) * sum(batch.prompt.lengths) + answers


def _hidden(model: Model, batch: Batch, image: str, forest: Forest) -> Tensor:
    """Last hidden states [rows * columns, H] of the forest under one picture each."""
    pixels, which = batch.images[image]
    if image not in batch.features:  # the tower runs once per picture of a batch, whoever asks, policy or reference
        batch.features[image] = model.image_features(pixels)
    features = batch.features[image].index_select(0, which.index_select(0, forest.order))
    return model.hidden(model.embed(forest.ids, features), forest).flatten(0, 1)


class Rows:
    """The hidden rows [M, H] of one pass of which anything is asked, and the output head [V, H].

    The head is gone through once for all of them, however many questions about however many answers follow.
    """

    def __init__(self, hidden: Tensor, head: nn.Linear) -> None:
        self.hidden, self.head = hidden, head

    @cached_property
    def wide(self) -> Tensor:
        """The rows in float32. Where a token is nearly certain, the two halves of its gradient nearly cancel: they must
        meet in here, before anything is rounded to 16 bits."""
        with torch.set_grad_enabled(self.hidden.requires_grad):  # whoever asks first, the next one may want a gradient
            return self.hidden.float()

    @cached_property
    def vocabulary(self) -> tuple[Tensor, Tensor]:
        """(log-sum-exp, argmax) [M] of the logits."""
        with torch.set_grad_enabled(self.hidden.requires_grad):
            return _Vocabulary.apply(self.wide, self.head.weight, self.head.bias)  # type: ignore[no-any-return]


class HiddenScores:
    """Scores of one answer: `which` [N] of the rows predict its tokens, pair after pair."""

    def __init__(self, read: Rows, which: Tensor, answer: Tokens) -> None:
        self.ids, self.mask = answer.ids, answer.mask
        self._read, self._which, self._real = read, which, answer.real

    @property
    def hidden(self) -> Tensor:
        """[N, H], in the model's precision."""
        return self._read.hidden.index_select(0, self._which)

    def logps(self, ids: Tensor | None = None) -> Tensor:
        """Float32 log-probabilities [B, A] of `ids` (default: the answer itself); 0 at padded positions."""
        head = self._read.head
        wanted = (self.ids if ids is None else ids).flatten().index_select(0, self._real)  # [N]
        rows = self._read.wide.index_select(0, self._which)
        logits = (rows * head.weight.index_select(0, wanted).float()).sum(-1)
        if head.bias is not None:
            logits = logits + head.bias.index_select(0, wanted).float()
        return self._padded(logits - self._read.vocabulary[0].index_select(0, self._which))

    def argmax(self) -> Tensor:
        """The most probable token [B, A] at each position; 0 at padded positions."""
        return self._padded(self._read.vocabulary[1].index_select(0, self._which))

    def logits(self) -> Tensor:
        """Float32 logits [B, A, V]; 0 at padded positions."""
        head = self._read.head
        return self._padded(_logits(self._read.wide.index_select(0, self._which), head.weight, head.bias))

    def _padded(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [B, A, ...]."""
        flat = rows.new_zeros(self.mask.numel(), *rows.shape[1:])
        return flat.index_copy(0, self._real, rows).unflatten(0, self.mask.shape)


class _Vocabulary(torch.autograd.Function):
    """log sum_v exp(h w_v + b_v) and argmax_v for float32 rows h [M, H], without ever holding [M, V].

    The gradient of the first is the mean of the w_v under the softmax. It does not depend on what comes later, so it is
    gathered [M, H] on the same way through the vocabulary, rescaled whenever a larger logit turns up: the backward pass
    multiplies no matrices. The head is frozen and gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        rows = hidden.detach()
        top = rows.new_full(rows.shape[:1], -torch.inf)  # [M] the largest logit so far
        total, best = torch.zeros_like(top), torch.zeros_like(top, dtype=torch.long)
        mean = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        for start in range(0, weight.shape[0], VOCAB_CHUNK):
            part = weight[start : start + VOCAB_CHUNK].float()
            offset = None if bias is None else bias[start : start + VOCAB_CHUNK].float()
            for first in range(0, len(rows), ROW_CHUNK):
                some = slice(first, first + ROW_CHUNK)
                logits = F.linear(rows[some], part, offset)
                value, index = logits.max(-1)
                best[some] = torch.where(value > top[some], index + start, best[some])
                higher = torch.maximum(value, top[some])
                shrink = (top[some] - higher).exp()
                exponentials = logits.sub_(higher[:, None]).exp_()
                total[some] = total[some] * shrink + exponentials.sum(-1)
                if mean is not None:
                    mean[some] = torch.addmm(mean[some] * shrink[:, None], exponentials, part)
                top[some] = higher
            del part  # before the next one is made
        if mean is not None:
            ctx.save_for_backward(mean.div_(total[:, None]))
        ctx.mark_non_differentiable(best)
        return top + total.log(), best

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (mean,) = ctx.saved_tensors
        return mean * grad[:, None], None, None


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplied in float32: in bfloat16 a logit of 16 is known to a sixteenth, and DPO lives on less than that."""
    return F.linear(rows, weight.float(), None if bias is None else bias.float())
