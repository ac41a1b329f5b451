"""Losses against hand-worked numbers and a slow twin in NumPy, forward and gradient (facts: POVID section 7)."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.train import losses

LN2 = math.log(2)
CLEAN, REJECTED, NOISED, CROPPED = (
    ("chosen", "clean"),
    ("rejected", "clean"),
    ("chosen", "noised"),
    ("chosen", "cropped"),
)


class Fixed:
    """Scores straight from logits [B, A, V]."""

    def __init__(self, logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        self.raw, self.ids = logits, ids
        self.mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask

    def logps(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        wanted = self.ids if ids is None else ids
        return self.raw.log_softmax(-1).gather(-1, wanted[..., None])[..., 0] * self.mask

    def argmax(self) -> torch.Tensor:
        return self.raw.argmax(-1)

    def logits(self) -> torch.Tensor:
        return self.raw


class Given:
    """Scores whose log-probability of anything is one given number per pair [B]."""

    def __init__(self, logp: Any) -> None:
        self.value = torch.as_tensor(logp, dtype=torch.float64).reshape(-1, 1)

    def logps(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.value

    def argmax(self) -> torch.Tensor:
        return torch.zeros(self.value.shape, dtype=torch.long)


class Either(Given):
    """Like Given for its own answer, another number for any other tokens."""

    def __init__(self, logp: Any, other: Any) -> None:
        super().__init__(logp)
        self.other = Given(other)

    def logps(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        return self.value if ids is None else self.other.value


def tables(chosen: Any, rejected: Any, noisy: Any) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Policy and reference tables with the given log-ratios; the noisy answer's holds under either picture."""
    policy = {CLEAN: Either(chosen, noisy), REJECTED: Given(rejected), NOISED: Given(noisy), CROPPED: Given(noisy)}
    return policy, {key: Either(0.0, 0.0) for key in policy}


@pytest.mark.parametrize(("variant", "value"), [("proper", 0.514216), ("code", 0.514216), ("paper", 0.513015)])
def test_povid_by_hand(variant: str, value: float) -> None:
    """beta 0.1, log-ratios (w, t, n) = (2, -1, -3).

    Two sigmoids: -log s(0.1 * 3) = 0.554355, -log s(0.1 * 5) = 0.474077, their mean 0.514216.
    One sigmoid: -log s(0.2 + 0.05 + 0.15) = -log s(0.4) = 0.513015.
    """
    judged = losses.build({"name": "povid", "variant": variant})(*tables(2.0, -1.0, -3.0))
    assert judged.loss.item() == pytest.approx(value, abs=1e-6)
    assert judged.figures["rewards/chosen"].item() == pytest.approx(0.2)
    assert judged.figures["rewards/rejected"].item() == pytest.approx(-0.1)


@pytest.mark.parametrize(("variant", "value"), [("proper", LN2), ("code", 0.744397)])
def test_noise_term_of_proper_and_code(variant: str, value: float) -> None:
    """One position, clean logits [2, 1, 0] for both models, label 0, policy's noisy argmax 1, the reference's 2.

    proper: both score token 1, the log-ratio is 0: ln 2. code: the reference scores token 2, one logit less likely than
    token 1, so h = 0.1 * (0 - 1) = -0.1: -log s(-0.1) = 0.744397.
    """
    label = torch.tensor([[0]])
    clean = Fixed(torch.tensor([[[2.0, 1.0, 0.0]]]), label)
    assert clean.logps().item() == pytest.approx(-0.407606, abs=1e-6)
    policy = {CLEAN: clean, REJECTED: clean, NOISED: Fixed(torch.tensor([[[0.0, 9.0, 0.0]]]), label)}
    reference = policy | {NOISED: Fixed(torch.tensor([[[0.0, 0.0, 9.0]]]), label)}
    loss = losses.build({"name": "povid", "variant": variant, "noise_weight": 1.0})
    assert loss(policy, reference).loss.item() == pytest.approx(value, abs=1e-6)


EVERY_LOSS = [
    {"name": "dpo"},
    {"name": "povid", "variant": "proper"},
    {"name": "povid", "variant": "paper"},
    {"name": "povid", "variant": "code"},
]


@pytest.mark.parametrize("settings", EVERY_LOSS, ids=str)
def test_ln2_at_initialisation(settings: dict[str, Any]) -> None:
    scores = random_tables(seed=0)[0]
    assert losses.build(settings)(scores, scores).loss.tolist() == pytest.approx([LN2] * 3, abs=1e-6)


