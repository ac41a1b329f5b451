"""The streamed merge: against peft's own, gguf's own quantiser and writer, transformers' loader, and every spelling."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.common.threads import ahead
from minipovid.export import writer
from minipovid.export.folder import PairOptions, write_pair
from minipovid.export.gguf_pair import GgufPair
from minipovid.export.merge import Merged
from minipovid.export.nf4 import Nf4Tensor, quantise
from minipovid.export.safetensors import write_merged
from minipovid.models import adapter as lora
from minipovid.models.families import llava
from minipovid.models.stored_tensors import StoredTensor, Tensors, fingerprint
from minipovid.recipe import run_folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "toy-7b")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.adapter(base, tmp_path_factory.mktemp("run") / "adapter")


def stored(folder: Path) -> dict[str, StoredTensor]:
    return {llava.canonical(name): tensor for name, tensor in Tensors(folder).items()}


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """By canonical name."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=dtype)
    state = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    return {llava.canonical(name): value for name, value in state.items()}


# --- base and adapter as one ---


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"use_rslora": True, "rank_pattern": {"v_proj": 9}}, {"q_proj": 8 / 4**0.5, "v_proj": 8 / 9**0.5}),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 3, "q_proj": 5}}, {"0.q_proj": 5 / 4, "1.q_proj": 3 / 4}),
        ({"alpha_pattern": {"q_proj": 5, "layers.1.self_attn.q_proj": 3}}, {"0.q_proj": 5 / 4, "1.q_proj": 5 / 4}),
        (
            {"rank_pattern": {r".*\.(q|k)_proj": 6, "up_proj": 2}, "alpha_pattern": {r".*layers\.[1-9].*up_proj": 12}},
            {"q_proj": 8 / 6, "o_proj": 2.0, "0.up_proj": 4.0, "1.up_proj": 6.0},
        ),
        ({"alpha_pattern": {"proj": 99, "^model.language_model.layers.0.mlp.up_proj": 1}}, {"0.up_proj": 1 / 4}),
    ],
    ids=["rslora with ranks", "narrow first", "wide first", "regex", "no part of a word"],
)
def test_every_tensor_is_pefts_own_merge(
    base: Path, tmp_path: Path, settings: dict[str, Any], scales: dict[str, float]
) -> None:
    """Scales by hand, and each sum of W and scale B A within float32's rounding of its terms.

    The first pattern that matches wins, in the file's order: peft sorts them when it saves, so that is put back.
    """
    folder = tiny_llava.adapter(base, tmp_path, **settings)
    saved = json.loads((folder / run_folder.ADAPTER_SETTINGS).read_text())
    (folder / run_folder.ADAPTER_SETTINGS).write_text(json.dumps({**saved, **settings}))
    factors = lora.read(folder, llava.canonical)
    for name, factor in factors.items():
        layer, module = re.fullmatch(r".*layers\.(\d+)\.\w+\.(\w+)\.weight", name).groups()  # type: ignore[union-attr]
        expected = scales.get(f"{layer}.{module}", scales.get(module, factor.scale))
        assert factor.scale == pytest.approx(expected), name
    merged = Merged(stored(base), factors, None)
    config = GgufPair(base, None, "toy", "float32").config
    theirs = merged_by_peft(base, folder)
    for name, factor in factors.items():
        place = llava.place(name, config)
        assert place is not None
        rows = np.concatenate(list(merged.blocks(name, place._replace(heads=0))))
        size = np.abs(factor.b.rows()) @ np.abs(factor.a.rows()) * factor.scale + np.abs(merged.base[name].rows())
        assert (np.abs(rows - theirs[name].numpy()) <= 4 * np.finfo(np.float32).eps * size).all(), name
    assert merged.used == set(factors) == {name for name in theirs if "language_model" in name and "_proj" in name}


