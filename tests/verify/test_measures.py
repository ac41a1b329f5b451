"""The numbers of verify, by hand: divergence over kept tokens, margins, shares of the adapter, where tensors are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quantize
from safetensors.numpy import save_file

from minipovid.models.stored_tensors import Tensors
from minipovid.verify import answers, expected, measures, tensors, vision, weights
from minipovid.verify.causes import Cause, distinct, listed
from minipovid.verify.sheet import TrainedAnswer, TrainedPair
from minipovid.verify.tensors import TensorFit
from minipovid.verify.verdict import Measured, Verdict, against_training


def told(probabilities: list[list[float]], ids: list[int], top: int, base: list[float] | None = None) -> TrainedAnswer:
    """A trained model's word on an answer; the base gives each of its tokens the probabilities `base`."""
    logps = np.log(np.array(probabilities, np.float64))
    best = np.argsort(-logps, axis=-1, kind="stable")[:, :top]
    own = logps[np.arange(len(ids)), ids]
    return TrainedAnswer(
        ids=np.array(ids, np.int32),
        logps=own.astype(np.float32),
        base_logps=np.log(np.array(base or [0.5] * len(ids))).astype(np.float32),
        base_kl=np.zeros(len(ids), np.float32),
        base_same=np.ones(len(ids), bool),
        top_ids=best.astype(np.int32),
        top_logps=np.take_along_axis(logps, best, -1).astype(np.float32),
    )


def test_divergence_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2).

    Whole: 1/2 log 2 + 0 + 1/4 log 1/2 = log(2) / 4. With the best token kept alone, the others are one of 1/2 against
    3/4: 1/2 log 2 + 1/2 log 2/3 = log(4/3) / 2, which is less.
    """
    p, q = [[0.5, 0.25, 0.25]], np.log([[0.25, 0.25, 0.5]])
    assert measures.divergence(told(p, [0], 3), q) == pytest.approx([math.log(2) / 4], abs=1e-6)
    assert measures.divergence(told(p, [0], 1), q) == pytest.approx([math.log(4 / 3) / 2], abs=1e-6)


def test_divergence_of_kept_tokens_is_a_lower_bound_and_near() -> None:
    """Against the whole sum over 2,000 tokens, as a slow loop: between 90 % and all of it, and nothing of oneself."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 2000)) * 3
    p = measures.log_softmax(logits)
    q = measures.log_softmax(logits + rng.normal(size=logits.shape) * 0.3)
    whole = [sum(math.exp(a) * (a - b) for a, b in zip(*rows, strict=True)) for rows in zip(p, q, strict=True)]
    kept = measures.divergence(told(np.exp(p).tolist(), [0] * 5, 256), q)
    assert (kept <= np.array(whole) + 1e-6).all()
    assert (kept > 0.9 * np.array(whole)).all()
    assert measures.divergence(told(np.exp(p).tolist(), [0] * 5, 256), p) == pytest.approx([0] * 5, abs=1e-6)


def test_margins_by_hand() -> None:
    """Trained margins 2, -1, 2; a file that keeps half has 1, -0.5, 1. Slope (2 + 0.5 + 2) / 9 = 1/2, mean 1/2."""
    found = measures.margins([1, -0.5, 1], [2, -1, 2])
    assert (found.mean, found.kept) == pytest.approx((0.5, 0.5))
    assert found.doubt == pytest.approx(measures.JITTER / math.sqrt(3))  # it fits exactly: jitter alone


def test_margins_of_both_signs_that_cancel() -> None:
    """The trained mean is 0, a ratio of means would be nothing or anything; 0.9 of each is 0.9."""
    assert measures.margins([0.9, -0.9], [1, -1]).kept == pytest.approx(0.9)


def test_margins_too_small_to_tell_and_noisy_ones() -> None:
    assert measures.margins([0.05, 0.0], [0.01, -0.02]).kept is None
    noisy = measures.margins([3.0, -1.0, 1.0], [1.0, 1.0, 1.0])
    assert noisy.kept == pytest.approx(1)
    assert noisy.doubt > 1  # two standard errors: 2 * sqrt(8 / 2 / 3) = 2.3


