"""Where tokens stand: worked by hand, and a slow twin of the mask for random forests."""

from __future__ import annotations

import random

import pytest
import torch

from minipovid.models.tree_attention.forest import Forest, pack, tree_mask
from minipovid.models.tree_attention.tokens import Tokens


def tokens(*lengths: int, first: int = 0) -> Tokens:
    """Consecutive ids from `first`, so that every token of a batch is another."""
    rows, at = [], first
    for length in lengths:
        rows.append(list(range(at, at + length)))
        at += length
    return Tokens.padded(rows)


def test_two_pairs_by_hand() -> None:
    """Prefixes 1 2 3 and 4; chosen 10 11 and 12; rejected 20 and 21 22: both trees are wider than half a row of 8."""
    forest = Forest([tokens(3, 1, first=1), tokens(2, 1, first=10), tokens(1, 2, first=20)], torch.device("cpu"))
    assert forest.order.tolist() == [0, 1]
    assert forest.ids.tolist() == [[1, 2, 3, 10, 11, 20, 0, 0], [4, 12, 21, 22, 0, 0, 0, 0]]
    assert forest.positions[0, :6].tolist() == [0, 1, 2, 3, 4, 3]
    assert forest.positions[1, :4].tolist() == [0, 1, 1, 2]
    chosen, rejected = (forest.read[which] for which in forest.predicting)
    assert forest.read.tolist() == [2, 3, 8, 10]
    assert chosen.tolist() == [2, 3, 8]  # 3 predicts 10, 10 predicts 11; 4 predicts 12
    assert rejected.tolist() == [2, 8, 10]  # 3 predicts 20; 4 predicts 21, 21 predicts 22


def test_a_short_tree_stands_beside_another_one() -> None:
    """Widths 5, 9 and 4: the second is longest, the first and third share a row; order follows the rows."""
    forest = Forest([tokens(3, 6, 2, first=1), tokens(2, 3, 2, first=20)], torch.device("cpu"))
    assert forest.order.tolist() == [1, 0, 2]
    assert forest.ids[:, :10].tolist() == [[4, 5, 6, 7, 8, 9, 22, 23, 24, 0], [1, 2, 3, 20, 21, 10, 11, 25, 26, 0]]
    assert forest.positions[1, :9].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert forest.read[forest.predicting[0]].tolist() == [18, 19, 5, 6, 7, 22, 23]
    assert forest.ids.shape == (2, 16)


def test_pack_never_needs_more_rows_than_pairs_nor_wider_ones() -> None:
    dice = random.Random(0)
    for _ in range(50):
        widths = [dice.randint(1, 40) for _ in range(dice.randint(1, 12))]
        rows = pack(widths)
        assert sorted(pair for row in rows for pair in row) == list(range(len(widths)))
        assert max(sum(widths[pair] for pair in row) for row in rows) == max(widths)
    assert pack([7, 7, 7]) == [[0], [1], [2]]
    assert pack([4, 10, 6, 3]) == [[1], [2, 0], [3]]


@pytest.mark.parametrize("seed", range(5))
def test_mask_against_a_slow_twin(seed: int) -> None:
    """Column by column: who is in my tree, before me, and in the prefix or my own answer?"""
    dice = random.Random(seed)
    lengths = [[dice.randint(1, 9) for _ in range(4)] for _ in range(3)]
    parts = [tokens(*row, first=100 * number + 1) for number, row in enumerate(lengths)]
    forest = Forest(parts, torch.device("cpu"))
    owner = {}  # token -> (pair, part, index)
    for number, part in enumerate(parts):
        for pair, length in enumerate(lengths[number]):
            for index in range(length):
                owner[int(part.ids[pair, index])] = (pair, number, index)
    mask = forest.mask(torch.float32)[:, 0]
    seen = 0
    for row, ids in enumerate(forest.ids.tolist()):
        for query, asked in enumerate(ids):
            for key, other in enumerate(ids):
                if asked == 0:
                    continue
                (pair, part, index), theirs = owner[asked], owner.get(other)
                allowed = theirs is not None and theirs[0] == pair
                allowed = allowed and (theirs[1] == 0 != part or (theirs[1] == part and theirs[2] <= index))
                assert (mask[row, query, key] == 0) == allowed, (asked, other)
                seen += allowed
    assert seen > 100
    assert torch.isfinite(mask).any(-1).all()  # padding, too, sees something: no NaN


def test_tree_mask_by_hand() -> None:
    """Prefix p, answers a b | c, then another tree's prefix q: a b see p, c sees p, q sees itself alone."""
    tree, branch = torch.tensor([[0, 0, 0, 0, 1]]), torch.tensor([[0, 1, 1, 2, 0]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert tree_mask(tree, branch)[0, 0].int().tolist() == expected
