"""The prediction against numbers that were worked out elsewhere: by hand, and on a real step by torch itself.

By hand, LLaVA-1.5-7B at r 128, in GiB of 2**30 bytes. One of 32 layers has 4 * 4096**2 + 3 * 4096 * 11008 =
202,375,168 linear weights, all together 6,476,005,376: at 0.51586914 bytes 3.11 (NF4, double quantisation). Embedding
and head, 2 * 32064 * 4096 weights of 2 bytes: 0.49. Tower 303.5 M and projector 21.0 M weights of 2 bytes: 0.565 +
0.039. Adapters have 128 * 32 * (4 * 8192 + 3 * 15104) = 319,815,680 weights of 16 bytes (value, gradient, two
moments): 4.77.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
import torch
import torch_counts

from minipovid.common.errors import MinipovidError
from minipovid.models import load
from minipovid.models.families.llava import KNOWN
from minipovid.models.shapes import Shapes, shapes
from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.tokens import Tokens
from minipovid.recipe import read as recipe
from minipovid.recipe import schema, strict
from minipovid.recipe.schema import LoraSection, ModelSection, Recipe
from minipovid.train import losses, plan
from minipovid.train.batch import Batch, Pictures
from minipovid.train.plan import costs
from minipovid.train.plan.cards import CARDS
from minipovid.train.plan.costs import GIB, Setting, Tree
from minipovid.train.scoring import score

SEVEN = "llava-hf/llava-1.5-7b-hf"
DPO = [Tree("clean", True, 636, (100, 100))]  # 836 tokens, in 840 columns


@pytest.fixture(scope="module")
def seven() -> Shapes:
    return shapes(SEVEN)


def made(**sections: Any) -> Recipe:
    tree: dict[str, Any] = {
        "name": "r",
        "model": {"path": SEVEN},
        "data": {"path": "absent.json"},
        "lora": {"r": 128},
        "stages": [{"loss": {"name": "dpo"}}],
    }
    return strict.validated(Recipe, tree | sections, "test")


def setting(**changes: Any) -> Setting:
    """A 7B QLoRA on a GPU, one pair a step, without checkpointing."""
    usual: dict[str, Any] = {
        "rank": 128,
        "in_4bit": True,
        "width": 2,
        "on_gpu": True,
        "checkpointing": False,
        "pairs": 1,
        "passes": 1,
        "optim": "adamw_torch",
        "frozen_adapter": False,
    }
    return Setting(**usual | changes)


# --- Shapes ---


def test_the_weights_are_those_of_the_real_model(seven: Shapes) -> None:
    assert seven.linear == 32 * (4 * 4096**2 + 3 * 4096 * 11008) == 6_476_005_376
    assert seven.embeddings == 2 * 32064 * 4096 + 65 * 4096  # and two norms per layer, one at the end
    assert 128 * seven.adapter_per_rank == 319_815_680 and 16 * seven.adapter_per_rank == 39_976_960
    assert seven.vision == 303_507_456 + 20_979_712
    assert (seven.largest, seven.image_tokens) == (4096 * 11008, 576)
    assert (seven.attention, seven.first) == (4096, 3 * 4096**2)
    assert seven.vision_flop == pytest.approx(0.406e12, rel=0.02)  # facts/peers.md, section 3


def test_a_local_folder_counts_as_it_stands(tmp_path: Path) -> None:
    """The same shapes from a config.json on disk; published ones leave defaults out, as the table here does."""
    (tmp_path / "config.json").write_text(json.dumps(KNOWN[SEVEN]), encoding="utf-8")
    assert shapes(str(tmp_path)) == shapes(SEVEN)
    thirteen = shapes("llava-hf/llava-1.5-13b-hf")
    assert thirteen.linear == 40 * (4 * 5120**2 + 3 * 5120 * 13824)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        (
            "org/unheard-of",
            "The shapes of org/unheard-of are not known on this machine; fetch its config alone with "
            "`hf download org/unheard-of config.json`, or name a folder that holds it.",
        ),
        ("no//id", "'no//id' is neither a folder nor a valid Hub id."),
    ],
)
def test_an_unknown_model_is_asked_for(path: str, sentence: str) -> None:
    with pytest.raises(MinipovidError) as caught:
        shapes(path)
    assert str(caught.value) == sentence


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(MinipovidError, match="There is no 'bert' among the families"):
        shapes(str(tmp_path))


# --- Memory, by hand ---


def test_the_parts_are_as_worked_by_hand(seven: Shapes) -> None:
    parts = {part: size / GIB for part, size in costs.memory(seven, setting(passes=2), DPO).parts.items()}
    assert parts["language model"] == pytest.approx(3.11, abs=0.005)
    assert parts["embeddings and output head"] == pytest.approx(0.49, abs=0.005)
    assert parts["vision tower and projector"] == pytest.approx(0.565 + 0.039, abs=0.005)
    assert parts["adapters"] + parts["optimiser"] == pytest.approx(4.77, abs=0.01)
    unquantised = costs.memory(seven, setting(in_4bit=False), DPO).parts
    assert unquantised["language model"] / GIB == pytest.approx(12.06, abs=0.01)


def test_a_layer_keeps_what_the_docstring_lists(seven: Shapes) -> None:
    """T = 840, by hand: 840 * (8 + 4 * 32) = 114,240 in float32, and in 16 bits
    840 * 2 * (8 * 4096 + 4 * 11008 + 7 * 128) = 130,529,280. The last layer: 840 * (2 * (6 * 4096 + 3 * 128) + 8)
    + 840 * (2 * 4096 + 4 * 32) to the attention's end, then 199 * 2 * (2 * 4096 + 4 * 11008 + 4 * 128). 31 and 1:
    3.84 GiB, and 0.01 once. On a CPU a norm keeps its input in float32."""
    one, last = 114_240 + 130_529_280, 41_939_520 + 6_988_800 + 20_988_928
    assert costs.layer(seven, setting(), DPO[0]) == one
    assert costs.last_layer(seven, setting(), DPO[0]) == last
    assert (31 * one + last) / GIB == pytest.approx(3.84, abs=0.005)
    assert costs.kept(seven, setting(), DPO) / GIB == pytest.approx(3.85, abs=0.01)
    assert [costs.norm_width(setting(on_gpu=on_gpu)) for on_gpu in (True, False)] == [2, 4]
    boundary = 840 * 4096 * 2
    saved = costs.kept(seven, setting(), DPO) - costs.kept(seven, setting(checkpointing=True), DPO)
    assert saved == 31 * (one - boundary)


def test_the_peak_is_the_hungriest_moment(seven: Shapes) -> None:
    """Without checkpointing the gradients (1.19 GiB) are not there yet when the activations are most; with it, and at
    this rank, they outweigh what is kept (0.34 of inputs, the last layer's 0.13)."""
    plain, lean = (costs.memory(seven, setting(checkpointing=way), DPO) for way in (False, True))
    assert plain.moment == "the backward pass begins" and lean.moment == "the backward pass ends"
    assert plain.parts["optimiser"] == 8 * 319_815_680
    assert lean.parts["optimiser"] == 12 * 319_815_680
    assert plain.total - lean.total > 2 * GIB


@pytest.mark.parametrize(
    ("optim", "bytes_per_weight", "paged"),
    [("adamw_torch", 12, 0), ("adamw_8bit", 6.03, 0), ("paged_adamw_32bit", 4, 8), ("paged_adamw_8bit", 4, 2.03)],
)
def test_optimisers(seven: Shapes, optim: str, bytes_per_weight: float, paged: float) -> None:
    """Gradients take 4 bytes, moments 8 or 2 and a little; pages may leave the card."""
    chosen = setting(optim=optim, passes=2)
    assert costs.memory(seven, chosen, DPO).parts["optimiser"] / 319_815_680 == pytest.approx(
        bytes_per_weight, rel=0.01
    )
    assert costs.paged(seven, chosen) / 319_815_680 == pytest.approx(paged, rel=0.01)


def test_small_moments_are_not_paged(seven: Shapes) -> None:
    """bitsandbytes pages tensors of 100,000 weights or more: at r 16 those on 11,008, of which each of 32 layers has
    three (B of gate and up, A of down: 3 * 11008 * 16 weights)."""
    chosen = setting(optim="paged_adamw_32bit", rank=16)
    assert costs.paged(seven, chosen) == 8 * 32 * 3 * 11008 * 16
    assert costs.paged(seven, setting(optim="paged_adamw_32bit", rank=8)) == 0


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((8, 9), False)])
def test_a_card_without_bfloat16_is_refused(
    capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    sentence = r"The Tesla T4 \(compute capability 7.5\) has no bfloat16.*set model.dtype: float32.*GGUF files answer"
    with pytest.raises(MinipovidError, match=sentence) if refused else nullcontext():
        plan.predict(made())
    plan.predict(made(), 24)  # another card
    plan.predict(made(model={"path": SEVEN, "dtype": "float32"}))


def test_a_second_stage_keeps_a_frozen_adapter(seven: Shapes) -> None:
    """In 16 bits, where the policy's has 32."""
    one = plan.forecast(seven, made()).memory
    two = plan.forecast(seven, made(stages=[{"loss": {"name": "dpo"}}, {"loss": {"name": "dpo"}}])).memory
    assert two["adapters"] == 1.5 * one["adapters"]
    assert {part for part in one if one[part] != two[part]} == {"adapters"}


def test_trees_hold_a_picture_once_and_every_answer() -> None:
    made_of = {}
    for name in ("dpo", "povid", "mdpo"):
        made_of[name] = costs.trees(losses.build({"name": name}).views, 636, 100)
    assert made_of["dpo"] == DPO
    assert made_of["povid"] == [*DPO, Tree("noised", False, 636, (100,))]
    assert made_of["mdpo"] == [*DPO, Tree("cropped", True, 636, (100,))]
    asked = costs.reference(losses.build({"name": "povid"}).views)
    assert costs.trees(asked, 636, 100) == [DPO[0]._replace(grad=False)]


# --- Memory and FLOP, measured ---


class Measured:
    """A tiny LLaVA that takes one pair, and the same in the arithmetic's words."""

    def __init__(self, folder: Path, loss: dict[str, Any], checkpointing: bool, **section: Any) -> None:
        settings: dict[str, Any] = {"load_in_4bit": False, "dtype": "float32"} | section
        chosen = ModelSection(path=str(folder), **settings)
        self.model = load.load(chosen, LoraSection(r=8), checkpointing=checkpointing)
        self.loss, self.shapes = losses.build(loss), shapes(str(folder))
        width = 2 if settings["dtype"] == "bfloat16" else 4
        self.setting = setting(
            rank=8, in_4bit=settings["load_in_4bit"], width=width, on_gpu=False, checkpointing=checkpointing
        )
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 300, (3, 24), generator=draw).tolist()
        prompt = [*ids[0][:4], *[self.model.image_token_id] * self.model.image_tokens, *ids[0][4:]]
        self.batch = Batch(
            Tokens.padded([prompt]),
            {"chosen": Tokens.padded([ids[1]]), "rejected": Tokens.padded([ids[2]])},
            {
                kind: Pictures(torch.randn(1, 3, 28, 28, generator=draw), torch.tensor([0]))
                for kind in ("clean", "noised", "cropped")
            },
            {},
        )
        self.policy = costs.trees(self.loss.views, len(prompt), 24)
        self.reference = costs.trees(costs.reference(self.loss.views), len(prompt), 24)

    def step(self) -> None:
        """Reference, policy, loss and backward pass, as the loop runs them."""
        with torch.no_grad(), self.model.as_reference():
            table = score(self.model, self.batch, costs.reference(self.loss.views))
        self.loss(score(self.model, self.batch, self.loss.views), table).loss.sum().backward()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("plan") / "model", layers=3)