def test_a_factor_reads_a_once_per_tensor(base: Path, adapter: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("minipovid.export.merge.BLOCK", 64 * 4)  # sixteen blocks of four rows
    read: list[str] = []
    rows = StoredTensor.rows
    monkeypatch.setattr(StoredTensor, "rows", lambda self, *span: read.append(self.name) or rows(self, *span))
    merged = Merged(stored(base), lora.read(adapter, llava.canonical), None)
    name = "language_model.layers.0.self_attn.v_proj.weight"
    blocks = list(merged.blocks(name, llava.place(name, GgufPair(base, None, "toy", "float32").config)))  # type: ignore
    assert len(blocks) == 8
    assert sum("lora_A" in each for each in read) == 1
    assert sum("lora_B" in each for each in read) == 8


def test_ahead_keeps_order_is_one_step_ahead_and_hands_errors_on() -> None:
    """The second item is made before it is asked for, the third not before the second is."""
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in (1, 2, 3):
            made.append(number)
            if number == 2:
                second.set()
            yield number
        raise OSError(28, "No space left on device")

    stream = ahead(items())
    assert next(stream) == 1
    assert second.wait(10) and 3 not in made
    assert [next(stream), next(stream)] == [2, 3]
    with pytest.raises(OSError, match="No space left"):
        next(stream)
    assert not [each for each in threading.enumerate() if each.name.startswith("ThreadPool")]


# --- numbers and files, bit for bit ---


def test_a_q8_0_block_by_hand() -> None:
    """127, 0.5, -0.5, 1.5, 0.49999997 and zeros: the step is 1, halves go away from zero, the last one does not.

    float16's 1.0 is 0x3C00; the other block is all zeros, its step too.
    """
    row = np.zeros(64, np.float32)
    row[:5] = [127, 0.5, -0.5, 1.5, 0.49999997]
    data = writer.encode(row[None], Kind.Q8_0, "x").reshape(2, 34)
    assert bytes(data[0][:8].view(np.uint8)) == bytes([0x00, 0x3C, 127, 1, 256 - 1, 2, 0, 0])
    assert not data[1].any()


@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-7, 0.02, 1, 300])
@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.F16, Kind.BF16])
@pytest.mark.filterwarnings("ignore:.*encountered in")
def test_numbers_are_rounded_as_gguf_rounds_them(kind: Kind, scale: float) -> None:
    """Random rows; rows of multiples of half a step, where rounding is decided; more blocks than one piece holds."""
    numbers = np.random.default_rng(0).standard_normal((520, 512)).astype(np.float32) * np.float32(scale)
    numbers[:100] = np.random.default_rng(1).integers(-254, 255, (100, 512)) * np.float32(0.5 * scale)
    numbers[:100, ::32] = 127 * np.float32(scale)
    numbers[7] = 0
    assert numbers.size > 32 * writer.PIECE
    ours = writer.encode(numbers, kind, "x").reshape(-1).view(np.uint8)
    assert np.array_equal(ours, gguf.quants.quantize(numbers, kind).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("quant", [Kind.F32, Kind.F16, Kind.Q8_0])
def test_a_streamed_file_is_the_one_written_from_memory(tmp_path: Path, quant: Kind) -> None:
    """gguf's own writer given whole arrays, in the order of the names; ours got them in another."""
    dice = np.random.default_rng(0)
    shapes = {"token_embd.weight": (10, 64), "blk.10.a.weight": (3, 32), "blk.9.a.weight": (7, 96), "b.bias": (5,)}
    arrays = {name: dice.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    kinds = {name: quant if len(shape) > 1 else Kind.F32 for name, shape in shapes.items()}
    reference = gguf.GGUFWriter(tmp_path / "whole", "llama")
    reference.add_string("minipovid.x", "y")
    for name in ("b.bias", "blk.9.a.weight", "blk.10.a.weight", "token_embd.weight"):
        reference.add_tensor(name, gguf.quants.quantize(arrays[name], kinds[name]), raw_dtype=kinds[name])
    reference.write_header_to_file()
    reference.write_kv_data_to_file()
    reference.write_tensors_to_file()
    reference.close()
    entries = [
        writer.TensorEntry(name, array.shape, kinds[name], partial(iter, [array[:2], array[2:]]))
        for name, array in arrays.items()
    ]
    seen: list[tuple[int, int]] = []
    writer.write(
        tmp_path / "streamed",
        {"general.architecture": "llama", "minipovid.x": "y"},
        entries,
        lambda *each: seen.append(each),
    )
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert seen[-1] == (writer.size(entries), writer.size(entries))


def test_a_tensor_that_is_too_short_is_not_passed_over(tmp_path: Path) -> None:
    short = writer.TensorEntry("x", (4, 32), Kind.F16, lambda: iter([np.zeros((3, 32), np.float32)]))
    with pytest.raises(MinipovidError, match="x has 192 bytes, not 256"):
        writer.write(tmp_path / "x", {"general.architecture": "llama"}, [short])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_nf4_codes_are_those_of_bitsandbytes(dtype: torch.dtype) -> None:
    """Random rows; midpoints themselves, where rounding is decided; a block of zeros, and tiny ones."""
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    values = get_4bit_type("nf4", device="cpu")
    rows = torch.randn(40, 640, generator=torch.Generator().manual_seed(0)) * 0.02
    rows[0, :15] = (values[1:] + values[:-1]) / 2
    rows[0, 63] = 1.0
    rows[1, :64] = 0
    rows[2] *= 1e-37
    rows[3] *= 1e-6
    codes, state = quantize_4bit(rows.to(dtype), blocksize=64, quant_type="nf4")
    ours, largest = quantise(rows.to(dtype))
    assert torch.equal(ours, codes.flatten()) and torch.equal(largest, state.absmax)


# --- adapters of others ---


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]], ids=["all-linear", "q and v"])
def test_an_adapter_that_is_on_the_tower_too(base: Path, tmp_path: Path, targets: Any) -> None:
    """The tower's and projector's share is merged; that of the tower's last layer, which is never run, is left out."""
    folder = tiny_llava.adapter(base, tmp_path / "adapter", targets=targets)
    pair = GgufPair(base, folder, "toy-7b", "float32")
    assert pair.left_out and all(name.startswith("vision_tower.encoder.layers.3.") for name in pair.left_out)
    text, vision = write_pair(pair, tmp_path / "out", PairOptions({"f32": "original"}))
    theirs, names = merged_by_peft(base, folder), {place.name: name for name, place in pair.places.items()}
    changed = set()
    for tensor in gguf.GGUFReader(vision).tensors:
        name = names[tensor.name]
        wanted = theirs[name].numpy()
        step = 2**-10 if tensor.tensor_type.name == "F16" else 2**-20
        assert np.allclose(tensor.data.reshape(wanted.shape), wanted, atol=step, rtol=step), name
        if not np.allclose(wanted, pair.base[name].rows(), atol=1e-3):
            changed.add(name)
    assert changed == {name for name in pair.factors if pair.places[name].file == "mmproj"} and changed
    assert text.is_file()