def test_mdpo_is_three_ln2_at_initialisation() -> None:
    scores = random_tables(seed=0)[0]
    assert losses.build({"name": "mdpo"})(scores, scores).loss.tolist() == pytest.approx([3 * LN2] * 3, abs=1e-6)


def test_anchor_adds_its_weight_in_ln2() -> None:
    scores = random_tables(seed=0)[0]
    for settings in EVERY_LOSS:
        loss = losses.build({**settings, "anchor": 0.5})
        assert loss(scores, scores).loss.tolist() == pytest.approx([1.5 * LN2] * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "gradient"),
    [
        ({"name": "dpo"}, (-0.05, 0.05, 0.0)),
        ({"name": "povid", "variant": "proper"}, (-0.05, 0.025, 0.025)),
        ({"name": "povid", "variant": "paper"}, (-0.05, 0.025, 0.025)),
        ({"name": "povid", "variant": "code"}, (-0.05, 0.025, 0.025)),
        ({"name": "mdpo", "anchor": 0.0}, (-0.1, 0.05, 0.05)),
        ({"name": "mdpo"}, (-0.15, 0.05, 0.05)),
    ],
    ids=str,
)
def test_gradient_at_initialisation(settings: dict[str, Any], gradient: tuple[float, ...]) -> None:
    """d loss / d (lp_w, lp_t, lp_n) at zero log-ratios: each sigmoid term pulls with beta / 2 times its weight."""
    leaves = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    policy, reference = tables(*[leaf * 1 for leaf in leaves])
    losses.build(settings)(policy, reference).loss.sum().backward()
    assert [0.0 if leaf.grad is None else leaf.grad.item() for leaf in leaves] == pytest.approx(gradient, abs=1e-9)


def random_tables(seed: int, pad: int = 0) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Policy (leaf logits) and reference over three pairs, five positions of which some are padding, seven tokens."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(5 + pad) < torch.tensor([5, 3, 1])[:, None]
    result = []
    for _ in range(2):
        table = {}
        for key in (CLEAN, REJECTED, NOISED, CROPPED):
            logits = torch.randn(3, 5, 7, generator=draw, dtype=torch.float64) * 2
            ids = torch.randint(7, (3, 5), generator=torch.Generator().manual_seed(7 if key[0] == "chosen" else 8))
            logits, ids = (
                torch.cat([part, torch.ones_like(part[:, :1])], 1) if pad else part for part in (logits, ids)
            )
            table[key] = Fixed(logits.requires_grad_(), ids, mask)
        result.append(table)
    return result[0], result[1]


def slow_povid(policy: Any, reference: Any, variant: str, beta: float, share: float, anchor: float) -> np.ndarray:
    """POVID one pair and one token at a time, from the table of facts/povid.md, in plain Python floats."""
    losses_of_pairs = []
    for pair in range(3):
        ratio = dict.fromkeys("wtn", 0.0)
        for position in range(int(policy[CLEAN].mask[pair].sum())):

            def logp(table: Any, key: Any, token: int, at: tuple[int, int] = (pair, position)) -> float:
                row = [math.exp(x) for x in table[key].raw[at].tolist()]
                return math.log(row[token] / sum(row))

            def best(table: Any, at: tuple[int, int] = (pair, position)) -> int:
                row = table[NOISED].raw[at].tolist()
                return row.index(max(row))

            for letter, key in (("w", CLEAN), ("t", REJECTED)):
                label = int(policy[key].ids[pair, position])
                ratio[letter] += logp(policy, key, label) - logp(reference, key, label)
            where = NOISED if variant == "paper" else CLEAN
            theirs = best(reference) if variant == "code" else best(policy)
            ratio["n"] += logp(policy, where, best(policy)) - logp(reference, where, theirs)
        w, t, n = ratio["w"], ratio["t"], ratio["n"]
        if variant == "paper":
            value = softplus(-beta * (w - (1 - share) * t - share * n))
        else:
            value = (1 - share) * softplus(-beta * (w - t)) + share * softplus(-beta * (w - n))
        losses_of_pairs.append(value + anchor * softplus(-beta * w))
    return np.array(losses_of_pairs)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


