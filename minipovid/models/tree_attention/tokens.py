"""Token ids of several texts, padded to the longest, with what a GPU need not be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tokens(NamedTuple):
    """Right-padded token ids; A stands for P where it is the prompt."""

    ids: Tensor  # [B, A]
    mask: Tensor  # [B, A] True where a token is real
    real: Tensor  # [N] where those are in the flattened ids
    lengths: tuple[int, ...]  # B of them, known without asking a GPU

    @classmethod
    def padded(cls, rows: Sequence[Sequence[int]]) -> Tokens:
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
        return cls.of(ids, tuple(len(row) for row in rows))

    @classmethod
    def of(cls, ids: Tensor, lengths: tuple[int, ...]) -> Tokens:
        stands = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
        mask, real = (torch.from_numpy(each).to(ids.device) for each in (stands, np.flatnonzero(stands)))
        return cls(ids, mask, real, lengths)

    def subset(self, rows: Sequence[int]) -> Tokens:
        ids = self.ids.index_select(0, torch.tensor(rows).to(self.ids.device, non_blocking=True))
        return Tokens.of(ids, tuple(self.lengths[row] for row in rows))

    def to(self, device: torch.device) -> Tokens:
        ids, mask, real = (tensor.to(device, non_blocking=True) for tensor in self[:3])
        return Tokens(ids, mask, real, self.lengths)

    def pin_memory(self) -> Tokens:
        return Tokens(self.ids.pin_memory(), self.mask.pin_memory(), self.real.pin_memory(), self.lengths)