@pytest.mark.parametrize(
    ("quant", "bits"),
    [("f16", 16), ("bf16", 16), ("f32", 32), ("q8_0", 8), ("q5_k_m", 5), ("iq2_xxs", 2), ("mxfp4", 4)],
)
def test_bits(quant: str, bits: int) -> None:
    assert measures.bits(quant) == bits


def test_tolerances_grow_as_bits_go() -> None:
    rows = [measures.tolerance(bits, True) for bits in (32, 16, 8, 6, 5, 4, 3, 2, 1)]
    assert rows[0] == rows[1]
    assert rows[-1] == rows[-2]
    for more, less in zip(rows[1:-1], rows[2:-1], strict=False):
        assert more.kl < less.kl
        assert more.agreement > less.agreement
        assert more.kept < less.kept
    assert measures.tolerance(8, False).kl > measures.tolerance(8, True).kl


def test_an_answer_with_other_tokens_is_left_out() -> None:
    """Its positions do not line up; its log-probability still counts in the margin, as a text's."""
    even = [[0.5, 0.5], [0.5, 0.5]]
    row = TrainedPair("x", np.array([1, -1, 2]), {"chosen": told(even, [0, 1], 2), "rejected": told(even, [0, 0], 2)})
    logits = {"chosen": np.log([[0.5, 0.5], [0.25, 0.75]]), "rejected": np.zeros((1, 2))}
    said = answers.compare(row, logits, {"chosen": [0, 1], "rejected": [1]}, True)
    assert len(said.kl) == len(said.same) == 2
    assert said.parity == pytest.approx(2 / 3)
    assert said.margin == pytest.approx(
        (math.log(0.5 * 0.75) - 2 * math.log(0.5)) - (math.log(0.5) - 2 * math.log(0.5))
    )


# --- the adapter's share ---


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kind", [Kind.F16, Kind.Q8_0, Kind.Q4_0])
def test_share_is_found_under_rounding(kind: Kind, share: float) -> None:
    """The adapter is a hundredth of the base, four-bit rounding nine: the fit still tells its share within percents."""
    rng = np.random.default_rng(1)
    base = rng.normal(size=(64, 1024)).astype(np.float32)
    adapter = (0.01 * rng.normal(size=(64, 8)) @ rng.normal(size=(8, 1024)) / 8**0.5).astype(np.float32)
    found = tensors.dequantize(quantize(base + np.float32(share) * adapter, kind), kind)
    fitted, doubt, left = tensors.fit(found, base, adapter)
    assert fitted is not None
    assert abs(fitted - share) < 4 * doubt + 0.02
    assert doubt < 0.05
    assert left < tensors.allowed(kind) * np.linalg.norm(base)


def look(name: str, share: float, doubt: float = 0.001) -> TensorFit:
    return TensorFit(name, Kind.Q4_K, share=share, doubt=doubt)


def test_shares_are_judged_as_finely_as_they_are_known() -> None:
    """Two tensors of 0.12 make a layer of 0.12 / sqrt(2) = 0.085, which is sure; a tensor of 5 never is."""
    shares = [look("blk.0.a", 1.0), look("blk.1.a", 0.9, 0.12), look("blk.1.b", 1.1, 0.12), look("blk.2.a", 7.0, 5.0)]
    judged = [([each.name for each in group], share) for group, share, _ in weights._groups(shares)]
    assert judged == [(["blk.0.a"], 1.0), (["blk.1.a", "blk.1.b"], pytest.approx(1.0))]


@pytest.mark.parametrize(
    ("names", "where"),
    [
        (["blk.0.q.weight", "blk.0.k.weight", "blk.1.q.weight", "blk.1.k.weight"], "every tensor"),
        (["blk.1.q.weight", "blk.1.k.weight"], "blk.1"),
        (["blk.0.q.weight", "blk.1.q.weight"], "q of every layer"),
        (["blk.0.q.weight"], "blk.0.q.weight"),
    ],
)
def test_places(names: list[str], where: str) -> None:
    assert weights.places(names, [f"blk.{layer}.{part}.weight" for layer in (0, 1) for part in "qk"]) == where


