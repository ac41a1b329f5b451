"""Shared prefix = separate passes: transformers' own forward over each whole sequence is the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llava
import torch
from scoring_cases import VIEWS, a_batch, a_model, gradients
from torch import nn

from minipovid.models import model as models
from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.train import scoring
from minipovid.train.batch import Batch
from minipovid.train.losses import View


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("model"))


def separate(model: models.Model, batch: Batch, view: View) -> torch.Tensor:
    """Log-probabilities [B, A] from one whole, unpadded sequence at a time through the model's own forward."""
    answer = batch.answers[view.answer]
    result = torch.zeros(answer.mask.shape)
    for pair in range(len(batch)):
        prompt_ids = batch.prompt.ids[pair][batch.prompt.mask[pair]]
        answer_ids = answer.ids[pair][answer.mask[pair]]
        ids = torch.cat([prompt_ids, answer_ids])[None]
        pixels, which = batch.images[view.image]
        logits = model.base(input_ids=ids, pixel_values=pixels[which[pair]][None]).logits[0]
        rows = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
        result[pair, : len(answer_ids)] = rows.gather(-1, answer_ids[:, None])[:, 0]
    return result


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("split_from", [0, 10_000])
def test_shared_prefix_equals_separate_passes(
    folder: Path, in_4bit: bool, checkpointing: bool, split_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs and adapter gradients to 1e-4 in float32, over padding, unequal lengths and batch > 1."""
    monkeypatch.setitem(attention.SPLIT_FROM, "cpu", split_from)
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
    monkeypatch.setattr(scoring, "ROW_CHUNK", 5)
    model = a_model(folder)
    answer = a_batch(model).answers["rejected"]
    head = nn.Linear(64, 416)
    hidden = (8 * torch.randn(20, 64)).requires_grad_()  # of them 12 predict this answer's tokens
    which = torch.tensor([0, 3, 4, 5, 3, 7, 8, 19, 11, 12, 13, 2])
    with torch.no_grad():
        asked_first = scoring.HiddenScores(scoring.Rows(hidden, head), which, answer).argmax()
    scores = scoring.HiddenScores(scoring.Rows(hidden, head), which, answer)
    ids = torch.randint(416, scores.ids.shape)
    logits = torch.zeros(3, 8, 416).masked_scatter(scores.mask[..., None], head(hidden[which]))
    whole = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0] * scores.mask
    torch.testing.assert_close(scores.logits(), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores.logps(ids), whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(scores.argmax(), logits.argmax(-1))
    assert torch.equal(asked_first, scores.argmax())
    weight = torch.randn(whole.shape)
    (ours,) = torch.autograd.grad((scores.logps(ids) * weight).sum(), hidden)
    (oracle,) = torch.autograd.grad((whole * weight).sum(), hidden)
    torch.testing.assert_close(ours, oracle, atol=1e-5, rtol=1e-4)


def test_the_vocabulary_is_gone_through_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a view is asked, and even if a question without gradient came first."""
    calls = []
    whole = scoring._Vocabulary.apply
    monkeypatch.setattr(scoring._Vocabulary, "apply", lambda *given: calls.append(1) or whole(*given))
    model = a_model(folder)
    table = scoring.score(model, a_batch(model), VIEWS)
    scores = table["chosen", "clean"]
    with torch.no_grad():
        ids = scores.argmax()
    assert scores.logps(ids).requires_grad
    assert torch.equal(scores.logps(), scores.logps(scores.ids))
    table["rejected", "clean"].logps()
    assert len(calls) == 1


def test_a_nearly_certain_token_has_an_exact_gradient_in_16_bits() -> None:
    """At p = .99 the gradient, w_y - mean of w, is a hundredth of its halves: rounded apart, they would leave noise.

    Rounded once, a bfloat16 gradient is within 2**-8 of float64's.
    """
    draw = torch.Generator().manual_seed(0)
    head = nn.Linear(256, 300, bias=False).bfloat16()
    head.weight.data = torch.randn(300, 256, generator=draw).bfloat16()
    answer = Tokens.padded([[7, 8, 9]])
    hidden = (head.weight[answer.ids[0]].detach() * 0.045).requires_grad_()
    scores = scoring.HiddenScores(scoring.Rows(hidden, head), torch.arange(3), answer)
    (ours,) = torch.autograd.grad(scores.logps().sum(), hidden)
    exact = hidden.detach().double().requires_grad_()
    logps = (exact @ head.weight.double().T).log_softmax(-1).gather(-1, answer.ids[0][:, None])
    assert logps.exp().min() > 0.95 and logps.exp().max() < 0.9999
    (oracle,) = torch.autograd.grad(logps.sum(), exact)
    assert ours.dtype == torch.bfloat16
    assert ((ours - oracle).norm() / oracle.norm()).item() < 2**-8


def test_no_row_of_logits_outlives_its_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What autograd keeps of a view is [N, H], never [N, V]."""
    model = a_model(folder)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        hidden = torch.randn(12, 64, requires_grad=True)
        read = scoring.Rows(hidden, model.head)
        scoring.HiddenScores(read, torch.arange(12), a_batch(model).answers["rejected"]).logps().sum().backward()
    assert (12, 64) in kept
    assert not [shape for shape in kept if 416 in shape and 12 in shape]


def test_views_without_gradient_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they work, nothing is kept for the backward pass yet."""
    model, order = a_model(folder), []
    hidden = type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda *given: (order.append(torch.is_grad_enabled()), hidden(*given))[1]
    )
    table = scoring.score(model, a_batch(model), VIEWS)
    assert order == [False, True] and len(table) == len(VIEWS)


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