@pytest.mark.parametrize(("variant", "seed"), list(product(["proper", "paper", "code"], [1, 2])))
def test_povid_equals_its_slow_twin(variant: str, seed: int) -> None:
    """Forward, and every policy logit's gradient by central differences on the twin."""
    policy, reference = random_tables(seed)
    loss = losses.build({"name": "povid", "variant": variant, "beta": 0.3, "noise_weight": 0.4, "anchor": 0.7})
    value = loss(policy, reference).loss
    twin = slow_povid(policy, reference, variant, 0.3, 0.4, 0.7)
    np.testing.assert_allclose(value.detach().numpy(), twin, rtol=1e-9)
    value.sum().backward()
    for key in (CLEAN, REJECTED, NOISED):
        grad = policy[key].raw.grad
        for at in [(0, 0, 1), (0, 4, 6), (1, 2, 3), (1, 4, 0), (2, 0, 5)]:
            numeric = central_difference(policy, reference, key, at, variant)
            assert (0.0 if grad is None else grad[at].item()) == pytest.approx(numeric, abs=1e-7), (key, at)


def central_difference(policy: Any, reference: Any, key: Any, at: tuple[int, ...], variant: str) -> float:
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5, 1e-5):
            policy[key].raw[at] += step
            values.append(slow_povid(policy, reference, variant, 0.3, 0.4, 0.7).sum())
    return float((values[0] - values[1]) / 2e-5)


@pytest.mark.parametrize("settings", [*EVERY_LOSS, {"name": "mdpo"}], ids=str)
def test_padding_changes_nothing(settings: dict[str, Any]) -> None:
    plain, padded = (losses.build(settings)(*random_tables(3, pad)).loss for pad in (0, 1))
    torch.testing.assert_close(plain, padded)


def test_equal_noised_and_chosen_tokens_give_no_gradient_in_proper() -> None:
    policy, reference = random_tables(4)
    with torch.no_grad():
        policy[NOISED].raw.scatter_(-1, policy[CLEAN].ids[..., None], 99.0)
    losses.build({"name": "povid", "noise_weight": 1.0})(policy, reference).loss.sum().backward()
    assert policy[CLEAN].raw.grad.abs().max() < 1e-15


def test_noised_pass_gets_no_gradient_where_it_only_picks_tokens() -> None:
    for variant, gets in (("proper", False), ("code", False), ("paper", True)):
        loss = losses.build({"name": "povid", "variant": variant})
        policy, reference = random_tables(5)
        loss(policy, reference).loss.sum().backward()
        assert (policy[NOISED].raw.grad is not None) == gets
        assert {view.key: view.grad for view in loss.views}[NOISED] == gets


def test_proper_scores_the_same_tokens_and_asks_the_reference_for_no_noise() -> None:
    seen: dict[str, list[Any]] = {"policy": [], "reference": []}

    class Spy(Fixed):
        name = ""

        def logps(self, ids: torch.Tensor | None = None) -> torch.Tensor:
            seen[self.name].append(None if ids is None else ids.tolist())
            return super().logps(ids)

    policy, reference = random_tables(6)
    for name, table in (("policy", policy), ("reference", reference)):
        for key, scores in table.items():
            table[key] = Spy(scores.raw, scores.ids, scores.mask)
            table[key].name = name
    loss = losses.build({"name": "povid"})
    del reference[NOISED]
    loss(policy, reference)
    assert seen["policy"] == seen["reference"]
    assert any(ids is not None for ids in seen["policy"])
    assert {view.key: view.reference for view in loss.views}[NOISED] == "nothing"


def test_mdpo_against_its_terms() -> None:
    """beta 0.1, log-ratios (w, t, cropped) = (2, -1, -3): 0.554355 + 0.474077 + -log s(0.2) = 0.598139."""
    judged = losses.build({"name": "mdpo"})(*tables(2.0, -1.0, -3.0))
    assert judged.loss.item() == pytest.approx(0.554355 + 0.474077 + 0.598139, abs=2e-6)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"name": "povdi"},
            "There is no 'povdi' among the losses. Did you mean 'povid'? "
            f"Known: {', '.join(shelf.names('train.losses'))}.",
        ),
        ({"name": "dpo", "betta": 1.0}, "loss: betta is not a key of a recipe; did you mean beta?"),
        ({"name": "dpo", "beta": 0}, "loss: beta is 0, but it must be greater than 0."),
        ({"name": "povid", "variant": "x"}, "loss: variant is 'x', but it must be one of proper, paper, code."),
    ],
)
def test_bad_settings(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MinipovidError) as error:
        losses.build(settings)
    assert str(error.value) == sentence


def test_every_loss_builds_by_its_file_name() -> None:
    names = shelf.names("train.losses")
    assert len(names) >= 3
    for name in names:
        assert losses.build({"name": name}).views
