"""The table comes from the library, failures in C++ become sentences, and importance moves the error elsewhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from minipovid.common.errors import MinipovidError
from minipovid.export import quants, writer
from minipovid.export.quants import QUANTS
from minipovid.inference.llama_cpp.libraries import libraries

STAMP = "minipovid.inputs"
PARTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
Weights = dict[str, np.ndarray]


def weights(width: int, rows: int = 32, seed: int = 0) -> Weights:
    rng = np.random.default_rng(seed)
    names = ["token_embd", "output", *(f"blk.{layer}.{part}" for layer in range(2) for part in PARTS)]
    return {f"{name}.weight": rng.normal(size=(rows, width)).astype(np.float32) for name in names}


def model(path: Path, tensors: Weights) -> Path:
    """An F16 GGUF that llama.cpp quantises without running it."""
    width = next(iter(tensors.values())).shape[1]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 8,
        "llama.embedding_length": width,
        "llama.feed_forward_length": width,
        "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 32,
        STAMP: "of the source",
    }
    entries = [writer.TensorEntry(name, w.shape, Kind.F16, lambda w=w: iter([w])) for name, w in tensors.items()]
    writer.write(path, metadata, entries)
    return path


def read(path: Path) -> Weights:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def kinds(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


# --- the table ---


def test_the_table_is_the_library_s() -> None:
    """Every constant, with the number that llama.h gives it (llama_ftype), and only four that are written here."""
    by_hand = {"f32": 0, "f16": 1, "q8_0": 7, "q6_k": 18, "q5_k_m": 17, "q4_k_m": 15, "q4_k_s": 14, "iq4_nl": 25}
    assert {name: QUANTS[name].file_type for name in by_hand} == by_hand
    assert {name for name, quant in QUANTS.items() if quant.kind is not None} == {"f32", "f16", "bf16", "q8_0"}
    assert {"q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q5_k_s", "iq4_xs", "iq3_m", "iq1_s", "tq2_0"} <= set(QUANTS)
    assert len(QUANTS) == len({quant.file_type for quant in QUANTS.values()}) >= 30
    assert list(QUANTS)[: len(quants.HELP)] == list(quants.HELP)
    assert "guessed" not in QUANTS


def test_names() -> None:
    assert quants.valid_names(["Q4_K_M", "f16", "q4_k_m"]) == ["q4_k_m", "f16"]
    with pytest.raises(MinipovidError, match="no quantisation 'q4_km'; did you mean q4_k_m\\? known: f32, f16, bf16"):
        quants.valid_names(["q4_km"])
    assert quants.valid_mmproj("Q8_0") == "q8_0"
    with pytest.raises(MinipovidError, match="written as one of f32, f16, bf16, q8_0, not as q4_k_m; take f16 or q8_0"):
        quants.valid_mmproj("q4_k_m")


def test_which_need_an_importance_matrix() -> None:
    """llama.cpp's rule (src/llama-quant.cpp, tensor_requires_imatrix): one- and two-bit types, and iq3_xxs, which
    iq3_xs uses in its middle layers."""
    need = {name for name in QUANTS if name != "nvfp4" and quants.needs_imatrix(name)}
    ones_and_twos = {"iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "q2_k_s"}
    assert need == {*ones_and_twos, "iq3_xxs", "iq3_xs"}


def test_a_name_without_a_method_behind_it() -> None:
    with pytest.raises(MinipovidError, match=r"cannot make nvfp4 \(invalid output file type 39\)"):
        quants.needs_imatrix("nvfp4")


def test_kinds_of_tensors() -> None:
    """Vectors and `full` ones in float32; 8-bit blocks are 32 wide; `half` keeps a matrix at 16 bits, no more."""
    assert quants.kind_of("q8_0", (64, 64), False) is Kind.Q8_0
    assert quants.kind_of("q8_0", (64, 48), False) is Kind.F16
    assert quants.kind_of("q8_0", (64, 64), False, half=True) is Kind.F16
    assert quants.kind_of("f32", (64, 64), False, half=True) is Kind.F32
    assert quants.kind_of("f16", (64,), False) is quants.kind_of("f16", (64, 64), True) is Kind.F32


# --- llama.cpp's own ---


@pytest.mark.parametrize("quant", [name for name in quants.HELP if name not in quants.WRITTEN])
def test_each_sensible_one(tmp_path: Path, quant: str) -> None:
    """The error is that of so many bits: at least half of the numbers' spread is left of 3 bits, 1/40 of 6."""
    exact = weights(256)
    source = model(tmp_path / "source.gguf", exact)
    quants.by_llama_cpp(source, tmp_path / "target.gguf", quant, n_threads=1)
    got = read(tmp_path / "target.gguf")
    error = np.sqrt(np.mean([np.square(got[name] - exact[name]).mean() for name in exact]))
    assert 0.005 < error < {"q6_k": 0.025, "q5_k_m": 0.05, "q4_k_m": 0.1, "iq4_xs": 0.12}.get(quant, 0.2)
    assert gguf.GGUFReader(tmp_path / "target.gguf").get_field("general.file_type").contents() == (
        QUANTS[quant].file_type
    )


def test_keys_are_replaced(tmp_path: Path) -> None:
    source = model(tmp_path / "source.gguf", weights(256))
    quants.by_llama_cpp(source, tmp_path / "kept.gguf", "q4_k_m")
    quants.by_llama_cpp(source, tmp_path / "new.gguf", "q4_k_m", keys={STAMP: "a" * 64, "minipovid.imatrix": "b" * 64})
    assert writer.stamp(tmp_path / "kept.gguf", STAMP) == "of the source"
    assert writer.stamp(tmp_path / "new.gguf", STAMP) == "a" * 64
    assert writer.stamp(tmp_path / "new.gguf", "minipovid.imatrix") == "b" * 64


