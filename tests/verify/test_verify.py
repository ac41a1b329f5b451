"""verify: a good export passes, and every fault that a conversion is known to plant is caught and named.

One run is made once: a random LLaVA of four layers, a random adapter, forty pairs of which four are held out. Each test
plants its fault where such a defect would live, in a copy of the run: in the exporter, in the file, or in the runtime.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
import torch
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from minipovid import verify
from minipovid.common.errors import MinipovidError
from minipovid.export import export, export_base, merge, writer
from minipovid.export.nf4 import Nf4Tensor
from minipovid.images.transform import ImageTransform
from minipovid.inference.llama_cpp import self_test
from minipovid.inference.llama_cpp import vision as runtime_eyes
from minipovid.models import adapter as lora
from minipovid.models import load, shapes
from minipovid.models.model import Model
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import Pair
from minipovid.recipe import read as recipe
from minipovid.recipe import schema, strict
from minipovid.verify import Verdict, float32, inputs, trained

Rows = np.ndarray
LAYERS, RANK, ALPHA = 4, 4, 8.0


def picture(seed: int) -> Image.Image:
    """Random colour patches, wide or tall."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize([(90, 40), (33, 120)][seed % 2], Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that training might have left, exported and verified once."""
    made = trained_run(tmp_path_factory.mktemp("verify"), "float32")
    export(made, ["f16", "q8_0"])
    assert not verify.verify(made).faults
    return made


def trained_run(place: Path, dtype: str, **sizes: int) -> Path:
    """A run that computed in this type, its base in 4 bits, stored as float16; `sizes` are the model's."""
    base = tiny_llava.build(place / "tiny-7b", layers=LAYERS, dtype="float16", **sizes)
    made = place / "run"
    tiny_llava.adapter(base, made / "adapter", r=RANK, alpha=ALPHA)
    (place / "pictures").mkdir()
    for index in range(40):
        picture(index).save(place / "pictures" / f"{index}.png")
    colours = ["red", "green", "blue", "yellow"]
    pairs = [
        Pair(
            str(index),
            f"{index}.png",
            "What is this?" if index % 2 else "Is there a red circle?\nAnswer yes or no.",
            f"A small {colours[index % 4]} circle is left of the table.",
            f"A {colours[(index + 1) % 4]} dog.",
        )
        for index in range(40)
    ]
    jsonl.write(made / "pairs.jsonl", pairs)
    settings = {
        "name": "tiny",
        "model": {"path": str(base), "load_in_4bit": True, "dtype": dtype},
        "lora": {"r": RANK, "alpha": ALPHA},
        "data": {"path": str(made / "pairs.jsonl"), "images": str(place / "pictures"), "max_length": 160},
        "stages": [{"loss": {"name": "dpo"}}],
    }
    recipe.write(strict.validated(schema.Recipe, settings, "test"), made / "recipe.yaml")
    return made


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """The run again, for one fault; the sheet comes along."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def text(run: Path, quant: str = "F16") -> Path:
    return next((run / "gguf").glob(f"tiny-*-{quant}.gguf"))


def vision(run: Path) -> Path:
    return next((run / "gguf").glob("mmproj-*.gguf"))


def rewrite(path: Path, keys: Mapping[str, Any] | None = None, tensors: Mapping[str, Rows] | None = None) -> None:
    """The same GGUF with other values for these keys, and other numbers in these tensors."""
    reader, draft = gguf.GGUFReader(path), path.with_suffix(".new")
    writer = gguf.GGUFWriter(draft, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = (keys or {}).get(name, field.contents())
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        rows = (tensors or {}).get(tensor.name)
        data = tensor.data if rows is None else rows.reshape(tensor.data.shape).astype(tensor.data.dtype)
        writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(draft, path)


def tensor(path: Path, name: str) -> Rows:
    return np.array(next(each.data for each in gguf.GGUFReader(path).tensors if each.name == name))


def export_again(run: Path, quants: list[str] | None = None) -> None:
    shutil.rmtree(run / "gguf")
    export(run, quants or ["f16"])


def named(verdict: Verdict, fault: str, *words: str) -> str:
    """The one sentence about this fault; nothing else is accused."""
    assert not verdict.ok
    assert {cause.fault for cause in verdict.faults} == {fault}, verdict.causes
    sentence = verdict.causes[0]
    assert all(word in sentence for word in words), sentence
    return sentence


# --- a good run ---


def test_a_good_run_passes(run: Path) -> None:
    verdict = verify.verify(run)
    assert not verdict.faults and verdict.ok is None
    assert verdict.causes == [] and [note[:24] for note in verdict.notes] == ["4 pairs are too few to j"]
    assert verdict.pairs == 4  # a tenth of the forty
    trained, base, merged, f16, q8_0 = verdict.table()
    assert [trained["KL"], trained["agreement"], trained["kept"]] == [0, 1, 1]
    assert base["kept"] == 0
    assert base["KL"] > 0.1
    assert merged["KL"] < 1e-4
    assert f16["KL"] < 1e-4 < q8_0["KL"] < 0.01
    assert [row["tokens"] for row in (merged, f16, q8_0)] == [1, 1, 1]
    assert [row["kept"] for row in (merged, f16, q8_0)] == pytest.approx([1, 1, 1], abs=0.05)
    assert f16["MiB"] == text(run).stat().st_size / 2**20
    rows = json.loads((run / "verify.json").read_text("utf-8"))["table"]
    stamps = [row.pop("stamp") for row in rows]
    assert rows == verdict.table()
    assert stamps == ["", "", "", *(writer.stamp(text(run, quant), "minipovid.inputs") for quant in ("F16", "Q8_0"))]
    assert len(stamps[-1]) == 64


@pytest.fixture(scope="module")
def bf16_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that computed in bfloat16, as every run on a GPU does, and wide enough for its noise to show."""
    made = trained_run(tmp_path_factory.mktemp("bf16"), "bfloat16", hidden=256, ffn=512)
    export(made, ["f16"])
    return made


