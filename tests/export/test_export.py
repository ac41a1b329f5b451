"""Merged weights against peft's own merge, the 4-bit base against bitsandbytes', files against kills and reruns."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
import torch
from safetensors.numpy import load_file, save_file

from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone
from minipovid.export import export, export_base, lm_studio, naming, refresh_card, vocabulary
from minipovid.export.gguf_pair import GgufPair
from minipovid.export.merge import interleave
from minipovid.export.naming import label, title
from minipovid.export.nf4 import Nf4Tensor
from minipovid.models import adapter as lora
from minipovid.models.families import llava
from minipovid.models.hub import resolve_model
from minipovid.models.stored_tensors import Tensors
from minipovid.recipe import read as recipes

RECIPE = """
name: tiny
model: {{path: {base}, load_in_4bit: {in_4bit}, dtype: float32}}
data: {{path: pairs.jsonl}}
stages: [{{loss: {{name: dpo}}}}]
export: {{quants: [f16, q8_0]}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "toy-1.5-7b-hf")


@pytest.fixture
def make_run(base: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "run", in_4bit: bool = False, model: Path = base, **settings: Any) -> Path:
        run = tmp_path / name
        run.mkdir()
        text = RECIPE.format(base=model, in_4bit=str(in_4bit).lower())
        (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
        recipes.write(recipes.read(tmp_path / "recipe.yaml"), run / "recipe.yaml")
        tiny_llava.adapter(model, run / "adapter", **settings)
        return run

    return make


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF in float32 and numpy's order of axes, read back by the gguf package."""
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist())))
        for t in gguf.GGUFReader(path).tensors
    }


def field(path: Path, key: str) -> Any:
    entry = gguf.GGUFReader(path).get_field(key)
    return None if entry is None else entry.contents()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def deinterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order back to rotate-half, one row at a time."""
    d = len(rows) // heads
    back = np.empty_like(rows)
    for head in range(heads):
        for i in range(d):
            back[head * d + i // 2 + (i % 2) * d // 2] = rows[head * d + i]
    return back


# --- the merge ---


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}, "rank_pattern": {"layers.1.mlp.up_proj": 2}}],
    ids=["lora", "rslora", "patterns"],
)
def test_merged_weights_are_those_of_peft(base: Path, make_run: Callable[..., Path], settings: dict[str, Any]) -> None:
    """Every text tensor of the F32 file equals merge_and_unload's, and adapted ones differ from the base's."""
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    run = make_run(**settings)
    written = tensors(export(run, ["f32"])[0])
    original = tensors(export_base(str(base), run / "before", ["f32"])[0])
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, run / "adapter").merge_and_unload().state_dict()

    seen = 0
    for name, value in merged.items():
        place = llava.place(llava.canonical(name), model.config)
        if place is None or place.file != "text":
            continue
        got = deinterleave(written[place.name], place.heads) if place.heads else written[place.name]
        np.testing.assert_allclose(got, value.numpy(), rtol=0, atol=2e-6, err_msg=name)
        assert (np.abs(written[place.name] - original[place.name]).max() > 1e-3) == place.in_4bit, name
        seen += 1
    assert seen == len(written) == 3 + 2 * 9


def test_interleave_by_hand() -> None:
    """Two heads of four rows: 0 1 2 3 | 4 5 6 7 become 0 2 1 3 | 4 6 5 7; the slow inverse undoes it."""
    rows = np.arange(8, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    assert interleave(rows, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    wide = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    assert np.array_equal(deinterleave(interleave(wide, 8), 3), wide)


def test_blocks_of_rows_change_nothing(base: Path, make_run: Callable[..., Path], monkeypatch: Any) -> None:
    run = make_run()
    whole = export(run, ["q8_0"])[0].read_bytes()
    monkeypatch.setattr("minipovid.export.merge.BLOCK", 1)  # one head or one row at a time
    blocks = export_copy(run, ["q8_0"])[0]
    assert tensors(blocks).keys() == tensors(run / "gguf" / blocks.name).keys()
    assert blocks.read_bytes() == whole


def export_copy(run: Path, quants: list[str]) -> list[Path]:
    """The same export, into another folder."""
    other = run.with_name(run.name + "-again")
    other.mkdir()
    (other / "recipe.yaml").write_bytes((run / "recipe.yaml").read_bytes())
    (other / "adapter").symlink_to(run / "adapter")
    return export(other, quants, name=run.name)


def test_nf4_base_is_what_a_4bit_model_holds(base: Path, make_run: Callable[..., Path]) -> None:
    """Bit for bit bitsandbytes' dequantised weights plus the adapter; head and embeddings stay as they were."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

    run = make_run(in_4bit=True)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32, quantization_config=config)
    stored = {llava.canonical(name): tensor for name, tensor in Tensors(base).items()}
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear4bit) and "language_model" in name
    }
    assert len(linears) == 2 * 7
    for name, module in linears.items():
        held = dequantize_4bit(module.weight.data, module.weight.quant_state).numpy()
        tensor = stored[llava.canonical(f"{name}.weight")]
        rounded = Nf4Tensor(tensor, "float32")
        assert np.array_equal(rounded.rows(0, len(held)), held), name
        assert np.array_equal(rounded.rows(3, 8), held[3:8])  # a part is a part of the whole
        assert not np.array_equal(tensor.rows(), held)

    written = tensors(export(run, ["f32"])[0])
    factor = lora.read(run / "adapter", llava.canonical)["language_model.layers.1.mlp.down_proj.weight"]
    held = dequantize_4bit(
        model.model.language_model.layers[1].mlp.down_proj.weight.data,
        model.model.language_model.layers[1].mlp.down_proj.weight.quant_state,
    ).numpy()
    np.testing.assert_allclose(written["blk.1.ffn_down.weight"], held + factor.rows(0, 64), atol=1e-6)
    assert np.array_equal(written["output.weight"], stored["lm_head.weight"].rows())