LOSSES = [{"name": "dpo"}, *({"name": "povid", "variant": v} for v in ("proper", "paper", "code")), {"name": "mdpo"}]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: "-".join(loss.values()))
def test_flop_equals_an_independent_count(
    tiny: Path, loss: dict[str, Any], checkpointing: bool, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact to the last operation: torch stops recomputing a layer just before its last product."""
    monkeypatch.setitem(attention.SPLIT_FROM, "cpu", 1 if split else 10_000)
    step = Measured(tiny, loss, checkpointing)
    predicted = sum(costs.flop(step.shapes, step.setting, step.policy).values())
    predicted += costs.reference_flop(step.shapes, step.setting, step.reference, adapted=False)
    assert predicted == pytest.approx(torch_counts.flop(step.step), rel=1e-4)


def saved_bytes(step: Measured) -> float:
    """What autograd saves of the policy's pass."""

    def scored() -> None:
        table = score(step.model, step.batch, step.loss.views)
        for view in step.loss.views:
            table[view.key].logps()

    return torch_counts.saved_bytes(scored, step.model.peft.parameters())


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["dpo", "mdpo"])
def test_kept_tensors_are_those_that_autograd_saves(
    tiny: Path, name: str, checkpointing: bool, split: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.SPLIT_FROM, "cpu", 1 if split else 10_000)
    step = Measured(tiny, {"name": name}, checkpointing)
    assert costs.kept(step.shapes, step.setting, step.policy) == pytest.approx(saved_bytes(step), rel=0.05)