@pytest.mark.parametrize(("rows", "unit"), [(5, 1), (64, 1), (65, 1), (4096, 1), (4096, 128), (96, 16), (11008, 1)])
def test_windows_are_whole_and_spread(rows: int, unit: int) -> None:
    found = expected.windows(rows, unit)
    assert found[0][0] == 0
    assert found[-1][1] == rows
    assert all(start % unit == 0 and (stop % unit == 0 or stop == rows) and start < stop for start, stop in found)
    assert sum(stop - start for start, stop in found) <= max(2 * max(expected.ROWS, unit), rows if rows <= 64 else 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kept_runs_are_the_whole_weight_s_rows_in_half_a_byte_each(tmp_path: Path, dtype: str) -> None:
    """The offset of the scales is a mean over the whole weight: a run quantised by itself would have others."""
    from minipovid.export.nf4 import Nf4Tensor
    from minipovid.verify.expected import Nf4Runs

    values = np.random.default_rng(0).normal(size=(512, 128)).astype(np.float32)
    values[200:] *= 5
    save_file({"w": values}, tmp_path / "w.safetensors")
    tensor = Tensors(tmp_path / "w.safetensors")["w"]
    whole, runs = Nf4Tensor(tensor, dtype), Nf4Runs(tensor, dtype, [(0, 32), (480, 512)])
    for span in ((0, 32), (480, 512)):
        np.testing.assert_array_equal(runs.rows(*span), whole.rows(*span))
    assert runs.nf4._packed.numel() + 4 * runs.nf4._scales.numel() == 64 * 128 * (1 / 2 + 4 / 64)


# --- sentences ---


def test_listed_and_distinct() -> None:
    assert [listed([]), listed([1]), listed([1, 2]), listed(range(6))] == ["", "1", "1 and 2", "0, 1, 2, 3 and 2 more"]
    first = Cause.of("a.gguf", "truncated", "short")
    assert distinct([first, Cause.of("a.gguf", "truncated", "other words")]) == [first]


def measured(kl: float, bits: int = 4, **other: object) -> Measured:
    row = Measured("x-Q4_K_M.gguf", "nf4", bits=bits, kl=kl, agreement=1.0, positions=100)
    for name, value in other.items():
        setattr(row, name, value)
    return row


def test_the_likely_cause_of_what_is_not_explained() -> None:
    """Rounding where 16 bits are well, the other base where it is another, the adapter where it answers as the base."""
    well = measured(0.0, 16)
    faults = [
        Verdict.of([well, measured(9.0)], 10, []).faults,
        Verdict.of([well, measured(9.0, same_base=False)], 10, []).faults,
        Verdict.of([well, measured(9.0, is_base=True)], 10, []).faults,
        Verdict.of([measured(9.0, 16)], 10, []).faults,
        Verdict.of([well, measured(0.01)], 10, []).faults,
    ]
    assert [[cause.fault for cause in found] for found in faults] == [
        ["rounding"], ["other base"], ["adapter not applied"], ["unknown"], []
    ]  # fmt: skip


def test_what_rounding_costs_is_a_fault_only_beyond_tolerance() -> None:
    cost = Cause.of("x", "adapter rounded away", "half of it", is_cost=True)
    assert Verdict.of([measured(0.01, causes=[cost])], 10, []).ok
    assert Verdict.of([measured(9.0, causes=[cost])], 10, []).faults == [cost]


def test_on_few_pairs_only_what_no_average_can_excuse_is_a_fault() -> None:
    """Four bits beyond tolerance may be chance; sixteen bits, another tokenisation and a lost adapter are not."""
    well, apart = measured(0.0, 16), measured(9.0)
    assert [Verdict.of([well], pairs, []).ok for pairs in (1, 9, 10)] == [None, None, True]
    assert [Verdict.of([well, apart], pairs, []).ok for pairs in (9, 10)] == [None, False]
    few = Verdict.of([well, apart], 9, ["So."])
    assert [row["verdict"] for row in few.table()] == ["too few to judge"] * 2 and few.as_dict()["ok"] is None
    assert few.notes[0] == "So." and few.notes[1].startswith("9 pairs are too few to judge how near a file comes")
    for row in (measured(9.0, 16), measured(9.0, is_base=True), measured(0.0, parity=0.5)):
        assert Verdict.of([row], 1, []).ok is False


@pytest.mark.parametrize(
    ("margin", "pairs", "fault"),
    [(-0.5, 10, ["prefers the rejected answer"]), (-0.5, 9, []), (-0.01, 10, []), (0.5, 10, [])],
)
def test_a_model_that_came_to_like_the_rejected_answers(margin: float, pairs: int, fault: list[str]) -> None:
    trained = measured(0.0, 16)
    trained.margins = measures.margins([margin] * pairs, [margin] * pairs)
    trained.causes += against_training(trained, pairs)
    verdict = Verdict.of([trained], pairs, [])
    assert [cause.fault for cause in verdict.faults] == fault
    assert verdict.ok is (False if fault else True if pairs == 10 else None)


def test_other_tokens_are_beyond_tolerance() -> None:
    """Answers with other tokens are left out of KL and agreement: what is left may be perfect."""
    assert measured(0.0, 16, parity=1.0).excesses == []
    assert measured(0.0, 16, parity=2 / 3).excesses == ["66.7% of prompts and answers have the tokens of training"]
    nothing = measured(0.0, 16, parity=1 / 3)
    nothing.kl = nothing.agreement = None
    assert nothing.excesses[-1] == "no answer has the tokens of training"
    assert Verdict.of([nothing], 10, []).faults[0].fault == "unknown"


def test_few_positions_are_given_the_benefit_of_doubt() -> None:
    """95 % of 20 positions say nothing against 98 % of all; of 2,000 they do."""
    assert measured(0.0, 16, agreement=0.95, positions=20).excesses == []
    assert len(measured(0.0, 16, agreement=0.95, positions=2000).excesses) == 1


# --- pictures ---


def test_projection_keeps_distances() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 576, 4096)).astype(np.float32)
    near = a + 0.01 * b
    true, seen = (np.linalg.norm(x - y) / np.linalg.norm(x) for x, y in ((a, near), map(vision.projected, (a, near))))
    assert seen == pytest.approx(true, rel=0.1)
    assert vision.projected(a[:, :64]) is not None
    assert vision.projected(a).shape == (576, vision.WIDTH)