def test_merge_base_auto_is_nf4_except_below_k_quants(make_run: Callable[..., Path]) -> None:
    files = export(make_run(in_4bit=True), ["f16", "q8_0", "q5_k_m"])
    assert [field(file, "minipovid.merge_base") for file in files] == ["nf4", "nf4", "original", "original"]
    files = export(make_run("other"), ["f16"])
    assert field(files[0], "minipovid.merge_base") == "original"


def test_merge_base_nf4_needs_a_4bit_run(make_run: Callable[..., Path]) -> None:
    with pytest.raises(MinipovidError, match="did not train in 4-bit; use 'original'"):
        export(make_run(), merge_base="nf4")


# --- what is refused ---


def change_settings(run: Path, **changes: Any) -> None:
    path = run / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"use_dora": True}, "has use_dora: True; only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save: \['lm_head'\]; only plain LoRA"),
        ({"peft_type": "IA3"}, "is of type IA3; only LORA can be merged"),
        ({"bias": "all"}, r"trains biases \(all\)"),
        ({"init_lora_weights": "pissa"}, "began with pissa, which changes the base as well"),
    ],
)
def test_adapters_that_are_more_than_lora(
    make_run: Callable[..., Path], changes: dict[str, Any], sentence: str
) -> None:
    run = make_run()
    change_settings(run, **changes)
    with pytest.raises(MinipovidError, match=sentence):
        export(run)
    assert not (run / "gguf").exists()


Edit = Callable[[dict[str, np.ndarray]], None]
Q1 = "base_model.model.model.language_model.layers.1.self_attn.q_proj"


def _extra(weights: dict[str, np.ndarray]) -> None:
    weights[Q1.replace("q_proj", "lora_magnitude_vector")] = np.ones(3, np.float32)


