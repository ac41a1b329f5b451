"""What every loss on the shelf must keep, asked of each file there, with each alternative of its settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from minipovid.common import shelf
from minipovid.train import losses
from minipovid.train.losses import Loss, View, ViewKey

B, A, V = 3, 4, 7


def every_loss() -> Iterator[dict[str, Any]]:
    """The defaults of each file, and each other alternative that a field spells out."""
    for name in shelf.names("train.losses"):
        yield {"name": name}
        module = shelf.load("train.losses", name)
        for field, kind in get_type_hints(module.Loss).items():
            if get_origin(kind) is Literal:
                yield from ({"name": name, field: value} for value in get_args(kind))


EVERY = list(every_loss())


class Spy:
    """Scores from logits [B, A, V], float64; it notes what is asked of it."""

    def __init__(self, view: View, raw: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> None:
        self.view, self.raw, self.ids, self.mask, self.asked = view, raw, ids, mask, set[str]()

    def logps(self, ids: torch.Tensor | None = None) -> torch.Tensor:
        self.asked.add("own" if ids is None else "others")
        wanted = self.ids if ids is None else ids
        return self.raw.log_softmax(-1).gather(-1, wanted[..., None])[..., 0] * self.mask

    def argmax(self) -> torch.Tensor:
        self.asked.add("argmax")
        return self.raw.argmax(-1)

    def logits(self) -> torch.Tensor:
        self.asked.add("logits")
        return self.raw


class Table(dict[ViewKey, Spy]):
    """Notes which views are read."""

    def __init__(self, entries: Mapping[ViewKey, Spy]) -> None:
        super().__init__(entries)
        self.read: set[ViewKey] = set()

    def __getitem__(self, key: ViewKey) -> Spy:
        self.read.add(key)
        return super().__getitem__(key)


def tables(views: Sequence[View], seed: int, padding: int = 0, equal: bool = False) -> tuple[Table, Table]:
    """Policy and reference, random; `equal`: both say the same. All views of an answer have its tokens and mask."""
    dice = torch.Generator().manual_seed(seed)
    ids: dict[str, torch.Tensor] = {}
    policy, reference = {}, {}
    for view in views:
        if view.answer not in ids:
            ids[view.answer] = torch.randint(V, (B, A), generator=dice)
        raws = [torch.randn(B, A, V, generator=dice, dtype=torch.float64) for _ in range(2)]
        if equal:
            raws[1] = raws[0].clone()
        mask = torch.ones(B, A + padding, dtype=torch.bool)
        mask[:, A:] = False
        padded = torch.nn.functional.pad(ids[view.answer], (0, padding))
        both = [torch.nn.functional.pad(raw, (0, 0, 0, padding), value=0.3) for raw in raws]
        policy[view.key] = Spy(view, both[0].requires_grad_(), padded, mask)
        if view.reference != "nothing":
            reference[view.key] = Spy(view, both[1], padded, mask)
    return Table(policy), Table(reference)


def test_the_shelf_is_seen() -> None:
    assert {"dpo", "mdpo", "povid"} <= {settings["name"] for settings in EVERY}
    assert len(EVERY) > len(shelf.names("train.losses"))


@pytest.mark.parametrize("name", shelf.names("train.losses"))
def test_its_page_names_paper_and_equation(name: str) -> None:
    page = shelf.load("train.losses", name).__doc__ or ""
    assert re.search(r"arXiv \d{4}\.\d{4,5}", page) and re.search(r"log sigmoid|equation", page)
    loss = losses.build({"name": name})
    assert dataclasses.is_dataclass(loss) and loss.__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_padding_changes_nothing(settings: dict[str, Any]) -> None:
    loss = losses.build(settings)
    plain, padded = (loss(*tables(loss.views, 3, padding)) for padding in (0, 2))
    assert plain.loss.shape == (B,)
    torch.testing.assert_close(plain.loss, padded.loss)
    assert list(plain.figures) == list(padded.figures)
    for key, value in plain.figures.items():
        torch.testing.assert_close(value, padded.figures[key])


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_it_reads_the_views_that_it_declares_and_no_other(settings: dict[str, Any]) -> None:
    """And of the reference no more than a view says."""
    loss = losses.build(settings)
    policy, reference = tables(loss.views, 4)
    loss(policy, reference)
    assert len({view.key for view in loss.views}) == len(loss.views) >= 1
    assert policy.read == {view.key for view in loss.views}
    assert reference.read == {view.key for view in loss.views if view.reference != "nothing"}
    for scores in reference.values():
        assert scores.asked
        assert scores.view.reference == "any" or scores.asked == {"own"}, scores.view


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_the_chosen_answer_is_pushed_up_and_only_declared_views_are_pushed(settings: dict[str, Any]) -> None:
    """At the start, where policy and reference agree: a step down the gradient makes every chosen answer likelier."""
    loss = losses.build(settings)
    policy, reference = tables(loss.views, 5, equal=True)
    chosen = policy["chosen", "clean"]
    before = chosen.logps().sum(-1).detach()
    judged = loss(policy, reference)
    judged.loss.sum().backward()
    for scores in policy.values():
        assert scores.view.grad or scores.raw.grad is None, scores.view
    assert chosen.raw.grad is not None
    after = Spy(chosen.view, chosen.raw.detach() - 0.05 * chosen.raw.grad, chosen.ids, chosen.mask).logps().sum(-1)
    assert (after > before).all()


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_its_figures_are_one_per_pair_and_carry_no_gradient(settings: dict[str, Any]) -> None:
    loss: Loss = losses.build(settings)
    judged = loss(*tables(loss.views, 6, equal=True))
    assert torch.isfinite(judged.loss).all()
    for name, value in judged.figures.items():
        assert value.shape == (B,) and not value.requires_grad and torch.isfinite(value).all(), name
    if "rewards/margins" in judged.figures and settings.get("variant") != "code":
        assert judged.figures["rewards/margins"].abs().max() < 1e-12  # nothing has been learned yet