def test_a_good_run_in_bfloat16_passes(bf16_run: Path) -> None:
    """In bfloat16 the trained model's own noise would be a KL of 0.001 to 0.002; a 16-bit file may lose 0.001."""
    verdict = verify.verify(bf16_run)
    assert not verdict.faults and verdict.ok is None
    assert verdict.causes == []
    merged, f16 = verdict.table()[2:]
    assert max(merged["KL"], f16["KL"]) < 5e-5
    assert [merged["kept"], f16["kept"]] == pytest.approx([1, 1], abs=0.01)


@pytest.mark.parametrize(
    ("factor", "has_base", "fault", "words"),
    [(1.06, True, "wrong scale", "added 1.06 times"), (1.02, False, "unknown", "KL 0.002")],
)
def test_a_small_fault_of_a_run_in_bfloat16(
    bf16_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    has_base: bool,
    fault: str,
    words: str,
) -> None:
    """Found in the weights; and without the base in the answers alone, though bfloat16 itself moves these as far."""
    verify.verify(bf16_run)
    copy = Path(shutil.copytree(bf16_run, tmp_path / "run"))
    planted(copy, monkeypatch, lambda _: factor, "f16")
    if not has_base:
        blind(monkeypatch)
    named(verify.verify(copy), fault, words)


@pytest.mark.parametrize("in_4bit", [True, False])
def test_widened_matrices_are_those_of_training(bf16_run: Path, in_4bit: bool) -> None:
    """In float32, with the values that 4-bit training saw or else those on disk: the files hold no others."""

    made = inputs.origin(bf16_run, recipe.read(bf16_run / "recipe.yaml"), [])
    assert made is not None
    section = schema.ModelSection(path=str(made.model), load_in_4bit=in_4bit, dtype="bfloat16")
    model = load.load(section, schema.LoraSection(r=RANK))
    float32.widen(model, made.base)
    name = "language_model.layers.0.self_attn.q_proj"
    stored = made.base[f"{name}.weight"]
    layer = model.base.get_submodule(f"model.{name}.base_layer")
    due = Nf4Tensor(stored, "bfloat16").rows(0, stored.shape[0]) if in_4bit else stored.rows()
    found = layer(torch.eye(stored.shape[1])).T
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.detach().numpy(), due)
    np.testing.assert_array_equal(model.head.weight.detach().numpy(), made.base["lm_head.weight"].rows())
    floats = [value for value in model.base.buffers() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}