def _another_layer(weights: dict[str, np.ndarray]) -> None:
    for half in "AB":
        weights[f"{Q1.replace('layers.1', 'layers.7')}.lora_{half}.weight"] = weights[f"{Q1}.lora_{half}.weight"]


def _half(weights: dict[str, np.ndarray]) -> None:
    del weights[f"{Q1}.lora_B.weight"]


def _narrow(weights: dict[str, np.ndarray]) -> None:
    weights[f"{Q1}.lora_A.weight"] = np.ones((4, 63), np.float32)


def _broken(weights: dict[str, np.ndarray]) -> None:
    weights[f"{Q1}.lora_A.weight"] = np.full((4, 64), np.nan, np.float32)


def _huge(weights: dict[str, np.ndarray]) -> None:
    weights[f"{Q1}.lora_A.weight"] = np.full((4, 64), 1e9, np.float32)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (_extra, "lora_magnitude_vector, which is no LoRA matrix"),
        (_another_layer, r"changes language_model.layers.7.self_attn.q_proj.weight, which .* has not: it was"),
        (_half, r"holds only lora_A of .*layers.1.self_attn.q_proj"),
        (_narrow, r"\[64, 63\], but the base's is \[64, 64\]: it was trained on another model"),
        (_broken, r"layers.1.self_attn.q_proj.weight holds infinities or NaN"),
        (_huge, r"blk.1.attn_q.weight holds numbers beyond float16's 65,504"),
    ],
)
def test_every_adapter_tensor_is_merged_or_refused(make_run: Callable[..., Path], edit: Edit, sentence: str) -> None:
    run = make_run()
    path = run / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)
    with pytest.raises(MinipovidError, match=sentence):
        export(run, ["f16"])
    assert not list((run / "gguf").glob("toy*.gguf")) if (run / "gguf").exists() else True


@pytest.mark.parametrize(
    ("quants", "sentence"),
    [(["q3"], "no quantisation 'q3'; known: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m")],
)
def test_unknown_quant(make_run: Callable[..., Path], quants: list[str], sentence: str) -> None:
    with pytest.raises(MinipovidError, match=sentence):
        export(make_run(), quants)


def test_folders_that_are_no_finished_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    with pytest.raises(MinipovidError, match="is no run folder: it holds no recipe.yaml"):
        export(tmp_path)
    run = make_run()
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(MinipovidError, match="finish the training with `minipovid train` first"):
        export(run)


# --- files ---


def test_exact_files_and_a_second_run_writes_nothing(make_run: Callable[..., Path]) -> None:
    run = make_run()
    files = export(run)
    expected = ["toy-1.5-7B-minipovid-run-v1.0-F16.gguf", "toy-1.5-7B-minipovid-run-v1.0-Q8_0.gguf"]
    assert [file.name for file in files] == [*expected, "mmproj-toy-1.5-7B-minipovid-run-v1.0-F16.gguf"]
    there = {path.name for path in (run / "gguf").iterdir()}
    assert there == {file.name for file in files} | {"README.md", "Modelfile"}
    times = [file.stat().st_mtime_ns for file in files]
    calls: list[object] = []
    assert export(run, progress=lambda *call: calls.append(call)) == files
    assert not calls
    assert [file.stat().st_mtime_ns for file in files] == times


def test_changed_inputs_are_exported_again(base: Path, make_run: Callable[..., Path]) -> None:
    """Another adapter: all files again. One more quantisation: only that one."""
    run = make_run()
    before = contents(export(run, ["f16"])[0].parent)
    written: list[str] = []
    export(run, ["f16", "q8_0"], progress=lambda name, *_: written.append(name))
    assert {name.rpartition("-")[2] for name in written} == {"Q8_0.gguf"}
    tiny_llava.adapter(base, run / "adapter", seed=1)
    export(run, ["f16"])
    after = contents(run / "gguf")
    assert len(before) == 4
    assert all((before[name] != after[name]) == name.endswith(".gguf") for name in before)