@pytest.mark.parametrize("in_4bit", [False, True])
def test_kept_tensors_under_autocast(tiny: Path, in_4bit: bool) -> None:
    """In bfloat16. The adapters' 16-bit copies are saved too, 2 bytes each; they belong to the workspace."""
    step = Measured(tiny, {"name": "dpo"}, False, dtype="bfloat16", load_in_4bit=in_4bit)
    copies = 2 * step.shapes.adapter_per_rank * step.setting.rank
    assert costs.kept(step.shapes, step.setting, step.policy) + copies == pytest.approx(saved_bytes(step), rel=0.05)


# --- Time ---


def test_flop_are_those_of_the_cost_model(seven: Shapes) -> None:
    """facts/peers.md, section 3.1, rows E and G: 36.0 TF with checkpointing, 24.0 without; a reference pass 11.0; row
    H: a noised pass about 10. Ours counts columns in eights, the head's second product and attention's dense mask, and
    does not compute 31 products of 4096 x 11008 again: 2.3 TF."""
    plain, lean = (sum(costs.flop(seven, setting(checkpointing=way), DPO).values()) for way in (False, True))
    assert plain == pytest.approx(24.0e12, rel=0.05)
    assert lean == pytest.approx(36.0e12 - 2.3e12, rel=0.05)
    quiet = [DPO[0]._replace(grad=False)]
    assert costs.reference_flop(seven, setting(), quiet, adapted=False) == pytest.approx(11.0e12, rel=0.05)
    noised = [*DPO, Tree("noised", False, 636, (100,))]
    assert sum(costs.flop(seven, setting(), noised).values()) - plain == pytest.approx(10.6e12, rel=0.05)


