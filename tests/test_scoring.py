"""Shared prefix = separate passes: transformers' own forward over each whole sequence is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llava
import torch

from minipovid import model as models
from minipovid import scoring
from minipovid.data import Batch, Tokens
from minipovid.recipe import LoraSection, ModelSection
from minipovid.types import View

VIEWS = [View("chosen", "clean"), View("rejected", "clean"), View("chosen", "noised", grad=False)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("model"))


def a_model(folder: Path, in_4bit: bool = False, checkpointing: bool = False) -> models.Model:
    """A tiny LLaVA whose adapter is no longer zero."""
    section = ModelSection(path=str(folder), load_in_4bit=in_4bit)
    model = models.load(section, LoraSection(r=4), checkpointing=checkpointing)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in model.adapter().values():
            value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
    return model


def a_batch(model: models.Model) -> Batch:
    """Three pairs with prompts and answers of unequal lengths."""
    draw = torch.Generator().manual_seed(5)

    def tokens(lengths: list[int], image: bool = False) -> Tokens:
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        ids = torch.randint(10, 300, mask.shape, generator=draw) * mask
        if image:
            ids[:, 2 : 2 + model.image_tokens] = model.image_token_id
        return Tokens(ids, mask)

    prompts = [model.image_tokens + extra for extra in (4, 9, 6)]
    pixels = {kind: torch.randn(3, 3, 28, 28, generator=draw) for kind in ("clean", "noised")}
    return Batch(tokens(prompts, image=True), {"chosen": tokens([5, 2, 7]), "rejected": tokens([1, 8, 3])}, pixels)


def separate(model: models.Model, batch: Batch, view: View) -> torch.Tensor:
    """Log-probabilities [B, A] from one whole, unpadded sequence at a time through the model's own forward."""
    answer = batch.answers[view.answer]
    result = torch.zeros(answer.mask.shape)
    for pair in range(len(batch)):
        prompt_ids = batch.prompt.ids[pair][batch.prompt.mask[pair]]
        answer_ids = answer.ids[pair][answer.mask[pair]]
        ids = torch.cat([prompt_ids, answer_ids])[None]
        logits = model.base(input_ids=ids, pixel_values=batch.images[view.image][pair : pair + 1]).logits[0]
        rows = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
        result[pair, : len(answer_ids)] = rows.gather(-1, answer_ids[:, None])[:, 0]
    return result


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prefix_equals_separate_passes(folder: Path, in_4bit: bool, checkpointing: bool) -> None:
    """Log-probs and adapter gradients to 1e-4 in float32, over padding, unequal lengths and batch > 1."""
    model = a_model(folder, in_4bit, checkpointing)
    batch = a_batch(model)
    weights = {view.key: torch.randn(batch.answers[view.answer].mask.shape) for view in VIEWS}
    table = scoring.score(model, batch, VIEWS)
    for view in VIEWS:
        torch.testing.assert_close(table[view.key].logps(), separate(model, batch, view), atol=1e-4, rtol=1e-4)
    shared = gradients(model, sum((table[v.key].logps() * weights[v.key]).sum() for v in VIEWS if v.grad))
    oracle = gradients(model, sum((separate(model, batch, v) * weights[v.key]).sum() for v in VIEWS if v.grad))
    assert len(shared) == 28
    assert max(value.abs().max() for value in oracle.values()) > 0.1
    for key, value in oracle.items():
        torch.testing.assert_close(shared[key], value, atol=1e-4, rtol=1e-4)


def gradients(model: models.Model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.peft.zero_grad()
    loss.backward()
    return {key: value.grad.clone() for key, value in model.adapter().items()}


def test_views_without_grad_keep_no_graph(folder: Path) -> None:
    model = a_model(folder)
    table = scoring.score(model, a_batch(model), VIEWS)
    assert table["chosen", "clean"].logps().requires_grad
    assert not table["chosen", "noised"].logps().requires_grad
    assert not table["chosen", "clean"].argmax().requires_grad


@pytest.mark.parametrize("chunk", [1, 7, 416, 10_000])
def test_head_chunks_change_nothing(folder: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs, argmax and gradient against the whole float32 log-softmax; ids other than the answer's included."""
    monkeypatch.setattr(scoring, "VOCAB_CHUNK", chunk)
    model = a_model(folder)
    scores = scoring.score(model, a_batch(model), VIEWS)["rejected", "clean"]
    hidden = scores.hidden.detach().requires_grad_()
    scores = scoring.HiddenScores(hidden, scores.head, scores.ids, scores.mask)
    ids = torch.randint(416, scores.ids.shape)
    whole = scores.logits().log_softmax(-1).gather(-1, ids[..., None])[..., 0] * scores.mask
    torch.testing.assert_close(scores.logps(ids), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.argmax(), scores.logits().argmax(-1) * scores.mask)
    weight = torch.randn(whole.shape)
    (ours,) = torch.autograd.grad((scores.logps(ids) * weight).sum(), hidden)
    (oracle,) = torch.autograd.grad((whole * weight).sum(), hidden)
    torch.testing.assert_close(ours, oracle, atol=1e-5, rtol=1e-4)


def test_tree_mask_by_hand() -> None:
    """Prefix p q (q padded), answers a b | c: every row sees real prefix, its own branch so far, and itself.

    p -> p; q -> p q(itself); a -> p a; b -> p a b; c -> p c, never a or b.
    """
    valid = torch.tensor([[True, False, True, True, True]])
    branches = torch.tensor([0, 0, 1, 1, 2])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 0, 0, 0, 1]]
    assert scoring.tree_mask(valid, branches)[0, 0].int().tolist() == expected


def test_tower_runs_once_per_distinct_picture(folder: Path) -> None:
    model = a_model(folder)
    calls = []
    tower = model.family.vision_modules(model.base)[0]
    tower.register_forward_hook(lambda *_: calls.append(1))
    batch = a_batch(model)
    with torch.no_grad(), model.as_reference():
        scoring.score(model, batch, VIEWS)
    scoring.score(model, batch, VIEWS)
    assert len(calls) == 2  # clean and noised, for policy and reference together