def test_a_weight_that_the_base_lacks_is_named(base: Path, tmp_path: Path) -> None:
    """Even where it would stand behind the layers that are run."""
    folder = tiny_llava.adapter(base, tmp_path / "adapter", targets="all-linear")
    other = copy(folder, tmp_path / "deeper", rename=lambda name: name.replace("encoder.layers.3", "encoder.layers.7"))
    with pytest.raises(MinipovidError, match=r"changes vision_tower.encoder.layers.7.mlp.fc1.weight and 5 more, which"):
        GgufPair(base, other, "toy-7b", "float32")


def test_an_adapter_on_nothing_that_is_run(base: Path, tmp_path: Path) -> None:
    folder = tiny_llava.adapter(base, tmp_path / "adapter", targets=r".*vision_tower.*layers\.3\.mlp\.fc1")
    with pytest.raises(MinipovidError, match="changes only what toy-7b never runs; there is nothing to add"):
        GgufPair(base, folder, "toy-7b", "float32")


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "has use_dora: True; only plain LoRA can be merged"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out: True"),
        ({"lora_bias": True}, "has lora_bias: True"),
        ({"bias": "all"}, "trains biases .all.; only plain LoRA"),
        ({"r": None}, "says r: None, but that must be a number"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save: \['lm_head'\]"),
        ({"trainable_token_indices": [400]}, r"has trainable_token_indices: \[400\]"),
        ({"use_something_new": {"depth": 2}}, r"has use_something_new: \{'depth': 2\}"),
        ({"rank_pattern": {"q_proj": 8}}, r"give \S+q_proj rank 8, but its matrices are \[4, 64\] and \[64, 4\]"),
        ({"r": 2}, r"rank 2, but its matrices are \[4, "),
    ],
)
def test_settings_that_are_more_than_lora(
    adapter: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    copy(adapter, tmp_path, changes)
    with pytest.raises(MinipovidError, match=sentence):
        lora.read(tmp_path, llava.canonical)


def copy(adapter: Path, to: Path, changes: dict[str, Any] | None = None, rename: Any = None) -> Path:
    """The adapter with other settings and other names."""
    to.mkdir(exist_ok=True)
    settings = json.loads((adapter / run_folder.ADAPTER_SETTINGS).read_text())
    (to / run_folder.ADAPTER_SETTINGS).write_text(json.dumps({**settings, **(changes or {})}))
    tensors = load_file(adapter / run_folder.ADAPTER_WEIGHTS)
    save_file(
        {rename(name) if rename else name: value for name, value in tensors.items()}, to / run_folder.ADAPTER_WEIGHTS
    )
    return to


@pytest.mark.parametrize("kind", ["dora", "modules_to_save", "embedding"])
def test_what_peft_saves_beyond_lora_is_refused(base: Path, tmp_path: Path, kind: str) -> None:
    """Not only settings of ours: the files that peft itself writes."""
    settings = {
        "dora": {"use_dora": True},
        "modules_to_save": {"modules_to_save": ["lm_head"]},
        "embedding": {"rank_pattern": {}},
    }[kind]
    tiny_llava.adapter(base, tmp_path, **settings)
    if kind == "embedding":
        tensors = load_file(tmp_path / run_folder.ADAPTER_WEIGHTS)
        tensors["base_model.model.model.language_model.embed_tokens.lora_embedding_A"] = torch.ones(4, 416)
        save_file(tensors, tmp_path / run_folder.ADAPTER_WEIGHTS)
    with pytest.raises(MinipovidError, match=kind):
        lora.read(tmp_path, llava.canonical)


def test_one_matrix_under_two_spellings(adapter: Path, tmp_path: Path) -> None:
    copy(adapter, tmp_path)
    tensors = load_file(tmp_path / run_folder.ADAPTER_WEIGHTS)
    twice = {
        name.replace("model.model.language_model", "model.language_model.model"): tensors[name] for name in tensors
    }
    save_file(
        {**tensors, **{name: value.clone() for name, value in twice.items()}}, tmp_path / run_folder.ADAPTER_WEIGHTS
    )
    with pytest.raises(MinipovidError, match="some matrices twice, under two spellings"):
        lora.read(tmp_path, llava.canonical)


# --- spellings ---

ADAPTER_SPELLINGS = {
    "transformers 5": lambda name: name,
    "transformers 4.51": lambda name: name.replace(
        "base_model.model.model.language_model.", "base_model.model.language_model.model."
    ),
    "named policy": lambda name: name.replace(".weight", ".policy.weight"),
    "without peft's prefix": lambda name: name.removeprefix("base_model.model."),
}


def _in_memory(name: str) -> str:
    """The Hub's name as the module of transformers 5 is called; transformers 4.52 to 4.57 saved such names."""
    name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
    name = name.replace("language_model.lm_head", "lm_head").replace("vision_tower.vision_model", "vision_tower")
    return name if name.startswith(("model.", "lm_head")) else f"model.{name}"


def _respelled(base: Path, to: Path) -> Path:
    """The same checkpoint with the names of the modules, and its tensors in another order."""
    to.mkdir(parents=True)
    for file in base.iterdir():
        if file.suffix != ".safetensors":
            (to / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    save_file({_in_memory(name): value for name, value in reversed(tensors.items())}, to / "model.safetensors")
    return to


def _saved_by_transformers(base: Path, to: Path) -> Path:
    """What save_pretrained of the installed transformers makes of it, its config.json included."""
    from transformers import LlavaForConditionalGeneration

    LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32).save_pretrained(to, max_shard_size="300KB")
    for file in base.iterdir():
        if "token" in file.name or "processor" in file.name:
            (to / file.name).write_bytes(file.read_bytes())
    return to


def test_every_spelling_exports_to_the_same_bytes(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Bases as the Hub, transformers 4 and transformers 5 write them, in one to many shards; adapters likewise."""
    bases = {
        "hub": base,
        "hub, 3 shards": tiny_llava.build(tmp_path / "three" / base.name, shards=3),
        "saved": tiny_llava.build(tmp_path / "saved" / base.name, spelling="saved", shards=2),
        "modules": _respelled(base, tmp_path / "modules" / base.name),
        "save_pretrained": _saved_by_transformers(base, tmp_path / "by transformers" / base.name),
    }
    assert len(list(bases["save_pretrained"].glob("*.safetensors"))) > 1
    adapters = {
        name: copy(adapter, tmp_path / f"adapter {name}", rename=spelled) for name, spelled in ADAPTER_SPELLINGS.items()
    }
    names = [{*Tensors(folder)} for folder in bases.values()]
    assert names[0] == names[1] and len({frozenset(each) for each in names}) >= 3
    first: dict[str, bytes] = {}
    pairs = [(folder, adapter) for folder in bases.values()] + [(base, folder) for folder in adapters.values()]
    for number, (model, folder) in enumerate(pairs):
        pair = GgufPair(model, folder, "toy-7b", "float32")
        wanted = PairOptions({"f16": "original", "q8_0": "original"})
        files = {path.name: path.read_bytes() for path in write_pair(pair, tmp_path / f"out{number}", wanted)}
        first = first or files
        assert len(files) == 3 and files == first, (model, folder)


def test_digests_know_numbers_and_scales_but_no_spelling(base: Path, adapter: Path, tmp_path: Path) -> None:
    expected = lora.sha256(adapter, llava.canonical)
    other = copy(adapter, tmp_path / "scaled", {"lora_alpha": 9})
    assert lora.sha256(other, llava.canonical) != expected
    changed = load_file(adapter / run_folder.ADAPTER_WEIGHTS)
    next(iter(changed.values()))[0, 0] += 1e-6
    save_file(changed, other / run_folder.ADAPTER_WEIGHTS)
    assert lora.sha256(copy(other, tmp_path / "moved", {"lora_alpha": 8}), llava.canonical) != expected
    settings = {"base_model_name_or_path": "elsewhere", "lora_dropout": 0.5, "peft_version": "0.5"}
    assert lora.sha256(copy(adapter, tmp_path / "same", settings), llava.canonical) == expected
    swapped = stored(base)
    names = [f"language_model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)]
    swapped[names[0]], swapped[names[1]] = swapped[names[1]], swapped[names[0]]
    assert fingerprint(swapped) != fingerprint(stored(base))


# --- the merged model in Hugging Face layout ---


def load(folder: Path) -> Any:
    from transformers import LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_merged_model_loads_and_is_pefts(adapter: Path, tmp_path: Path, dtype: str) -> None:
    """Within float32's rounding, or one of the base's type: peft itself rounds the product, and then the sum."""
    folder = tiny_llava.build(tmp_path / "base", dtype=dtype, shards=2)
    pair = GgufPair(folder, adapter, "toy", "float32")
    out = write_merged(pair, tmp_path / "merged", "original", max_shard_bytes=200_000)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert all(path.stat().st_size < 210_000 for path in out.glob("model-*.safetensors"))
    base, got = Tensors(folder), Tensors(out)
    assert {name: (each.dtype, each.shape) for name, each in got.items()} == {
        name: (each.dtype, each.shape) for name, each in base.items()
    }
    theirs = merged_by_peft(folder, adapter, getattr(torch, dtype))
    ours = {llava.canonical(name): value for name, value in load(out).state_dict().items()}
    step = {"float32": 2**-21, "float16": 2**-10, "bfloat16": 2**-7}[dtype]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].dtype is getattr(torch, dtype)
        if name in pair.factors:
            assert ((ours[name].float() - value.float()).abs() <= step * value.float().abs().clamp(min=0.5)).all(), name
        else:
            assert torch.equal(ours[name], value), name


def test_merged_folder_has_what_the_base_has(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Settings copied but for the base's quantisation; processor and tokenizer load from it."""
    from transformers import AutoProcessor

    (tmp_path / "base").mkdir()
    for file in base.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"load_in_4bit": True}})
    )
    out = write_merged(GgufPair(tmp_path / "base", adapter, "toy", "float32"), tmp_path / "merged", "original")
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()} | {"minipovid.json"}
    assert json.loads((out / "config.json").read_text()) == config
    assert AutoProcessor.from_pretrained(out).tokenizer("A red circle.").input_ids