def test_dequantising_moves_17_gb_each_way(seven: Shapes) -> None:
    """facts/peers.md: about 17 GB a pass, 20 to 35 ms on a 3090 or 4090. Two ways without checkpointing; with it 31
    of 32 layers once more, but for the 22 % of each that down_proj is."""
    assert costs.dequantised(seven, setting(), DPO) == pytest.approx(2 * 17e9, rel=0.05)
    assert costs.dequantised(seven, setting(checkpointing=True), DPO) == pytest.approx(
        (2 + 0.78 * 31 / 32) * 17e9, rel=0.05
    )
    half = costs.dequantised(seven, setting(checkpointing=16), DPO)
    assert half == pytest.approx(2.39 * 17e9, rel=0.05)
    assert costs.dequantised(seven, setting(in_4bit=False), DPO) == 0


def test_time_is_flop_and_moved_bytes(seven: Shapes) -> None:
    """RTX 3090, one epoch: 24.0 TF for the policy and 11.0 for the reference at 50 TFLOPS, three ways of 16.3 GB and
    the optimiser's 9.0 GB at 936 GB/s: 0.70 + 0.06 s. In three epochs the reference counts for a third of them."""
    card = next(card for card in CARDS if card.name == "RTX 3090")
    train = {"micro_batch": 1, "gradient_checkpointing": False}
    once = plan.seconds_per_step(seven, made(train=train), card)
    assert once == pytest.approx(0.70 + 0.06, rel=0.05)
    three = plan.seconds_per_step(seven, made(train=train, stages=[{"loss": {"name": "dpo"}, "epochs": 3}]), card)
    assert once - three == pytest.approx(2 / 3 * (0.22 + 0.017), rel=0.05)
    uncached = made(train=train, stages=[{"loss": {"name": "dpo"}, "epochs": 3}], reference={"cache_gib": 0})
    assert plan.seconds_per_step(seven, uncached, card) == pytest.approx(once)