def test_odd_widths_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rows of 96 hold no block of 256: q5_0 and q8_0 (blocks of 32) stand in. Rows of 40 hold none at all: f16."""

    def said(width: int) -> tuple[list[str], str]:
        target = tmp_path / f".{width}-Q4_K_M.gguf.draft"
        caplog.clear()
        with caplog.at_level(logging.INFO, "minipovid"):
            quants.by_llama_cpp(model(tmp_path / f"{width}.gguf", weights(width)), target, "q4_k_m")
        got = kinds(target)
        del got["output.weight"]  # has a rule of its own for odd widths
        return list(got.values()), " ".join(r.message for r in caplog.records if r.name.startswith("minipovid"))

    stored, text = said(96)
    assert text.startswith("96-Q4_K_M.gguf: rows that are no multiple of 256 wide are stored otherwise: ")
    assert {*stored} == {"Q5_0", "Q8_0"}
    assert all(f"{stored.count(kind)} as {kind.lower()} (" in text for kind in ("Q5_0", "Q8_0"))
    stored, text = said(40)
    assert {*stored} == {"F16"} and "16 as f16 (output.weight, ...)" in text
    assert said(256)[1] == ""


def test_failures_are_sentences(tmp_path: Path) -> None:
    source = model(tmp_path / "source.gguf", weights(256))
    target = tmp_path / "target.gguf"
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(source.read_bytes()[:-1000])
    for from_, to, quant, sentence in [
        (source, Path("/dev/full"), "q4_k_m", r"could not write full as q4_k_m .*the disk may be full"),
        (source, tmp_path / "none" / "x.gguf", "q4_k_m", r"could not write x.gguf .*the file cannot be written"),
        (cut, target, "q4_k_m", "not within the file bounds"),
        (tmp_path / "none.gguf", target, "q4_k_m", "from none.gguf .*failed to load model"),
        (source, target, "iq2_xxs", "iq2_xxs needs an importance matrix; set export.imatrix"),
        (source, target, "nvfp4", "cannot make nvfp4"),
    ]:
        with pytest.raises(MinipovidError, match=sentence):
            quants.by_llama_cpp(from_, to, quant)
    wrong = {"blk.0.ffn_up.weight": np.ones(64, np.float32)}
    with pytest.raises(MinipovidError, match="imatrix size 64 is different from tensor size 256 for blk.0.ffn_up"):
        quants.by_llama_cpp(source, target, "q4_k_m", wrong)


def test_a_file_that_ends_early_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should llama.cpp ever say 0 and leave half a file, it is noticed."""
    source = model(tmp_path / "source.gguf", weights(256))

    def half(_: Path, target: Path, *__: object) -> None:
        target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])

    monkeypatch.setattr(quants, "_quantize", half)
    with pytest.raises(MinipovidError, match="left target.gguf incomplete"):
        quants.by_llama_cpp(source, tmp_path / "target.gguf", "q4_k_m")


def test_the_log_goes_back_to_whom_it_was(tmp_path: Path) -> None:
    """The runtime listens to llama.cpp too; a quantisation in between must not leave it deaf."""
    import ctypes

    import llama_cpp

    heard: list[bytes] = []
    callback = llama_cpp.llama_log_callback(lambda level, text, _: heard.append(text))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        quants.by_llama_cpp(model(tmp_path / "source.gguf", weights(256)), tmp_path / "target.gguf", "q4_k_m")
        assert not heard
        assert llama_cpp.llama_model_load_from_file(b"/none.gguf", llama_cpp.llama_model_default_params()) is None
        assert heard
    finally:
        libraries.cache_clear()
        libraries()


# --- with an importance matrix ---


@pytest.mark.parametrize("quant", ["q4_k_m", "q3_k_m", "iq4_xs"])
def test_importance_moves_the_error_to_columns_that_matter_less(tmp_path: Path, quant: str) -> None:
    """Column energies spread over e^(±2); what counts is sum_j energy_j * error_j^2, which must fall by a tenth."""
    exact = weights(256, rows=64)
    energy = np.exp(np.random.default_rng(1).normal(0, 2, 256)).astype(np.float32)
    source = model(tmp_path / "source.gguf", exact)

    def cost(name: str, imatrix: quants.Importance | None) -> float:
        quants.by_llama_cpp(source, tmp_path / name, quant, imatrix)
        got = read(tmp_path / name)
        return float(sum((np.square(got[each] - exact[each]) * energy).sum() for each in exact))

    plain, weighted = cost("plain.gguf", None), cost("weighted.gguf", dict.fromkeys(exact, energy))
    assert kinds(tmp_path / "plain.gguf").keys() == kinds(tmp_path / "weighted.gguf").keys()
    assert weighted < 0.9 * plain, json.dumps([plain, weighted])


def test_two_bits_with_an_importance_matrix(tmp_path: Path) -> None:
    source = model(tmp_path / "source.gguf", weights(256))
    ones = dict.fromkeys(weights(256), np.ones(256, np.float32))
    quants.by_llama_cpp(source, tmp_path / "target.gguf", "iq2_xxs", ones)
    assert kinds(tmp_path / "target.gguf")["blk.0.attn_q.weight"] == "IQ2_XXS"