def test_merged_on_the_4bit_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Linear weights of the language model are those of NF4 plus the adapter's; the head is as it was."""
    pair = GgufPair(base, adapter, "toy", "float32")
    got = stored(write_merged(pair, tmp_path / "merged", "nf4"))
    name = "language_model.layers.1.mlp.down_proj.weight"
    factor = pair.factors[name]
    expected = Nf4Tensor(pair.base[name], "float32").rows(0, 64) + factor.rows(0, 64)
    assert np.array_equal(got[name].rows(), expected)
    assert not np.array_equal(expected, pair.base[name].rows() + factor.rows(0, 64))
    assert np.array_equal(got["lm_head.weight"].rows(), pair.base["lm_head.weight"].rows())


def test_merged_again_only_where_something_changed(base: Path, adapter: Path, tmp_path: Path) -> None:
    calls: list[Any] = []
    pair, out = GgufPair(base, adapter, "toy", "float32"), tmp_path / "merged"
    write_merged(pair, out, "original", lambda *call: calls.append(call))
    size = sum(tensor.n_bytes for tensor in pair.base.values())
    assert calls[-1] == ("model.safetensors", size, size)
    del calls[:]
    write_merged(pair, out, "original", lambda *call: calls.append(call))
    assert not calls
    write_merged(pair, out, "nf4", lambda *call: calls.append(call))
    assert calls


def test_a_folder_of_somebody_else_is_left_alone(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(MinipovidError, match="exists and holds no model that minipovid merged; choose another folder"):
        write_merged(GgufPair(base, adapter, "toy", "float32"), tmp_path, "original")
    assert (tmp_path / "thesis.tex").read_text() == "precious"