class Seeing:
    """A runtime that sees the same features of every picture."""

    def __init__(self, features: np.ndarray) -> None:
        self.features = features

    def embed(self, image: object) -> np.ndarray:
        return self.features


def test_the_nearest_known_sight_is_named_even_where_it_is_close() -> None:
    """A tower whose last layer does little: both are within the bound, and still only one is right."""
    right = np.ones((16, 8), np.float32)
    close, overflown = right * 1.03, np.full_like(right, np.inf)
    sights = {vision.TRUE: right, "layer 5": close, "layer 0": overflown, "crop": -right}
    features = {name: np.stack([each, each]) for name, each in sights.items()}
    assert vision.compare(Seeing(right), features, "m.gguf") is None
    wrong = vision.compare(Seeing(close), features, "m.gguf")
    assert wrong is not None
    assert wrong.sentence == "m.gguf: wrong feature layer: the features are those behind layer 5 of the tower."
    faults = [vision.compare(Seeing(each), features, "m.gguf") for each in (-right, 5 * right, right[:4])]
    assert [cause and cause.fault for cause in faults] == [
        "centre-crop instead of padding", "mmproj of another model", "mmproj of another model"
    ]  # fmt: skip


def test_a_type_that_gguf_cannot_read_is_not_judged() -> None:
    class Tensor:
        name, tensor_type, shape = "blk.0.a", Kind.Q1_0, np.array([128, 4])

    class Expected:
        def shape(self, name: str) -> tuple[int, int]:
            return 4, 128

    assert tensors.compare(Tensor(), Expected()) == TensorFit("blk.0.a", Kind.Q1_0)  # type: ignore[arg-type]
    assert [tensors.is_readable(kind) for kind in (Kind.Q1_0, Kind.Q4_K, Kind.F16)] == [False, True, True]


def test_what_rounding_leaves_of_a_small_adapter() -> None:
    """Changes a thousand times smaller than float16's steps: on a float16 base all of them vanish; a float32 base is
    itself rounded up or down, and the changes survive on average."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(64, 1024)).astype(np.float32)
    adapter = (1e-6 * rng.normal(size=base.shape)).astype(np.float32)
    assert tensors._due(Kind.F16, base.astype(np.float16).astype(np.float32), adapter) < 0.2
    assert tensors._due(Kind.F16, base, adapter) > weights.LOST
    assert tensors._due(Kind.F16, base.astype(np.float16).astype(np.float32), 1e5 * adapter) > 0.99