def test_what_is_drawn_anew_is_scored_in_every_epoch() -> None:
    views = list(losses.build({"name": "mdpo"}).views)
    assert [(times, len(asked)) for times, asked in plan._reference(made(), views, 3)] == [(1, 2), (3, 1)]
    noisy = list(losses.build({"name": "povid", "variant": "code"}).views)
    assert [times for times, _ in plan._reference(made(), noisy, 3)] == [1]
    assert [times for times, _ in plan._reference(made(noise={"refresh": "epoch"}), noisy, 3)] == [1, 3]


def test_visits_count_epochs_stages_and_limits(tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": "a", "prompt": "Q?", "chosen": "A", "rejected": "B"} for n in range(10)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stages = [{"loss": {"name": "dpo"}, "epochs": 3}, {"loss": {"name": "povid"}}]
    data = {"path": str(path)}
    assert plan._visits(made(data=data, stages=stages)) == 40
    assert plan._visits(made(data=data | {"limit": 4}, stages=stages)) == 16
    assert plan._visits(made(data=data, stages=stages, train={"max_steps": 6, "per_device_train_batch_size": 2})) == 22
    assert plan._visits(made(stages=stages)) is None
    assert plan._visits(made(stages=stages, train={"max_steps": 5, "gradient_accumulation_steps": 4})) == 40


def test_disk(seven: Shapes) -> None:
    """7.063 G weights of 2 bytes; two checkpoints of 12 bytes per adapter weight; q8_0 has 8.5 bits per weight."""
    disk = plan.forecast(seven, made(export={"quants": ["q8_0"]})).disk
    assert disk["base model, 16-bit"] == pytest.approx(13.16, abs=0.01)
    assert disk["checkpoints"] == pytest.approx(7.15, abs=0.01)
    assert disk["GGUF files"] == pytest.approx(6.739e9 * 8.5 / 8 / GIB + 0.6, rel=0.03)
    assert "noised pictures, at most" not in disk
    for name, epochs, hidden_rows in (("povid", 1, None), ("povid", 2, 2), ("dpo", 2, None)):
        wanted = made(stages=[{"loss": {"name": name}, "epochs": epochs}], reference={"cache_gib": 2})
        assert plan.forecast(seven, wanted).disk.get("reference scores, at most") == hidden_rows
    povid = made(stages=[{"loss": {"name": "povid"}}], noise={"cache_gib": 3})
    assert plan.forecast(seven, povid).disk["noised pictures, at most"] == 3


# --- auto ---


def settled(seven: Shapes, gib: float, **train: Any) -> tuple[Any, Any]:
    found = plan.settled_for(seven, made(lora={"r": 16}, train=train), gib).train
    return found.micro_batch, found.gradient_checkpointing


def test_auto_takes_what_fits(seven: Shapes) -> None:
    """At r 16 and 1,024 tokens the weights and adapters take 4.7 GiB, CUDA 1, a pair 7.2 without checkpointing (1,416
    columns) and 0.5 with it."""
    assert settled(seven, 24, per_device_train_batch_size=1) == (1, False)
    assert settled(seven, 24, gradient_accumulation_steps=4) == (2, False)
    assert settled(seven, 8, per_device_train_batch_size=2) == (1, 27)  # of 32: 5 layers' activations still fit
    assert settled(seven, 3, per_device_train_batch_size=16) == (1, True)
    assert settled(seven, 139, per_device_train_batch_size=16) == (16, False)


def test_auto_shares_pairs_out_evenly(seven: Shapes) -> None:
    """32 pairs where 20 or so fit: two times 16, as quick and smaller."""
    size, way = settled(seven, 139, per_device_train_batch_size=32)
    assert (size, way) == (16, False)


def test_what_is_written_is_kept(seven: Shapes) -> None:
    assert settled(seven, 8, per_device_train_batch_size=4, micro_batch=3, gradient_checkpointing=False) == (3, False)
    assert settled(seven, 7, per_device_train_batch_size=4, micro_batch=4) == (4, True)
    assert settled(seven, 24, per_device_train_batch_size=16, gradient_checkpointing=True)[0] == 16
    assert settled(seven, 8, per_device_train_batch_size=4, gradient_checkpointing=False) == (1, False)


def test_a_reserve_is_kept(seven: Shapes) -> None:
    """A prediction that fills the memory to the brim is not taken."""
    wanted = made(train={"micro_batch": 1})
    plain = plan._gib(seven, plan.changed(wanted, "train.gradient_checkpointing", False))
    assert plan.settled_for(seven, wanted, plain * 1.05).train.gradient_checkpointing == 3
    assert plan.settled_for(seven, wanted, plain * 1.10).train.gradient_checkpointing is False


def test_settle_answers_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/conftest.py may run where there is a GPU or none: both are acted."""
    monkeypatch.setattr(plan, "_cpus", lambda: 6)
    for cuda, gib, workers in ((True, 24, 3), (False, 64, 0)):
        monkeypatch.setattr(plan, "_cuda", lambda cuda=cuda: cuda)
        monkeypatch.setattr(plan, "free_gib", lambda gib=gib: gib)
        train = plan.settle(made(lora={"r": 16})).train
        assert (train.micro_batch, train.gradient_checkpointing, train.dataloader_num_workers) == (1, False, workers)
    assert plan.settle(made(), memory_gib=8).train.gradient_checkpointing is True
    written = made(train={"micro_batch": 1, "gradient_checkpointing": True, "dataloader_num_workers": 1})
    assert plan.settle(plan.changed(written, "model.path", "org/unheard-of")).train == written.train


def test_memory_that_is_free_is_a_number() -> None:
    assert 0 < plan.free_gib() <= plan.total_gib()


# --- What does not fit ---


def test_what_fits_is_said() -> None:
    wanted = made()
    fits = plan.verdict(plan.predict(wanted), wanted, 24)
    assert (fits.fits, fits.changes) == (True, {})
    peak = _peak(wanted, {"train.gradient_checkpointing": False, "train.micro_batch": 1})
    assert fits.sentence == (
        f"It fits: {peak:.1f} of 24 GiB, without gradient checkpointing, 1 pair at once. "
        f"Of the known cards, RTX 3060, RTX 3090, RTX 4090, RTX 5090 and H200 can do it."
    )


def test_what_fits_to_the_brim_is_called_tight(seven: Shapes) -> None:
    """Nothing is measured yet: 11.6 of 12 GiB is no promise."""
    wanted = made(lora={"r": 144}, stages=[{"loss": {"name": "dpo"}}, {"loss": {"name": "dpo"}}])
    assert plan.verdict(plan.predict(wanted), wanted, 12).sentence.startswith("It fits, but tightly: 11.")
    assert [each.word for each in plan.forecast(seven, wanted).cards[:3]] == ["tight", "yes", "no"]


def test_what_does_not_fit_is_told_what_to_change() -> None:
    """The changes are the least harmful ones first, they do what they promise, and none is idle."""
    greedy = made(train={"gradient_checkpointing": False, "micro_batch": 2, "per_device_train_batch_size": 2})
    predicted = plan.predict(greedy)
    told = plan.verdict(predicted, greedy, 12)
    assert not told.fits
    assert list(told.changes) == ["train.micro_batch", "train.gradient_checkpointing"]
    left = _peak(greedy, told.changes)
    assert left <= 12
    assert told.sentence.startswith(
        f"It does not fit: {predicted.peak_gib:.1f} of 12 GiB; set train.micro_batch=1 and "
        f"train.gradient_checkpointing=true, then it takes {left:.1f} GiB. "
        f"Of the known cards, RTX 3090, RTX 4090, RTX 5090 and H200"
    )


def test_what_never_fits_is_not_promised() -> None:
    wanted = made(lora={"r": 32})
    told = plan.verdict(plan.predict(wanted), wanted, 3)
    assert told.changes["lora.r"] == 8
    left = _peak(wanted, {"train.gradient_checkpointing": True, "train.micro_batch": 1} | told.changes)
    assert f"and a smaller model: {left:.1f} GiB is left." in told.sentence


def _peak(wanted: Recipe, changes: dict[str, Any]) -> float:
    for key, value in changes.items():
        wanted = plan.changed(wanted, key, value)
    return plan.predict(wanted).peak_gib


def test_advice_lowers_what_was_predicted_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_cuda", lambda: True)
    wanted = made(lora={"r": 16}, train={"gradient_checkpointing": False, "micro_batch": 1})
    before, after = plan.predict(wanted).peak_gib, _peak(wanted, {"train.gradient_checkpointing": True})
    assert plan.advice(wanted, 24) == (
        f"The memory ran out; {before:.1f} GiB were predicted, 24.0 GiB are there; "
        f"set train.gradient_checkpointing=true (predicted: {after:.1f} GiB), or close other programs that use it."
    )
    last = made(lora={"r": 8}, data={"path": "x", "max_length": 700}, train={"optim": "paged_adamw_8bit"})
    assert plan.advice(last, 2).endswith("close other programs that use it, or take a smaller model.")


# --- What is printed ---


def test_a_recipe_of_ours_keeps_the_promise_of_its_head() -> None:
    """The GiB in a recipe's opening comment are the ones that are predicted, and they fit the card it names."""
    for name, card in (("llava7b_qlora", 24), ("llava7b_8gb", 8)):
        path = recipe.shipped()[name]
        predicted = plan.predict(recipe.read(path))
        head = path.read_text("utf-8")
        assert f"predicted, not measured: {predicted.peak_gib:.1f} GiB of GPU memory" in head
        assert f" {sum(predicted.disk.values()):.0f} GiB of disk" in head
        assert predicted.peak_gib < card - 0.5


def test_the_table_adds_up(seven: Shapes) -> None:
    forecast = plan.forecast(seven, made())
    lines = forecast.table().split("\n")
    assert lines[0] == "GPU memory at its peak, when the backward pass ends, GiB (predicted)"
    assert lines[9] == f"  together                      {forecast.peak_gib:>7.2f}"
    assert forecast.peak_gib == pytest.approx(sum(float(line.split()[-1]) for line in lines[1:9]), abs=0.05)
    assert forecast.as_dict()["peak_gib"] == round(forecast.peak_gib, 2)
    assert [line.split("  ")[1] for line in lines[-len(CARDS) :]] == [card.name for card in CARDS]


def test_every_card_is_settled_for(seven: Shapes) -> None:
    """8 GiB and r 16 need checkpointing of most layers, 24 GiB do not; the hours told are the time of all visits."""
    forecast = plan.forecast(seven, made(lora={"r": 16}, train={"max_steps": 7200}))
    cards = forecast.as_dict()["cards"]
    assert (cards["RTX 4060"]["fits"], cards["RTX 4060"]["gradient_checkpointing"]) == (True, 27)
    assert (cards["RTX 4090"]["fits"], cards["RTX 4090"]["gradient_checkpointing"]) == (True, False)
    assert cards["RTX 3090"]["hours"] == pytest.approx(2 * cards["RTX 3090"]["seconds_per_step"], rel=0.02)
    assert plan.forecast(seven, made()).as_dict()["cards"]["RTX 3090"]["hours"] is None
    assert not plan.forecast(seven, made(lora={"r": 512})).cards[2].fits


def test_a_small_model_without_a_gpu_is_planned_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_cuda", lambda: False)
    wanted = made(model={"path": schema.BUILTIN}, data={"path": schema.BUILTIN}, lora={"r": 16})
    here = plan.predict(wanted)
    assert here.device == "CPU" and here.memory["workspace"] < 0.2
    assert plan.predict(wanted, 8).device == "GPU" and plan.predict(made()).device == "GPU"
