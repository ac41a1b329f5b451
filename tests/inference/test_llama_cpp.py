"""llama.cpp against transformers: the same features, tokens and probabilities for the same picture and prompt."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_llava
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from twin import QUESTIONS, Twin, cosines, picture

from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.export.gguf_pair import GgufPair
from minipovid.images import load as images
from minipovid.inference.llama_cpp import Runtime, Sampling, find_pair, libraries
from minipovid.inference.llama_cpp.stream import whole
from minipovid.models.chat_template import VICUNA, Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.build(tmp_path_factory.mktemp("models") / "tiny-7b", dtype="float16")


@pytest.fixture(scope="module")
def twin(folder: Path) -> Twin:
    return Twin(folder)


@pytest.fixture(scope="module")
def files(folder: Path) -> list[Path]:
    return export_base(str(folder), folder.parent / "gguf", ["f16", "f32"])


@pytest.fixture(scope="module")
def runtime(files: list[Path]) -> Iterator[Runtime]:
    with Runtime(files[0], files[-1], n_ctx=256) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def exact(folder: Path, files: list[Path]) -> Iterator[Runtime]:
    """Everything in float32: weights of both files and the memory."""
    vision = folder.parent / "exact-mmproj.gguf"
    GgufPair(folder, None, "tiny", "float32").write_mmproj(vision, "f32")
    with Runtime(files[1], vision, n_ctx=256, kv_f32=True) as runtime:
        yield runtime


# --- numbers ---


def test_features_equal_those_of_transformers(runtime: Runtime, twin: Twin) -> None:
    """Cosine of every image token at least 0.9999; both sides are [16, 64]."""
    for seed in range(6):
        ours, theirs = runtime.embed(picture(seed)), twin.features(picture(seed))
        assert ours.shape == theirs.shape == (16, 64)
        assert cosines(ours, theirs).min() > 0.9999


@pytest.mark.parametrize("legacy", [True, False])
def test_greedy_answers_equal_those_of_transformers(tmp_path: Path, legacy: bool) -> None:
    """Of the choices made with equal words before them at least 99 % are equal, and so are 22 of 24 whole answers.

    Random models are unsure: one answer in a hundred meets two tokens within 0.01 logits (120 answers measured).
    """
    equal, choices, wrong = 0, 0, 0
    for seed in range(2):
        folder = tiny_llava.build(tmp_path / str(seed), seed=seed + 10 * legacy, dtype="float16", legacy=legacy)
        twin, files = Twin(folder), export_base(str(folder), tmp_path / "gguf" / str(seed), ["f16"])
        with Runtime(*files, n_ctx=256) as runtime:
            for number in range(12):
                question = QUESTIONS[number % 4]
                expected = twin.answer_ids(picture(number), question, 12)
                ours = runtime.answer_ids(picture(number), question, 12)
                equal += ours == expected
                wrong += ours != expected
                differs = [a != b for a, b in zip(ours, expected, strict=False)]
                choices += differs.index(True) + 1 if True in differs else len(differs)
    assert equal >= 22 and wrong <= 0.01 * choices
    assert choices > 200


def test_log_probs_equal_those_of_transformers(runtime: Runtime, exact: Runtime, twin: Twin) -> None:
    """Per token within 0.02 at F16 (weights are float16 on both sides) and 0.01 with all in float32, of about -12.

    The rest is llama.cpp's GELU, which looks its values up in a float16 table. Measured over 120 answers of 11 tokens:
    largest difference 0.0096 and 0.0069, median of the sums' 0.005 and 0.002.
    """
    sums: dict[Runtime, list[float]] = {runtime: [], exact: []}
    for number in range(6):
        answer = ["A red circle is left of the blue square.", "No.", "Ω 猫"][number % 3]
        expected = twin.logps(picture(number), QUESTIONS[number % 4], answer)
        for backend, tolerance in ((runtime, 0.02), (exact, 0.01)):
            ours = np.array(backend.logps(picture(number), QUESTIONS[number % 4], answer))
            assert ours.shape == expected.shape
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)
            sums[backend].append(abs(ours.sum() - expected.sum()))
    assert np.median(sums[runtime]) < 0.01
    assert np.median(sums[exact]) < 4e-3


def test_logits_equal_those_of_transformers(exact: Runtime, twin: Twin) -> None:
    """All of a position's numbers, of about 3 in size, within 0.01."""
    ours = exact.logits(picture(1), QUESTIONS[1], "A red circle.")
    assert ours.dtype == np.float32 and ours.shape == (len(exact.answer_tokens(QUESTIONS[1], "A red circle.")), 416)
    np.testing.assert_allclose(ours, twin.logits(picture(1), QUESTIONS[1], "A red circle."), rtol=0, atol=0.01)