def test_what_only_describes_a_model_does_not_write_it_again(base: Path, make_run: Callable[..., Path]) -> None:
    """A log that was not copied along, a licence that was fetched later: the numbers are the same."""
    run = make_run()
    (run / "log.jsonl").write_text('{"event": "data", "pairs": 3}\n')
    export(run, ["f16"])
    (run / "log.jsonl").unlink()
    written: list[str] = []
    export(run, ["f16"], progress=lambda name, *_: written.append(name))
    assert written == []


def test_another_adapter_takes_old_files_of_every_kind_away(base: Path, make_run: Callable[..., Path]) -> None:
    run = make_run()
    export(run, ["f16"])
    tiny_llava.adapter(base, run / "adapter", seed=1)
    export(run, ["q8_0"], mmproj="q8_0")
    assert {path.name[-9:-5] for path in (run / "gguf").glob("*.gguf")} == {"Q8_0"}


def test_k_quants_use_the_f16_file_that_is_there(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(model=tiny_llava.build(tmp_path / "wide-2b", hidden=256, ffn=512, heads=8, kv_heads=4))
    export(run, ["f16"])
    written: list[str] = []
    export(run, ["q4_k_m"], progress=lambda name, *_: written.append(name))
    assert written == []  # nothing but what llama.cpp wrote


# --- names ---


@pytest.mark.parametrize(
    ("run", "finetune"),
    [("beta02", "minipovid-beta02"), ("llava7b_qlora", "minipovid-llava7b-qlora"), ("v2", "minipovid-v2")]
    + [("мой", "minipovid"), ("x" * 200, "minipovid-" + "x" * 60)],
)
def test_a_runs_name_in_the_files_names(run: str, finetune: str) -> None:
    name = title("llava-hf/llava-1.5-7b-hf", 0, naming.finetune(run)).text("q8_0")
    assert name == f"llava-1.5-7B-{finetune}-v1.0-Q8_0.gguf"
    parts = naming.FILE_NAME.fullmatch(name)
    assert (parts["base"], parts["size"], parts["finetune"], parts["version"]) == ("llava-1.5", "7B", finetune, "v1.0")


def stems(run: Path) -> set[str]:
    return {path.name.removeprefix("mmproj-").rpartition("-")[0] for path in (run / "gguf").glob("*.gguf")}


def test_two_runs_of_one_base_have_two_names(make_run: Callable[..., Path]) -> None:
    for name in ("one", "two"):
        file = export(make_run(name), ["f16"])[0]
        assert stems(file.parents[1]) == {f"toy-1.5-7B-minipovid-{name}-v1.0"}
        assert field(file, "general.finetune") == f"minipovid-{name}"
        assert f"ollama create toy-1.5-7b-minipovid-{name}-v1.0 " in (file.parent / "README.md").read_text()


def test_an_old_run_keeps_its_files_names(base: Path, make_run: Callable[..., Path]) -> None:
    """Files from before runs were named in them are current, and what is added stands beside them; a new training
    gives them the new name, and a name that is asked for replaces every other."""
    run = make_run()
    export(run, ["f16"], name="x")
    for path in (run / "gguf").glob("*.gguf"):
        path.rename(path.with_name(path.name.replace("minipovid-x", "minipovid")))
    written: list[str] = []
    export(run, ["f16", "q8_0"], progress=lambda name, *_: written.append(name))
    assert set(written) == {"toy-1.5-7B-minipovid-v1.0-Q8_0.gguf"} and stems(run) == {"toy-1.5-7B-minipovid-v1.0"}
    tiny_llava.adapter(base, run / "adapter", seed=1)
    export(run, ["f16"])
    assert stems(run) == {"toy-1.5-7B-minipovid-run-v1.0"}
    export(run, ["f16"], name="other")
    assert stems(run) == {"toy-1.5-7B-minipovid-other-v1.0"}
    with pytest.raises(MinipovidError, match="--name '_' holds no letter or digit"):
        export(run, ["f16"], name="_")


def test_lm_studio_keeps_another_runs_files(base: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    runs = [make_run(name) for name in ("one", "two")]
    tiny_llava.adapter(base, runs[1] / "adapter", seed=1)
    for run in runs:
        export(run, ["f16"], name="same")
    place = lm_studio(runs[0] / "gguf", tmp_path / "models")
    before = contents(place)
    with pytest.raises(MinipovidError, match=r"holds the files of another run, .*; export under another name \(--name"):
        lm_studio(runs[1] / "gguf", tmp_path / "models")
    assert contents(place) == before and lm_studio(runs[0] / "gguf", tmp_path / "models") == place


def test_two_exports_at_once_are_one_too_many(make_run: Callable[..., Path]) -> None:
    run = make_run()
    sentence = "Another process is writing to .*gguf; wait until it is done"
    with alone(run / "gguf"), ThreadPoolExecutor(1) as other, pytest.raises(MinipovidError, match=sentence):
        other.submit(export, run).result()
    assert export(run)


def test_the_card_is_told_new_scores_without_the_base(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(model=tiny_llava.build(tmp_path / "gone-7b"))
    export(run, ["f16"])
    card = (run / "gguf" / "README.md").read_text()
    (tmp_path / "gone-7b").rename(tmp_path / "elsewhere")
    (run / "scores.json").write_text('{"pope.gguf": {"headline": ["f1"], "figures": {"f1": [0.5, 0.4, 0.6]}}}')
    refresh_card(run)
    assert (run / "gguf" / "README.md").read_text().replace(SCORES, "") == card


SCORES = """## Scores

| benchmark | by | figure | value | 95 % |
| --- | --- | --- | --- | --- |
| pope | gguf | f1 | 0.5 | 0.4 to 0.6 |

By `minipovid eval`, with 95 % intervals (bootstrap over pictures).

"""


class Stop(Exception):
    """What the test raises in the middle of a file."""


@pytest.mark.parametrize("at", ["mmproj", "Q8_0"])
def test_an_interrupted_export_is_finished_by_the_next(make_run: Callable[..., Path], at: str) -> None:
    run = make_run()
    expected = contents(export_copy(run, ["f16", "q8_0"])[0].parent)

    def stop(name: str, done: int, total: int) -> None:
        if at in name and 0 < done < total:
            raise Stop

    with pytest.raises(Stop):
        export(run, progress=stop)
    for name, data in contents(run / "gguf").items():
        assert name.startswith(".") or data == expected[name]  # nothing unfinished under a final name
    export(run)
    assert contents(run / "gguf") == expected


KILLED = """
import os, signal, sys
from pathlib import Path
from minipovid.export import export
def die(name, done, total):
    if "F16" in name and "mmproj" not in name and done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
export(Path(sys.argv[1]), progress=die)
"""


def test_a_killed_export_is_finished_by_the_next(make_run: Callable[..., Path]) -> None:
    run = make_run()
    expected = contents(export_copy(run, ["f16", "q8_0"])[0].parent)
    process = subprocess.run([sys.executable, "-c", KILLED, str(run)], capture_output=True, timeout=120)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    left = [name for name in contents(run / "gguf") if not name.startswith(".")]
    assert left == ["mmproj-toy-1.5-7B-minipovid-run-v1.0-F16.gguf"]
    assert any(name.startswith(".") for name in contents(run / "gguf"))
    export(run)
    assert contents(run / "gguf") == expected


# --- quantisations ---


def test_q8_0_is_within_half_a_step(make_run: Callable[..., Path]) -> None:
    """Blocks of 32 along a row share a step of max / 127; the step is a float16, so 127 steps add 127 / 2048."""
    exact, rounded = map(tensors, export(make_run(), ["f32", "q8_0"])[:2])
    for name, value in exact.items():
        if value.ndim == 1:
            assert np.array_equal(rounded[name], value)
            continue
        blocks = value.reshape(-1, 32)
        step = np.abs(blocks).max(1, keepdims=True) / 127
        assert (np.abs(rounded[name].reshape(-1, 32) - blocks) <= step * (0.5 + 127 / 2048)).all(), name
        assert not np.array_equal(rounded[name], value)


def test_k_quants_hold_k_blocks_and_leave_no_f16_behind(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    model = tiny_llava.build(tmp_path / "wide-2b", hidden=256, ffn=512, heads=8, kv_heads=4)
    run = make_run(model=model)
    files = export(run, ["q4_k_m", "q6_k"])
    assert {path.name for path in (run / "gguf").glob("*.gguf")} == {file.name for file in files}
    kinds = {t.tensor_type.name for t in gguf.GGUFReader(files[0]).tensors}
    assert kinds == {"F32", "Q4_K", "Q6_K"}
    exact = tensors(export(run, ["f32"])[0])
    error = {
        file.name[-11:-5]: np.abs(tensors(file)["blk.0.ffn_up.weight"] - exact["blk.0.ffn_up.weight"]).mean()
        for file in files[:2]
    }
    assert error["Q4_K_M"] < 0.1 * np.abs(exact["blk.0.ffn_up.weight"]).mean()
    assert error["0-Q6_K"] < error["Q4_K_M"] / 2


def test_bf16_and_f16_files_are_the_nearest_numbers(make_run: Callable[..., Path]) -> None:
    exact, half, brain = map(tensors, export(make_run(), ["f32", "f16", "bf16"])[:3])
    name = "blk.1.ffn_gate.weight"
    assert np.array_equal(half[name], exact[name].astype(np.float16).astype(np.float32))
    assert np.array_equal(brain[name], torch.from_numpy(exact[name]).bfloat16().float().numpy())


# --- names and metadata ---


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("language_model.model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.layers.3.mlp.up_proj.weight", "language_model.layers.3.mlp.up_proj.weight"),
        ("model.language_model.model.norm.weight", "language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", "vision_tower.encoder.layers.0.mlp.fc1.bias"),
        ("multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
    ],
)
def test_every_spelling_of_a_name(stored: str, canonical: str) -> None:
    assert llava.canonical(stored) == canonical


def test_spelling_shards_and_16_bit_storage_do_not_matter(tmp_path: Path) -> None:
    """The same float16 weights in one Hub-spelled file and in three files as transformers 5 saves them."""
    one = tiny_llava.build(tmp_path / "one-7b", dtype="float16")
    three = tiny_llava.build(tmp_path / "three-7b", dtype="float16", shards=3, spelling="saved")
    first, second = (export_base(str(folder), tmp_path / "out", ["f16"]) for folder in (one, three))
    for a, b in zip(first, second, strict=True):
        left, right = tensors(a), tensors(b)
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_a_missing_tensor_in_the_base_is_named(tmp_path: Path) -> None:
    """llama.cpp would tie a missing head to the embeddings without a word, and crash over a missing projector."""
    folder = tiny_llava.build(tmp_path / "odd")
    weights = load_file(folder / "model.safetensors")
    del weights["multi_modal_projector.linear_2.bias"], weights["language_model.lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(MinipovidError, match="holds no lm_head.weight and 1 more of its weights; fetch it again"):
        export_base(str(folder), tmp_path / "out", ["f16"])


def test_an_unknown_tensor_in_the_base_is_named(tmp_path: Path) -> None:
    folder = tiny_llava.build(tmp_path / "odd")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "language_model.model.adapter.gate": np.ones(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(MinipovidError, match="tensor language_model.adapter.gate belongs to no part of LLaVA"):
        export_base(str(folder), tmp_path / "out", ["f16"])


def test_mmproj_of_clip(base: Path, tmp_path: Path) -> None:
    """hidden_states[-2] of 4 layers: three blocks are written, layer 3 and the norm behind the tower are not."""
    path = export_base(str(base), tmp_path / "out", ["f16"])[-1]
    reader = gguf.GGUFReader(path)
    names = {t.name for t in reader.tensors}
    assert {name.split(".")[2] for name in names if name.startswith("v.blk")} == {"0", "1", "2"}
    assert not any("post_ln" in name for name in names)
    assert {"v.class_embd", "v.patch_embd.weight", "v.pre_ln.bias", "mm.0.bias", "mm.2.weight"} <= names
    assert len(names) == 3 + 2 + 3 * 16 + 4
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["v.patch_embd.weight"] == "F32" and kinds["v.blk.0.ffn_up.weight"] == "F16"
    assert field(path, "clip.vision.feature_layer") == [3]
    assert field(path, "clip.vision.block_count") == 3
    assert field(path, "clip.use_gelu") is None  # quick_gelu
    assert field(path, "clip.projector_type") == "mlp"
    assert field(path, "minipovid.image_transform") == "pad_bicubic_122_116_104"
    assert tuple(field(path, "clip.vision.image_mean")) == pytest.approx(tiny_llava.MEAN)


def test_an_8_bit_mmproj_keeps_its_projector_in_16(make_run: Callable[..., Path]) -> None:
    path = export(make_run(), ["f16"], mmproj="q8_0")[-1]
    assert path.name.endswith("-Q8_0.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["v.blk.0.ffn_up.weight"] == "Q8_0"
    assert (kinds["mm.0.weight"], kinds["mm.2.weight"], kinds["mm.0.bias"]) == ("F16", "F16", "F32")
    assert kinds["v.patch_embd.weight"] == "F32"


def test_text_metadata(make_run: Callable[..., Path]) -> None:
    run = make_run(use_rslora=True)
    path = export(run, ["f16"])[0]
    expected = {
        "general.architecture": "llama",
        "general.basename": "toy-1.5",
        "general.size_label": "7B",
        "general.finetune": "minipovid-run",
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": 416,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 401,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
        "minipovid.lora_rank": 4,
        "minipovid.lora_scale": 4.0,  # 8 / sqrt(4)
        "minipovid.family": "llava",
        "minipovid.adapter_sha256": lora.sha256(run / "adapter", llava.canonical),
    }
    assert {key: field(path, key) for key in expected} == expected
    tokens = field(path, "tokenizer.ggml.tokens")
    assert len(tokens) == len(set(tokens)) == 416
    assert tokens[400:403] == ["<image>", "<pad>", "[PAD402]"]
    assert field(path, "tokenizer.ggml.token_type")[399:403] == [1, 3, 3, 5]
    assert field(path, "tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]


@pytest.mark.parametrize(
    ("model", "stem"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7B-minipovid-v1.0"),
        ("llava-hf/llava-1.5-13b-hf", "llava-1.5-13B-minipovid-v1.0"),
        ("/models/My LLaVA_0.5b", "My-LLaVA-0.5B-minipovid-v1.0"),
        ("tinyworld", "tinyworld-1.3M-minipovid-v1.0"),
    ],
)
def test_file_names(model: str, stem: str) -> None:
    name = title(model, 1_310_000, "minipovid").text("q4_k_m")
    assert name == f"{stem}-Q4_K_M.gguf"
    assert re.fullmatch(r"[A-Za-z][\w.-]*?-\d+(\.\d+)?[KMB]-minipovid-v1\.0-[A-Z0-9_]+\.gguf", name)


def test_size_labels() -> None:
    assert [label(n) for n in (7_063_000_000, 13_000_000_000, 1_310_000, 139_600)] == ["7.1B", "13B", "1.3M", "139.6K"]


# --- tokenizer and template ---


@pytest.mark.parametrize("legacy", [True, False])
def test_llama_cpp_tokenises_like_the_model(tmp_path: Path, legacy: bool) -> None:
    """Both flavours of the tokenizer pass the check that each export makes, and are told apart."""
    folder = tiny_llava.build(tmp_path / "base", legacy=legacy)
    path = export_base(str(folder), tmp_path / "out", ["f16"])[0]
    assert field(path, "tokenizer.ggml.add_space_prefix") is legacy
    assert (field(path, "minipovid.first") or "") == ("" if legacy else " ")
    ids = vocabulary.load(folder)("USER: <image>\nx").input_ids
    assert (tiny_llava.piece("▁") in ids[ids.index(400) :]) is legacy  # they do differ behind the picture


def test_a_tokenizer_that_differs_is_refused_with_the_text(tmp_path: Path) -> None:
    """Merges left out of tokenizer.json: the same vocabulary, another way to cut a word."""
    folder = tiny_llava.build(tmp_path / "base")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][:-40]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(MinipovidError, match=r"llama.cpp tokenises '[^']+' as \[.*own tokenizer as \["):
        export_base(str(folder), tmp_path / "out", ["f16"])


# --- checkpoints ---


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_those_of_torch(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file as load_torch

    folder = tiny_llava.build(tmp_path / "base", dtype=dtype)
    expected = load_torch(folder / "model.safetensors")
    stored = Tensors(folder)
    assert set(stored) == set(expected)
    for name in ("language_model.lm_head.weight", "vision_tower.vision_model.embeddings.patch_embedding.weight"):
        assert np.array_equal(stored[name].rows(3, 9), expected[name][3:9].float().numpy())
    assert np.array_equal(
        stored["multi_modal_projector.linear_1.bias"].rows(60),
        expected["multi_modal_projector.linear_1.bias"][60:].float().numpy(),
    )


def test_models_that_cannot_be_had(base: Path, tmp_path: Path) -> None:
    assert resolve_model(str(base)) == base
    with pytest.raises(MinipovidError, match="neither a folder nor a Hub id such as"):
        resolve_model(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MinipovidError, match="lacks config.json, model.safetensors; copy the missing files there"):
        resolve_model(str(tmp_path / "empty"))


def test_weights_that_are_not_on_this_machine(monkeypatch: Any) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(MinipovidError, match=r"fetch them with `hf download llava-hf/llava-1.5-7b-hf --revision abc`"):
        resolve_model("llava-hf/llava-1.5-7b-hf", "abc")


def test_a_shard_cut_short_is_named(tmp_path: Path) -> None:
    folder = tiny_llava.build(tmp_path / "base", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(MinipovidError, match="00002-of-00002.safetensors is damaged or cut short"):
        Tensors(folder)
    shard.unlink()
    with pytest.raises(MinipovidError, match="lacks model-00002-of-00002.safetensors"):
        resolve_model(str(folder))


def test_an_index_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tiny_llava.build(tmp_path / "base", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(
        MinipovidError, match=r"points to '../model-00002-of-00002.safetensors', outside its own folder"
    ):
        Tensors(folder)


def test_a_changed_weight_changes_the_fingerprint(base: Path, tmp_path: Path) -> None:
    folder = tiny_llava.build(tmp_path / "base", seed=0)
    assert Tensors(folder).fingerprint() == Tensors(base).fingerprint()
    weights = load_file(folder / "model.safetensors")
    weights["language_model.model.norm.weight"][5] += 1e-3
    save_file(weights, folder / "model.safetensors")
    assert Tensors(folder).fingerprint() != Tensors(base).fingerprint()


def test_pair_reads_no_weight_before_it_writes(base: Path) -> None:
    """Opening a pair costs nothing: only headers, so wrong adapters are refused before minutes are spent."""
    pair = GgufPair(base, None, "toy", "float32")
    assert pair.title.stem == "toy-151.9K-base-v1.0"
    assert len(pair.places) == 3 + 2 * 9 + 57
