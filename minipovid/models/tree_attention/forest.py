"""Where the tokens of a batch stand: pairs as trees of one prefix and its answers, trees side by side in rows.

    row 0   [ prefix 3 | chosen 3 | rejected 3 ]
    row 1   [ prefix 0 | chosen 0 | rejected 0 | prefix 2 | chosen 2 | rejected 2 ]

Nothing is padded within a tree. A row is as wide as the longest tree, rounded up; shorter trees share a row where they
fit into that. All of it is worked out on the CPU from the lengths, so that no GPU is waited for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from minipovid.models.tree_attention.tokens import Tokens

MULTIPLE = 8  # columns: what the matrix units of GPUs and the kernels of masked attention like


class Segment(NamedTuple):
    """One run of tokens: the prefix (part 0) or an answer (part 1, 2, ...) of a pair, and where it stands."""

    pair: int
    part: int
    row: int
    start: int  # column
    length: int
    position: int  # of its first token in its own sequence


class TreeSpan(NamedTuple):
    """Where one pair stands: columns [start, fork) hold its prefix, [fork, end) its answers."""

    row: int
    start: int
    fork: int
    end: int


class Forest:
    """The layout of a batch's `parts` (Tokens of prefix, answer, answer, ...) in rows R and columns W.

    ids, positions [R, W]    token ids (0 where nothing stands) and position ids
    trees                    a TreeSpan for every pair, row by row
    order [B]                the pairs in that order
    read                     flat indices [M] into [R * W]: the columns that predict an answer's token, in order
    predicting               per answer: which [N] of those predict its tokens, pair after pair. They are the prefix's
                             last, which all answers share, and all of the answer but its own last
    """

    def __init__(self, parts: Sequence[Tokens], device: torch.device) -> None:
        lengths = np.array([part.lengths for part in parts])  # [parts, B]
        rows = pack(lengths.sum(0).tolist())
        segments = _place(lengths, rows)
        last = len(parts) - 1
        self.trees = [
            TreeSpan(prefix.row, prefix.start, prefix.start + prefix.length, end.start + end.length)
            for prefix, end in zip(segments[:: last + 1], segments[last :: last + 1], strict=True)
        ]
        width = -(-int(lengths.sum(0).max()) // MULTIPLE) * MULTIPLE
        table = _table(segments, (len(rows), width), [part.ids.shape[1] for part in parts], lengths.shape[1])
        self._table = torch.from_numpy(table).to(device, non_blocking=True)
        flat, source = torch.cat([part.ids.flatten() for part in parts]), self._table[0]
        self._table[0] = flat.index_select(0, source.clamp(min=0).flatten()).view_as(source) * (source >= 0)
        self.order = torch.tensor([pair for row in rows for pair in row]).to(device, non_blocking=True)
        predicting = [_predicting(segments, number, width) for number in range(1, len(parts))]
        read = np.unique(np.concatenate(predicting))
        self.read = torch.from_numpy(read).to(device, non_blocking=True)
        ranks = [torch.from_numpy(np.searchsorted(read, each)) for each in predicting]
        self.predicting = [each.to(device, non_blocking=True) for each in ranks]

    @property
    def ids(self) -> Tensor:
        return self._table[0]

    @property
    def positions(self) -> Tensor:
        return self._table[1]

    def to(self, device: torch.device) -> Forest:
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Forest:
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Forest:
        other = copy.copy(self)
        other._table, other.order, other.read = (move(tensor) for tensor in (self._table, self.order, self.read))
        other.predicting = [move(tensor) for tensor in self.predicting]
        return other

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Who may attend to whom, to be added to attention scores: 0 or -inf [R, 1, W, W]."""
        allowed = tree_mask(*self._table[2:])
        return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, -torch.inf)


def tree_mask(tree: Tensor, branch: Tensor) -> Tensor:
    """Bool [R, 1, W, W] from tree numbers and branch numbers [R, W]; branch 0 is a tree's prefix.

    A column sees itself and what stands before it in its own tree, in the prefix or in its own branch.
    """
    same_tree = tree[:, :, None] == tree[:, None, :]  # [R, W query, W key]
    kin = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    before = torch.ones(tree.shape[1], tree.shape[1], dtype=torch.bool, device=tree.device).tril()
    return (same_tree & kin & before)[:, None]


def pack(widths: Sequence[int]) -> list[list[int]]:
    """Which pairs share a row: first fit, the longest first, in rows as wide as the longest. Ties keep their order."""
    rows: list[list[int]] = []
    room: list[int] = []
    for pair in sorted(range(len(widths)), key=lambda pair: -widths[pair]):
        row = next((number for number, free in enumerate(room) if widths[pair] <= free), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max(widths))
        rows[row].append(pair)
        room[row] -= widths[pair]
    return rows


def _place(lengths: np.ndarray, rows: list[list[int]]) -> list[Segment]:
    """Every part of every pair, row by row and from left to right."""
    segments = []
    for number, row in enumerate(rows):
        column = 0
        for pair in row:
            for part, length in enumerate(lengths[:, pair].tolist()):
                segments.append(Segment(pair, part, number, column, length, int(lengths[0, pair]) if part else 0))
                column += length
    return segments


def _table(segments: list[Segment], shape: tuple[int, int], widths: list[int], pairs: int) -> np.ndarray:
    """int64 [4, R, W]: index into the parts' flattened ids (-1 for none), position, tree (-1 for none), branch."""
    table = np.zeros((4, *shape), np.int64)
    table[[0, 2]] = -1
    first = pairs * np.cumsum([0, *widths])  # where each part's ids begin, flattened one after the other
    for each in segments:
        column = np.arange(each.length)
        here = table[:, each.row, each.start : each.start + each.length]
        here[0] = first[each.part] + each.pair * widths[each.part] + column
        here[1] = each.position + column
        here[2], here[3] = each.pair, each.part
    return table


def _predicting(segments: list[Segment], number: int, width: int) -> np.ndarray:
    """Flat indices [N] of the columns that predict the tokens of answer `number`, pair after pair."""
    prefix_end = {each.pair: each.row * width + each.start + each.length - 1 for each in segments if each.part == 0}
    columns = []
    for each in sorted(each for each in segments if each.part == number):
        start = each.row * width + each.start
        columns.append(np.append(prefix_end[each.pair], np.arange(start, start + each.length - 1)))
    return np.concatenate(columns)