@pytest.mark.parametrize("question", QUESTIONS)
def test_tokens_equal_those_of_training(runtime: Runtime, twin: Twin, question: str) -> None:
    ids = [tiny_llava.IMAGE if token == -1 else token for token in runtime.prompt_ids(question)]
    assert ids == twin.prompt_ids(question)
    assert ids + runtime.answer_tokens(question, "A red\nΩ.") == twin._ids(question, "A red\nΩ.")


def test_answers_end_at_end_of_sequence(tmp_path: Path) -> None:
    """A head that leans towards </s>: answers of several lengths, and end-of-sequence is no part of them.

    One answer in eight may meet a tie on the way.
    """
    folder = tiny_llava.build(tmp_path / "base", dtype="float16")
    weights = load_file(folder / "model.safetensors")
    weights["language_model.lm_head.weight"][2] *= np.float16(1.7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    twin = Twin(folder)
    with Runtime(*export_base(str(folder), tmp_path / "gguf", ["f16"]), n_ctx=256) as runtime:
        ours = [runtime.answer_ids(picture(number), "What is this?", 40) for number in range(8)]
    theirs = [twin.answer_ids(picture(number), "What is this?", 40) for number in range(8)]
    agreed = [a for a, b in zip(ours, theirs, strict=True) if a == b]
    assert len(agreed) >= 7
    assert min(map(len, agreed)) < 40 and len(set(map(len, agreed))) > 2
    assert not any(2 in answer for answer in ours)


def test_answer_is_the_text_of_its_tokens(runtime: Runtime, twin: Twin) -> None:
    ids = twin.tokenizer(" A red Ω 猫.", add_special_tokens=False).input_ids
    assert whole([runtime._language.piece(token) for token in [*ids, tiny_llava.PAD]]) == "A red Ω 猫."
    answer = runtime.answer(picture(1), "What is this?", 6)
    ids = runtime.answer_ids(picture(1), "What is this?", 6)
    assert answer == whole([runtime._language.piece(token) for token in ids]) != ""


@pytest.mark.parametrize("room", [1, 3, 400])
def test_tokens_that_need_more_room(runtime: Runtime, room: int) -> None:
    """More tokens than expected are asked for again; none is lost."""
    text = "A red Ω 猫 is left of the blue square. " * 4
    expected = runtime._language.tokens(text, begin=True)
    assert len(expected) > 40
    assert runtime._language._tokens(text.encode(), True, room) == expected


def test_max_tokens(runtime: Runtime) -> None:
    long = runtime.answer_ids(picture(0), "What is this?", 9)
    assert len(long) == 9
    assert runtime.answer_ids(picture(0), "What is this?", 1) == long[:1]
    assert runtime.answer_ids(picture(0), "What is this?", 0) == []


def test_the_context_is_what_the_model_was_trained_for(files: list[Path], tmp_path: Path) -> None:
    """512 here, and 2048 at most unless asked for; beyond what was trained, answers would be noise."""
    with Runtime(files[0], files[-1]) as runtime:
        assert runtime.n_ctx == 512
    with Runtime(files[0], files[-1], n_ctx=512) as runtime:
        assert runtime.n_ctx == 512
    name = files[0].name
    with pytest.raises(MinipovidError, match=rf"n_ctx is 513, but {name} was trained for 512 tokens; ask for 512 at"):
        Runtime(files[0], files[-1], n_ctx=513)
    wide = {"text_config": {"max_position_embeddings": 4096}}
    base = tiny_llava.build(tmp_path / "wide-7b", dtype="float16", settings=wide)
    text = export_base(str(base), tmp_path / "gguf", ["f16"])[0]
    for asked, found in ((None, 2048), (2304, 2304)):
        with Runtime(text, None, n_ctx=asked) as runtime:
            assert runtime.n_ctx == found


def test_answers_stop_where_the_context_ends(files: list[Path]) -> None:
    with Runtime(files[0], files[-1], n_ctx=256) as runtime:
        ids = runtime.answer_ids(picture(0), "What is this?", 1000)
        prompt = len(runtime.prompt_ids("What is this?")) - 1 + 16
        assert len(ids) == 256 - prompt + 1  # the last token needs no room: nothing follows it
        with pytest.raises(MinipovidError, match="more than the context of 256; shorten it or raise n_ctx"):
            runtime.answer(picture(0), "word " * 300)
        assert runtime.answer_ids(picture(0), "What is this?", 20) == ids[:20]


# --- other models ---


@pytest.mark.parametrize(("text", "tower"), [("mistral", "clip"), ("qwen2", "siglip")])
def test_other_language_models_and_towers(tmp_path: Path, text: str, tower: str) -> None:
    """Their own chat, their own tokens, their own way with pictures: tokens equal, log-probs within 0.02."""
    folder = tiny_llava.build(tmp_path / "tiny-7b", text=text, tower=tower, dtype="float16")
    twin = Twin(folder)
    image = twin.model.config.image_token_id
    with Runtime(*export_base(str(folder), tmp_path / "gguf", ["f16"]), n_ctx=256) as runtime:
        assert runtime.chat == twin.chat != VICUNA
        for number, question in enumerate(QUESTIONS):
            assert [image if id == -1 else id for id in runtime.prompt_ids(question)] == twin.prompt_ids(question)
            theirs = twin.logps(picture(number), question, "A red circle.")
            np.testing.assert_allclose(runtime.logps(picture(number), question, "A red circle."), theirs, atol=0.02)


# --- pictures ---


def test_a_file_is_seen_upright_and_again_when_it_changes(runtime: Runtime, tmp_path: Path) -> None:
    upright = picture(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its left side
    path = tmp_path / "photo.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert np.array_equal(runtime.embed(path), runtime.embed(upright))
    picture(2).convert("L").save(path)
    assert np.array_equal(runtime.embed(path), runtime.embed(picture(2).convert("L")))


def test_a_picture_is_seen_the_same_from_a_file_and_opened(runtime: Runtime, tmp_path: Path) -> None:
    """Transparent, lying on its side, of 16 bits, with a palette; a tag that is gone is not followed again."""
    upright, exif = picture(1), Image.Exif()
    exif[0x0112] = 6
    clear = upright.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    grey = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    made = {"clear.png": clear, "lying.jpg": upright, "deep.png": grey, "few.gif": upright.quantize(5)}
    for name, image in made.items():
        path = tmp_path / name
        image.save(path, **({"exif": exif} if name == "lying.jpg" else {}))
        seen = [runtime._vision_model().look(image) for image in (path, Image.open(path), images.load(path))]
        assert seen[0].digest == seen[1].digest == seen[2].digest
        with Image.open(path) as plain:
            other = runtime.transform.canvas(plain.convert("RGB"))
        assert (other != seen[0].canvas).any() == (name in ("clear.png", "lying.jpg", "deep.png"))
    assert runtime.answer(Image.open(path), "What is this?", 8) == runtime.answer(path, "What is this?", 8)


def test_an_open_picture_that_cannot_be_seen(runtime: Runtime) -> None:
    with pytest.raises(MinipovidError, match="The picture in memory has floating-point samples; save it with 8 or 16"):
        runtime.answer(Image.new("F", (4, 4)), "What?")


def test_pictures_that_cannot_be_read(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="There is no picture"):
        runtime.answer(tmp_path / "none.png", "What?")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(MinipovidError, match="is not a picture"):
        runtime.answer(tmp_path / "text.png", "What?")


# --- files and errors ---


def test_find_pair(files: list[Path], tmp_path: Path) -> None:
    f16, f32, vision = files
    assert find_pair(f16.parent) == (f32, vision)  # the largest is the most exact
    assert find_pair(f16.parent.parent, "F16") == (f16, vision)  # a run folder
    with pytest.raises(MinipovidError, match=r"holds only f16, f32; write .* `minipovid export .* --quant q8_0`"):
        find_pair(f16.parent, "q8_0")
    with pytest.raises(MinipovidError, match="holds no GGUF files; write the files with `minipovid export"):
        find_pair(tmp_path)
    (tmp_path / "a-7B-x-v1.0-F16-LoRA.gguf").touch()  # an adapter is no model
    with pytest.raises(MinipovidError, match="holds no GGUF files"):
        find_pair(tmp_path)
    for name in ("a-7B-x-v1.0-F16.gguf", "b-7B-x-v1.0-F16.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(MinipovidError, match=r"files of several models: a-7B-x-v1.0, b-7B-x-v1.0\."):
        find_pair(tmp_path)
    (tmp_path / "b-7B-x-v1.0-F16.gguf").unlink()
    with pytest.raises(MinipovidError, match="holds no mmproj for a-7B-x-v1.0-F16.gguf"):
        find_pair(tmp_path)
    for size, quant in enumerate(("Q8_0", "F16")):
        (tmp_path / f"mmproj-a-7B-x-v1.0-{quant}.gguf").write_bytes(b"x" * size)
    assert find_pair(tmp_path)[1].name == "mmproj-a-7B-x-v1.0-F16.gguf"


def test_find_pair_takes_files_that_others_named(tmp_path: Path) -> None:
    """As they lie on the Hub: one file of each kind, the vision side told by its name."""
    for name in ("ggml-model-q4_k.gguf", "llava-mmproj-model-f16.gguf", "mine-F16-LoRA.gguf"):
        (tmp_path / name).touch()
    text, vision = find_pair(tmp_path)
    assert (text.name, vision.name) == ("ggml-model-q4_k.gguf", "llava-mmproj-model-f16.gguf")
    (tmp_path / "other-mmproj.gguf").touch()
    with pytest.raises(MinipovidError, match="holds no mmproj for ggml-model-q4_k.gguf"):
        find_pair(tmp_path)


Break = Callable[[Path, Path], tuple[Path, Path]]


def _missing(text: Path, vision: Path) -> tuple[Path, Path]:
    return text.with_name("none.gguf"), vision


def _swapped(text: Path, vision: Path) -> tuple[Path, Path]:
    return text, text


def _damaged(text: Path, vision: Path) -> tuple[Path, Path]:
    text.write_bytes(text.read_bytes()[:100_000])
    return text, vision


def _foreign(text: Path, vision: Path, source: Path | None = None) -> tuple[Path, Path]:
    text.write_bytes((source or text).read_bytes().replace(b"minipovid.", b"someoneel."))
    return text, vision


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_missing, "There is no file .*none.gguf; `minipovid export` writes"),
        (_swapped, "is no mmproj file: it holds no vision tower"),
        (_damaged, "llama.cpp cannot load .*F16.gguf"),
        (_foreign, "was not written by `minipovid export`"),
    ],
)
def test_files_that_cannot_be_used(files: list[Path], tmp_path: Path, change: Break, sentence: str) -> None:
    copies = [tmp_path / file.name for file in (files[0], files[-1])]
    for source, copy in zip((files[0], files[-1]), copies, strict=True):
        copy.write_bytes(source.read_bytes())
    with pytest.raises(MinipovidError, match=sentence):
        Runtime(*change(*copies), n_ctx=256)