def test_a_quantisation_that_gguf_cannot_read(bf16_run: Path, tmp_path: Path) -> None:
    """llama.cpp asks it all the same; of its weights nothing is claimed."""
    copy = Path(shutil.copytree(bf16_run, tmp_path / "run"))
    export(copy, ["f16", "q1_0"])
    verdict = verify.verify(copy)
    assert verdict.ok is None  # what rounding costs is not judged on four pairs
    assert verdict.table()[-1]["KL"] > 0.1 and verdict.table()[-1]["verdict"] == "too few to judge"
    assert len(verdict.notes) == 2
    assert "its weights of type Q1_0 (29 of 39 tensors) were not looked into" in verdict.notes[0]


# --- the adapter ---


def _layer_of(factor: lora.Factor) -> int:
    return int(factor.b.name.partition("layers.")[2].partition(".")[0])


def planted(run: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[lora.Factor], float], *quants: str) -> None:
    """Export with an adapter whose part is multiplied, factor by factor."""
    rows = lora.Factor.rows
    with monkeypatch.context() as patch:
        patch.setattr(lora.Factor, "rows", lambda self, *args: np.float32(change(self)) * rows(self, *args))
        export_again(run, list(quants or ("f16", "q8_0", "q4_k_m")))


def test_adapter_not_applied(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(copy, monkeypatch, lambda factor: 0)
    verdict = verify.verify(copy)
    named(verdict, "adapter not applied", "F16.gguf: adapter not applied: the weights are the base's")
    assert len(verdict.causes) == 3  # each file
    assert [row["kept"] < 0.3 for row in verdict.table()[3:]] == [True] * 3


def test_half_of_the_layers_dropped(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(copy, monkeypatch, lambda factor: _layer_of(factor) < LAYERS // 2)
    verdict = verify.verify(copy)
    named(verdict, "adapter not applied", "blk.2 and blk.3 hold the base's weights (14 of 28 tensors)")
    assert len(verdict.causes) == 3


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (2.0, ("added 2.00 times", "rsLoRA's")),  # sqrt(4): a rank for which two slips give one factor
        (0.5, ("added 0.50 times", "as if alpha / r was left out")),
        (1.3, ("added 1.30 times.",)),
    ],
)
def test_wrong_scale(copy: Path, monkeypatch: pytest.MonkeyPatch, factor: float, words: tuple[str, ...]) -> None:
    planted(copy, monkeypatch, lambda _: factor, "f16")
    named(verify.verify(copy), "wrong scale", *words)


def test_wrong_scale_of_quantised_files(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(copy, monkeypatch, lambda _: 2.0, "q8_0", "q4_k_m")
    verdict = verify.verify(copy)
    named(verdict, "wrong scale")
    assert ["added 2.0" in cause for cause in verdict.causes] == [True, True]


def test_scale_misread_by_exporter_and_verify_alike(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """rsLoRA overlooked where both read the adapter: peft's own word, in the sheet, is the second opinion."""
    copy = Path(shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("adapter", "verify")))
    tiny_llava.adapter(run.parent / "tiny-7b", copy / "adapter", r=RANK, alpha=ALPHA, use_rslora=True)
    whole = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    whole["lora"]["rslora"] = True
    (copy / "recipe.yaml").write_text(yaml.safe_dump(whole), "utf-8")
    factor = lora._factor
    monkeypatch.setattr(lora, "_factor", lambda *args: replace(factor(*args), scale=ALPHA / RANK))
    monkeypatch.setattr(Model, "_check_scales", lambda *args: None)  # it would stop verify before anything is compared
    export_again(copy)
    verdict = verify.verify(copy)
    assert {cause.file for cause in verdict.faults} == {"merged (transformers)", text(copy).name}
    named(verdict, "wrong scale", "added 0.50 times", "alpha / sqrt(r), rsLoRA's, was taken for alpha / r")


def test_q_and_k_not_permuted(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(merge, "interleave", lambda rows, head: rows)
        export_again(copy)
    named(
        verify.verify(copy), "q/k not permuted", "the rows of attn_k and attn_q of every layer stand as in transformers"
    )


# --- the picture ---


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the base: nothing but what the runtime sees can tell."""
    monkeypatch.setattr(inputs, "origin", lambda *_: None)


@pytest.mark.parametrize("has_base", [True, False])
def test_projector_layers_swapped(copy: Path, monkeypatch: pytest.MonkeyPatch, has_base: bool) -> None:
    path = vision(copy)
    pairs = [(f"mm.{a}.{kind}", f"mm.{b}.{kind}") for a, b in ((0, 2), (2, 0)) for kind in ("weight", "bias")]
    rewrite(path, tensors={to: tensor(path, of) for to, of in pairs})
    if not has_base:
        blind(monkeypatch)
    named(verify.verify(copy, ["f16"]), "projector layers swapped", path.name)


@pytest.mark.parametrize("has_base", [True, False])
def test_wrong_feature_layer(copy: Path, monkeypatch: pytest.MonkeyPatch, has_base: bool) -> None:
    rewrite(vision(copy), {"clip.vision.feature_layer": [2]})
    if not has_base:
        blind(monkeypatch)
    told = "feature_layer is [2], but the model was trained with 3" if has_base else "those behind layer 2 of the tower"
    named(verify.verify(copy, ["f16"]), "wrong feature layer", told)


def test_class_token_misplaced(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a llama.cpp that is not mended leaves it, when the self-test fails to notice."""
    monkeypatch.setattr(self_test, "verdict", lambda *_: "not needed")
    named(verify.verify(run, ["f16"]), "class token misplaced", "every patch has its neighbour's position")


def test_centre_crop_instead_of_padding(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted with transformers' own processor, which crops."""
    from transformers import CLIPImageProcessor

    crop = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=28, do_rescale=False, do_normalize=False)

    class Cropped(ImageTransform):
        def canvas(self, image: Image.Image) -> np.ndarray:
            return np.asarray(crop(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0).astype(np.uint8)

    monkeypatch.setattr(runtime_eyes, "ImageTransform", Cropped)
    named(verify.verify(run, ["f16"]), "centre-crop instead of padding", "the picture's sides are cut off")


@pytest.mark.parametrize("has_base", [True, False])
def test_mmproj_of_another_model(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_base: bool) -> None:
    other = tiny_llava.build(tmp_path / "other", layers=LAYERS, seed=1)
    shutil.copyfile(export_base(str(other), tmp_path / "gguf", ["f16"])[-1], vision(copy))
    if not has_base:
        blind(monkeypatch)
    named(verify.verify(copy, ["f16"]), "mmproj of another model", vision(copy).name)


# --- words ---


def chat_of(path: Path) -> dict[str, Any]:
    return json.loads(gguf.GGUFReader(path).get_field("minipovid.chat").contents())


def test_wrong_template_for_our_runtime(copy: Path) -> None:
    chat = chat_of(text(copy)) | {"opening": "GPT:", "assistant": "GPT: "}
    rewrite(text(copy), {"minipovid.chat": json.dumps(chat)})
    named(
        verify.verify(copy, ["f16"]),
        "wrong template",
        "its prompts are written",
        "GPT:",
        "where training wrote",
        "ASSISTANT:",
    )


def test_wrong_end_of_answers(copy: Path) -> None:
    rewrite(text(copy), {"minipovid.chat": json.dumps(chat_of(text(copy)) | {"end": "###"})})
    named(verify.verify(copy, ["f16"]), "wrong template", "its answers are written", "</s>")


def test_wrong_template_for_other_programs(copy: Path) -> None:
    template = gguf.GGUFReader(text(copy)).get_field("tokenizer.chat_template").contents()
    rewrite(text(copy), {"tokenizer.chat_template": template.replace("USER: ", "Human: ")})
    named(verify.verify(copy, ["f16"]), "wrong template", "its chat template writes 'Human: ")


def test_double_bos_in_our_runtime(copy: Path) -> None:
    rewrite(text(copy), {"minipovid.chat": json.dumps(chat_of(text(copy)) | {"begin": "<s>"})})
    named(verify.verify(copy, ["f16"]), "double BOS", "a prompt begins with <s> twice")


def test_double_bos_in_other_programs(copy: Path) -> None:
    template = gguf.GGUFReader(text(copy)).get_field("tokenizer.chat_template").contents()
    rewrite(text(copy), {"tokenizer.chat_template": "{{ bos_token }}" + template})
    named(verify.verify(copy, ["f16"]), "double BOS", "its chat template writes <s>, which llama.cpp adds by itself")


def test_tokenizer_scores_flattened(copy: Path) -> None:
    scores = gguf.GGUFReader(text(copy)).get_field("tokenizer.ggml.scores").contents()
    rewrite(text(copy), {"tokenizer.ggml.scores": [0.0] * len(scores)})
    verdict = verify.verify(copy, ["f16"])
    named(verdict, "tokenizer scores flattened", "all of its tokens have one score")
    assert verdict.table()[-1]["tokens"] < 1


def test_other_tokens_of_an_answer(copy: Path) -> None:
    """The prompts are as they were; nothing but the name of one piece of the answers is another."""
    tokens = gguf.GGUFReader(text(copy)).get_field("tokenizer.ggml.tokens").contents()
    rewrite(text(copy), {"tokenizer.ggml.tokens": ["\u2581qqqq" if each == "\u2581left" else each for each in tokens]})
    verdict = verify.verify(copy, ["f16"])
    named(verdict, "other tokens", "'A small", "goes on at token")
    row = verdict.table()[-1]
    assert row["tokens"] == pytest.approx(2 / 3)
    assert row["KL"] < 1e-4  # of the rejected answers


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ({"picture": ""}, ("have 0 places for a picture", "where training wrote 'USER: <image>")),
        ({"picture": "<image><image>\n"}, ("have 2 places for a picture",)),
        ({"begin": "so " * 2000}, ("its prompts are written", "so so so")),
    ],
)
def test_a_file_that_cannot_be_asked_is_named_and_others_are_judged(
    copy: Path, pieces: dict[str, str], words: tuple[str, ...]
) -> None:
    rewrite(text(copy), {"minipovid.chat": json.dumps(chat_of(text(copy)) | pieces)})
    verdict = verify.verify(copy)
    named(verdict, "wrong template", text(copy).name, *words)
    assert verdict.table()[-2]["KL"] == ""
    assert verdict.table()[-1]["verdict"] == "too few to judge"


def test_a_file_that_cannot_be_asked_for_another_reason(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it was trained for eight tokens, and there is no base to know better."""
    rewrite(text(copy), {"llama.context_length": 8})
    blind(monkeypatch)
    named(verify.verify(copy), "cannot be asked", text(copy).name, "more than the context of 8")


def test_a_model_trained_for_less_than_the_recipe_s_longest_row(copy: Path) -> None:
    """The runtime refuses more than the model was trained for, and the pairs need no more."""
    settings = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    settings["data"]["max_length"] = 4096
    (copy / "recipe.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    assert not verify.verify(copy, ["f16"], pairs=1).faults


# --- files ---


@pytest.mark.parametrize("share", [0.999, 0.6, 0.01, 0.0])
def test_truncated_gguf(copy: Path, share: float) -> None:
    path = text(copy)
    os.truncate(path, int(path.stat().st_size * share))
    verdict = verify.verify(copy)
    named(verdict, "truncated", path.name, "it ends after")
    assert verdict.table()[-1]["verdict"] in ("too few to judge", "truncated")


def test_truncated_mmproj(copy: Path) -> None:
    os.truncate(vision(copy), 100_000)
    named(verify.verify(copy), "truncated", vision(copy).name)


def test_two_faults_in_two_files_are_two_sentences(copy: Path) -> None:
    """One file's fault is not held against the other."""
    os.truncate(text(copy, "Q8_0"), 100_000)
    rewrite(text(copy), {"minipovid.chat": json.dumps(chat_of(text(copy)) | {"begin": "<s>"})})
    verdict = verify.verify(copy)
    assert [(cause.fault, cause.file) for cause in verdict.faults] == [
        ("double BOS", text(copy).name),
        ("truncated", text(copy, "Q8_0").name),
    ]


# --- on another machine ---


def test_the_sheet_stands_in_for_transformers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No base, no transformers: the kept sheet says the same, weights and merged model are left out."""
    whole = verify.verify(run).table()
    blind(monkeypatch)
    monkeypatch.setitem(sys.modules, "minipovid.verify.trained", None)
    verdict = verify.verify(run)
    assert not verdict.faults and verdict.ok is None
    assert verdict.table() == [row for row in whole if row["file"] != "merged (transformers)"]
    assert "merged weights were not run" in verdict.notes[0]


def test_neither_sheet_nor_means(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(copy / "verify")
    blind(monkeypatch)
    with pytest.raises(MinipovidError, match=r"this machine lacks the base model; run `minipovid verify` once where"):
        verify.verify(copy)
    monkeypatch.undo()
    monkeypatch.setattr(shapes, "CPU_LIMIT", 1000)
    with pytest.raises(MinipovidError, match="this machine lacks a GPU, and on a CPU it is too large; run"):
        verify.verify(copy)


def test_a_base_that_is_not_here(copy: Path) -> None:
    """The recipe names a Hub model that is not in the cache: nothing is downloaded, and the sheet is of another."""
    settings = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    settings["model"]["path"] = "someone/not-here"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    with pytest.raises(MinipovidError, match="trained.safetensors does not hold what .* lacks the base model"):
        verify.verify(copy)


def test_nothing_is_downloaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base lies in the Hub's cache; whether its branch has moved since is asked of nobody."""
    base, asked = str(copy.parent / "hub"), []
    whole = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    shutil.copytree(whole["model"]["path"], base)

    def snapshot_download(repo: str, *, local_files_only: bool = False, **_: Any) -> str:
        asked.append(repo)
        assert local_files_only
        return base

    def connect(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("socket.socket.connect", connect)
    whole["model"]["path"] = "someone/tiny-7b"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(whole), "utf-8")
    assert not verify.verify(copy, ["f16"], pairs=1).faults
    assert asked == ["someone/tiny-7b"]


def test_the_sheet_is_of_this_adapter_and_these_pairs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    compute = trained.compute

    def counted(*args: Any) -> Any:
        made.append(len(args[2]))
        return compute(*args)

    monkeypatch.setattr(trained, "compute", counted)
    verify.verify(copy, ["f16"], pairs=2)
    assert made == []  # two of the four
    path = copy / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: value * 2 if "lora_B" in name else value for name, value in weights.items()}, path)
    verdict = verify.verify(copy, ["f16"])
    assert made == [4]
    named(verdict, "wrong scale", "added 0.50 times")  # the file is of the earlier adapter
    rows = (copy / "pairs.jsonl").read_text("utf-8").splitlines()
    rows[-1] = rows[-1].replace("left of", "right of")
    (copy / "pairs.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    verify.verify(copy, ["f16"], pairs=1)
    assert made == [4, 1]


def test_pairs_that_were_trained_on(copy: Path) -> None:
    settings = yaml.safe_load((copy / "recipe.yaml").read_text("utf-8"))
    settings["data"]["held_out"] = 0
    (copy / "recipe.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    verdict = verify.verify(copy, ["f16"], pairs=5)
    assert not verdict.faults and verdict.ok is None
    assert verdict.pairs == 5
    assert verdict.notes[0] == "The pairs were trained on: this run held none out."
    assert verdict.notes[1].startswith("5 pairs are too few to judge how near a file comes, or what training did: ")


# --- bad input ---


def test_what_cannot_be_verified(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="is no run folder"):
        verify.verify(tmp_path)
    with pytest.raises(MinipovidError, match="takes at least one pair"):
        verify.verify(copy, pairs=0)
    with pytest.raises(MinipovidError, match="holds only f16, q8_0; write .* `minipovid export .* --quant q4_k_m`"):
        verify.verify(copy, ["q4_k_m"])
    shutil.rmtree(copy / "gguf")
    with pytest.raises(MinipovidError, match="holds no GGUF files"):
        verify.verify(copy)
    (copy / "pairs.jsonl").unlink()
    export(copy, ["f16"])
    with pytest.raises(MinipovidError, match=r"holds no pairs\.jsonl"):
        verify.verify(copy)
    shutil.rmtree(copy / "adapter")
    with pytest.raises(MinipovidError, match="holds no trained adapter"):
        verify.verify(copy)