def test_a_pair_of_two_models(files: list[Path], tmp_path: Path) -> None:
    other = tiny_llava.build(tmp_path / "other", hidden=96, heads=6, kv_heads=3)
    vision = export_base(str(other), tmp_path / "gguf", ["f16"])[-1]
    with pytest.raises(MinipovidError, match="cannot load .*mmproj.* beside its language model"):
        Runtime(files[0], vision, n_ctx=256)


def test_what_would_be_obeyed_is_refused(runtime: Runtime, folder: Path) -> None:
    """The file's own list is the tokenizer's; each of them is refused wherever a text of the user's stands."""
    from transformers import AutoTokenizer

    wanted = set(AutoTokenizer.from_pretrained(folder).all_special_tokens) | {"<image>"}
    assert set(runtime.chat.special.texts) == wanted and runtime.chat.special.ends == ("</s>",)
    asks: list[Callable[[str], object]] = [
        lambda text: runtime.answer(picture(0), text),
        lambda text: runtime.say([Turn("system", text), Turn("user", "Why?")]),
        lambda text: runtime.answer_tokens("Why?", text),
        runtime.prompt_ids,
    ]
    for token in wanted:
        for ask in asks:
            with pytest.raises(MinipovidError, match=f"holds .*{token}.*leave it out"):
                ask(f"What is {token} for?")
    assert runtime.answer_tokens("Why?", "Yes. </s>") == runtime.answer_tokens("Why?", "Yes.")


def test_llama_cpp_not_installed(files: list[Path], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    libraries.libraries.cache_clear()
    with pytest.raises(
        MinipovidError, match="install it with `pip install llama-cpp-python --extra-index-url https://"
    ):
        Runtime(files[0], files[-1])
    monkeypatch.undo()
    libraries.libraries.cache_clear()


def test_silence_and_closing(files: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Runtime(files[0], files[-1], n_ctx=256)
    runtime.answer(picture(0), "What is this?", 3)
    reply = runtime.say([Turn("user", "What is this?", (picture(0),))])
    next(reply)
    runtime.close()
    runtime.close()
    for late in (lambda: next(reply), lambda: runtime.answer(picture(0), "?"), lambda: runtime.embed(picture(5))):
        with pytest.raises(MinipovidError, match="The runtime is closed; open it again"):
            late()
    assert capfd.readouterr() == ("", "")


def test_neither_torch_nor_transformers_is_imported(files: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from minipovid.inference.llama_cpp import Runtime\n"
        f"with Runtime(Path({str(files[0])!r}), Path({str(files[-1])!r}), n_ctx=256) as runtime:\n"
        "    runtime.answer(Image.new('RGB', (9, 9)), 'What?', 2)\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- an adapter beside the model, a model without eyes, a look inside ---


def write_lora(adapter: Path, path: Path, **keys: str) -> Path:
    """A LoRA GGUF of a PEFT adapter with alpha 8, written by hand; rows of q and k in llama.cpp's order of heads."""
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for key, value in keys.items():
        writer.add_string(f"minipovid.{key}", value)
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        layer, module, side = re.fullmatch(r".*layers\.(\d+)\.(\S+)\.lora_([AB])\.weight", name).groups()  # type: ignore
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(module)
        if side == "B" and heads:
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))
        writer.add_tensor(f"blk.{layer}.{names[module]}.weight.lora_{side.lower()}", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return tiny_llava.adapter(folder, folder.parent / "adapter")


def test_an_adapter_beside_the_model(folder: Path, files: list[Path], adapter: Path, tmp_path: Path) -> None:
    """Within 0.02 of PEFT's own merge; its scale counts, and without it the answer is another."""
    lora = write_lora(adapter, tmp_path / "tiny-LoRA.gguf")
    ask = (picture(1), "What is this?", "A red circle.")
    plain, tuned = Twin(folder).logps(*ask), Twin(folder, adapter).logps(*ask)
    assert abs(plain - tuned).max() > 0.5
    for scale, expected in ((1.0, tuned), (0.0, plain)):
        with Runtime(files[1], files[-1], n_ctx=256, lora=lora, lora_scale=scale) as runtime:
            np.testing.assert_allclose(runtime.logps(*ask), expected, atol=0.02)


def test_a_foreign_base_needs_the_keys_of_our_adapter(files: list[Path], adapter: Path, tmp_path: Path) -> None:
    """Anyone's LLaVA: its file does not say how a prompt is written, so the adapter's does; long keys are whole."""
    base = _foreign(tmp_path / "theirs.gguf", files[-1], files[1])[0]
    chat = replace(VICUNA, begin="Be brief. " * 60)
    with pytest.raises(MinipovidError, match="theirs.gguf was not written by `minipovid export`"):
        Runtime(base, files[-1], n_ctx=256, lora=write_lora(adapter, tmp_path / "bare-LoRA.gguf"))
    lora = write_lora(adapter, tmp_path / "a-LoRA.gguf", chat=chat.dumps(), first=" ", family="llava")
    with Runtime(base, files[-1], n_ctx=512, lora=lora) as runtime:
        assert runtime.chat == chat
        assert runtime._language.first == " "
    with Runtime(files[1], files[-1], n_ctx=512, lora=lora) as runtime:
        assert runtime.chat == chat  # what the adapter was trained with, also beside a model of ours


def test_an_adapter_that_the_model_already_holds(
    folder: Path, files: list[Path], adapter: Path, tmp_path: Path
) -> None:
    """It would be added twice. One that was trained further is another one; so is any on a base."""
    merged = GgufPair(folder, adapter, "tiny", "float16")
    text = tmp_path / "merged-F16.gguf"
    merged.write_text(text, "f16", "original")
    same = write_lora(adapter, tmp_path / "a-LoRA.gguf", adapter_sha256=str(merged.adapter_sha256))
    other = write_lora(adapter, tmp_path / "b-LoRA.gguf", adapter_sha256="0" * 64)
    with pytest.raises(MinipovidError, match=r"^merged-F16.gguf already holds this adapter; leave --lora out\.$"):
        Runtime(text, files[-1], lora=same)
    for model, lora in ((text, other), (files[0], same)):
        Runtime(model, files[-1], lora=lora).close()


def test_an_adapter_of_another_model(files: list[Path], adapter: Path, tmp_path: Path) -> None:
    other = tiny_llava.build(tmp_path / "other-7b", hidden=96, heads=6, kv_heads=3)
    text, vision = export_base(str(other), tmp_path / "gguf", ["f16"])
    with pytest.raises(MinipovidError, match=r"cannot add .*a-LoRA.gguf to other-.*; take the base model that"):
        Runtime(text, vision, lora=write_lora(adapter, tmp_path / "a-LoRA.gguf"))
    with pytest.raises(MinipovidError, match="There is no file .*none.gguf"):
        Runtime(text, vision, lora=tmp_path / "none.gguf")


def test_a_model_without_eyes(files: list[Path]) -> None:
    with Runtime(files[0], None, n_ctx=256) as runtime:
        assert runtime.class_token == "no class token"
        assert "".join(runtime.say([Turn("user", "What is this?")], Sampling(max_tokens=5)))
        with pytest.raises(MinipovidError, match="was opened without its mmproj, so it sees no pictures"):
            runtime.answer(picture(0), "What is this?")


@pytest.mark.parametrize("number", [0, 1])
def test_inputs_of_every_product(folder: Path, files: list[Path], twin: Twin, number: int) -> None:
    """Those of transformers' linear layers, row by row, the picture's 16 among them; F16 and F32 files alike.

    15 weights: seven in each of two layers, and the head, which sees only the rows whose logits are wanted. Of the last
    layer llama.cpp computes only these rows behind the attention.
    """
    seen: dict[str, list[np.ndarray]] = {}
    with Runtime(
        files[number], files[-1], n_ctx=256, observe=lambda name, x: seen.setdefault(name, []).append(x)
    ) as runtime:
        rows = (
            len(runtime.prompt_ids("What is this?")) - 1 + 16 + len(runtime.answer_tokens("What is this?", "No.")) - 1
        )
        logits = runtime.logits(picture(1), "What is this?", "No.")
    assert all(len(x) for parts in seen.values() for x in parts)
    found = {name: np.concatenate(parts) for name, parts in seen.items()}
    theirs: dict[str, np.ndarray] = {}
    for name, module in twin.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: theirs.__setitem__(name, x[0][0].numpy()))
    twin.logits(picture(1), "What is this?", "No.")
    for module in twin.model.modules():
        module._forward_pre_hooks.clear()
    assert len(found) == 15
    for gguf_name, module in (
        *(("blk.0.attn_q", "layers.0.self_attn.q_proj"), ("blk.1.attn_v", "layers.1.self_attn.v_proj")),
        *(("blk.0.attn_output", "layers.0.self_attn.o_proj"), ("blk.0.ffn_down", "layers.0.mlp.down_proj")),
    ):
        ours, (expected,) = (
            found[f"{gguf_name}.weight"],
            [x for name, x in theirs.items() if name.endswith("language_model." + module)],
        )
        assert ours.dtype == np.float32 and ours.shape == (rows, expected.shape[1])
        np.testing.assert_allclose(ours, expected[:rows], atol=0.03 * abs(expected).max())
    assert found["output.weight"].shape == found["blk.1.ffn_up.weight"].shape == (len(logits), 64)


def test_an_observer_that_fails(files: list[Path]) -> None:
    """Its exception comes out as it is, and the model can be asked again."""
    patience = [3]

    def observe(name: str, x: np.ndarray) -> None:
        patience[0] -= 1
        if not patience[0]:
            raise KeyError(name)

    with Runtime(files[0], files[-1], n_ctx=256, observe=observe) as runtime:
        with pytest.raises(KeyError, match="blk.0"):
            runtime.logps(picture(0), "What is this?", "No.")
        again = runtime.logps(picture(0), "What is this?", "No.")
    with Runtime(files[0], files[-1], n_ctx=256) as plain:
        assert plain.logps(picture(0), "What is this?", "No.") == again
