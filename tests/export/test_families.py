"""Each pairing of tower and language model: transformers in float32 is the oracle of what llama.cpp computes.

The three pairings are those of the Hub: LLaVA 1.5 (CLIP, Llama), llava-interleave-qwen (SigLIP, Qwen2) and BakLLaVA
(CLIP, Mistral), with random weights. `wide` is 256 wide, the narrowest that K-quants take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_llava
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaConfig, LlavaForConditionalGeneration

from minipovid.common.errors import MinipovidError
from minipovid.export import vocabulary
from minipovid.export.gguf_pair import GgufPair
from minipovid.inference.llama_cpp import Runtime
from minipovid.models import chat_template, load
from minipovid.models.encoder import Encoder
from minipovid.models.families import llava
from minipovid.models.parts import Place
from minipovid.models.parts import vision as vision_layout
from minipovid.pairs.pair import Pair
from minipovid.recipe.schema import LoraSection, ModelSection
from minipovid.train import data, scoring
from minipovid.train.batch import Batch
from minipovid.train.losses import View

PAIRINGS = {"clip-llama": ("clip", "llama"), "siglip-qwen2": ("siglip", "qwen2"), "clip-mistral": ("clip", "mistral")}
SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    "wide": {"hidden": 256, "ffn": 512, "vision_hidden": 256, "image_size": 56, "patch_size": 14},
}
QUESTIONS = ["What is this?", "Is there a red circle?", "Describe the picture.", "Which shapes\nare there: 2 or 13?"]
ANSWERS = ["Yes.", "A red circle is left of the dog.", "There are 12 shapes, it's clear:\n- a café\n- 猫", "No"]
TOKENS = 8  # of a greedy answer
END = -1  # the model ends its answer
# llama.cpp computes GELU from a table of 16-bit numbers, and the projector's by another formula: logits (they spread by
# 3) differ by 0.004 in F32. Random weights decide one time in 300 by less than this.
TOSS = 0.01


class Original:
    """The checkpoint in transformers, float32, fed with the training side's words and pixels."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = vocabulary.load(folder)
        self.transform = llava.image_transform(folder)
        image = llava.image_token_id(self.model.config), llava.image_tokens(self.model.config, (1, 1))
        self.encoder = Encoder(chat_template.of(folder, self.tokenizer), self.tokenizer, *image, 4096)
        names = [self.tokenizer.eos_token, "<|endoftext|>"]  # llama.cpp ends an answer at either
        self.ends = {self.tokenizer.convert_tokens_to_ids(name) for name in names}

    def pixels(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(self.transform(image))[None]

    def example(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """(prompt with all image tokens, answer) as token ids."""
        found = self.encoder(question, {"chosen": answer, "rejected": answer})
        return found.prompt, found.answers["chosen"]

    @torch.inference_mode()
    def features(self, image: Image.Image) -> np.ndarray:
        return np.asarray(llava.image_features(self.model, self.pixels(image))[0])

    @torch.inference_mode()
    def logits(self, image: Image.Image, ids: list[int]) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([ids]), pixel_values=self.pixels(image), use_cache=False).logits[0]

    def logps(self, image: Image.Image, question: str, answer: str) -> np.ndarray:
        prompt, ids = self.example(question, answer)
        rows = self.logits(image, [*prompt, *ids])[len(prompt) - 1 : -1].log_softmax(-1)
        return np.asarray(rows[torch.arange(len(ids)), ids])

    @torch.inference_mode()
    def greedy(self, image: Image.Image, question: str) -> tuple[list[int], list[torch.Tensor]]:
        """(the greedy answer, the logits [V] that each choice was made from)."""
        prompt, said, rows = self.example(question, "x")[0], list[int](), list[torch.Tensor]()
        step: dict[str, Any] = {"input_ids": torch.tensor([prompt]), "pixel_values": self.pixels(image)}
        cache = None
        while len(said) < TOKENS and END not in said:
            out = self.model(**step, past_key_values=cache, use_cache=True)
            cache, row = out.past_key_values, out.logits[0, -1]
            best = int(row.argmax())
            rows.append(row)
            said.append(END if best in self.ends else best)
            step = {"input_ids": torch.tensor([[best]])}
        return said, rows

    def lead(self, row: torch.Tensor, token: int) -> float:
        """By how much the best token's logit exceeds this one's."""
        return float(row.max() - row[list(self.ends) if token == END else [token]].max())


class Exported(NamedTuple):
    """One checkpoint and the GGUF files made of it."""

    original: Original
    pair: GgufPair
    folder: Path

    def open(self, quant: str, mmproj: str) -> Runtime:
        """The files in these types, written on first use; llama.cpp's memory in float32."""
        text, vision = self.folder / f"text-{quant}.gguf", self.folder / f"mmproj-{mmproj}.gguf"
        if not text.is_file():
            self.pair.write_text(text, quant, "original")
        if not vision.is_file():
            self.pair.write_mmproj(vision, mmproj)
        return Runtime(text, vision, n_ctx=256, kv_f32=True)


def exported(folder: Path, **settings: Any) -> Exported:
    base = tiny_llava.build(folder / "base", **settings)
    return Exported(Original(base), GgufPair(base, None, "tiny", "float32"), folder)


Made = Callable[[str, str], Exported]  # (name of the pairing, size)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Pairings by name and size, each made once."""

    @cache
    def make(name: str, size: str = "tiny") -> Exported:
        tower, text = PAIRINGS[name]
        return exported(tmp_path_factory.mktemp(name), tower=tower, text=text, **SIZES[size])

    return make


def pictures(side: int, count: int, seed: int = 0) -> Iterator[Image.Image]:
    """Coloured noise of two grains, in shapes around and far from a tower's `side`."""
    shapes = [(1, 1), (3, 1), (1, 4), (2, 2), (0.4, 0.3), (5, 4), (1.04, 0.97), (0.02, 2), (2, 0.02)]
    draw = np.random.default_rng(seed)
    for index in range(count):
        width, height = (max(1, round(side * factor)) for factor in shapes[index % len(shapes)])
        coarse = Image.fromarray(draw.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height))
        fine = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        yield Image.blend(coarse, fine, 0.3)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row."""
    assert a.shape == b.shape
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


# --- must show 3 ---


class Found(NamedTuple):
    """How near the files come."""

    choices: int  # greedy ones, made after equal words
    equal: int
    tosses: int  # of the unequal ones, those that transformers makes by less than TOSS
    sequence: float  # largest difference of an answer's log-probability
    cosine: float  # smallest of an image token

    @property
    def agreement(self) -> float:
        return self.equal / (self.choices - self.tosses)


def choices(original: Original, runtime: Runtime, image: Image.Image, question: str) -> tuple[int, int, int]:
    """(choices, equal ones, tosses) up to the first difference; behind it the words are others."""
    said = runtime.answer_ids(image, question, TOKENS)
    said += [END] * (len(said) < TOKENS)
    wanted, rows = original.greedy(image, question)
    same = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), len(wanted))
    if same == len(wanted):
        return same, same, 0
    return same + 1, same, int(original.lead(rows[same], said[same]) < TOSS)


def compare(files: Exported, quant: str, mmproj: str, prompts: int) -> Found:
    counts, worst, least = np.zeros(3, int), 0.0, 1.0
    original = files.original
    with files.open(quant, mmproj) as runtime:
        for index, image in enumerate(pictures(original.transform.size, prompts)):
            question, answer = QUESTIONS[index % len(QUESTIONS)], ANSWERS[index // 3 % len(ANSWERS)]
            least = min(least, cosines(original.features(image), runtime.embed(image)).min())
            expected, found = original.logps(image, question, answer), runtime.logps(image, question, answer)
            assert len(expected) == len(found)
            worst = max(worst, abs(float(expected.sum()) - sum(found)))
            counts += choices(original, runtime, image, question)
    result = Found(*counts.tolist(), worst, least)
    config = files.pair.config
    print(f"{config.text_config.model_type} {config.vision_config.hidden_size} {quant}: {result}")
    return result


@pytest.mark.parametrize("name", PAIRINGS)
def test_files_answer_as_the_checkpoint_does(made: Made, name: str) -> None:
    """F32 all through, twelve prompts (`test_a_hundred_prompts` asks the rest)."""
    found = compare(made(name, "tiny"), "f32", "f32", 12)
    assert found.choices > 60
    assert found.agreement == 1.0
    assert found.tosses <= 1
    assert found.sequence <= 0.01
    assert found.cosine >= 0.9999


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "agreement", "sequence"), [("f32", 1.0, 0.01), ("f16", 0.98, 0.1)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PAIRINGS)
def test_a_hundred_prompts(made: Made, name: str, size: str, quant: str, agreement: float, sequence: float) -> None:
    found = compare(made(name, size), quant, quant, 100)
    assert found.choices > 600
    assert found.agreement >= agreement
    assert found.equal >= 0.98 * found.choices
    assert found.tosses <= 0.01 * found.choices
    assert found.sequence <= sequence
    assert found.cosine >= 0.9999


# --- what a configuration may say ---

Settings = dict[str, Any]


def text(**settings: Any) -> Settings:
    return {"text_config": settings}


VARIANTS: dict[str, tuple[str, str, Settings]] = {
    "llama with biases": ("clip", "llama", text(attention_bias=True, mlp_bias=True)),
    "llama with wide heads, linear positions": (
        *("clip", "llama"),
        text(head_dim=32, rope_scaling={"rope_type": "linear", "factor": 4.0}),
    ),
    "llama, tied": ("siglip", "llama", {"tie_word_embeddings": True, **text(tie_word_embeddings=True)}),
    "mistral with narrow heads": ("siglip", "mistral", text(head_dim=8, rope_theta=1e6)),
    "qwen2, tied, features of layer 2": (
        *("clip", "qwen2"),
        {"tie_word_embeddings": True, "vision_feature_layer": 2, **text(tie_word_embeddings=True)},
    ),
    "CLIP's last layer, exact GELU": (
        *("clip", "llama"),
        {"vision_feature_layer": -1, "vision_config": {"hidden_act": "gelu"}},
    ),
    "SigLIP's layer before the last, with a head": (
        *("siglip", "qwen2"),
        {"vision_feature_layer": -2, "vision_config": {"vision_use_head": True}},
    ),
    "patches that do not fill the picture": ("siglip", "qwen2", {"vision_config": {"image_size": 30, "patch_size": 7}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_parts(tmp_path: Path, name: str) -> None:
    """All of it F32: image tokens to a cosine of 0.9999, answers to 0.01 in log-probability, or where that is large (a
    tied head spreads the logits by 9 and makes answers of -1300) to its 20,000th part."""
    tower, model, settings = VARIANTS[name]
    files = exported(tmp_path, tower=tower, text=model, settings=settings)
    with files.open("f32", "f32") as runtime:
        for index, image in enumerate(pictures(28, 3)):
            assert cosines(files.original.features(image), runtime.embed(image)).min() >= 0.9999
            question, answer = QUESTIONS[index], ANSWERS[index + 1]
            expected = files.original.logps(image, question, answer)
            found = runtime.logps(image, question, answer)
            np.testing.assert_allclose(sum(found), expected.sum(dtype=float), atol=0.01, rtol=5e-5)


def config(tower: str = "clip", model: str = "llama", **settings: Any) -> Any:
    """transformers' configuration of a tiny checkpoint that is not built."""
    plain = tiny_llava.config(tower=tower, text=model, settings=settings)
    return LlavaConfig(**plain)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("clip", "llama", text(model_type="gemma")), "language model is gemma; export knows llama, mistral, qwen2"),
        (("clip", "llama", text(hidden_act="gelu")), "computes gelu; llama.cpp's llama, silu"),
        (
            ("clip", "llama", text(rope_scaling={"rope_type": "dynamic", "factor": 2.0})),
            r"scales its positions \(dynamic\); export knows default and linear",
        ),
        (("clip", "qwen2", text(head_dim=32)), "32 wide .head_dim., but llama.cpp's qwen2 makes them 16"),
        (("clip", "llama", {"vision_feature_select_strategy": "full"}), r"'full'; llama.cpp's LLaVA drops the class"),
        (
            ("siglip", "llama", {"vision_feature_select_strategy": "default"}),
            "drops the first patch of a siglip_vision",
        ),
        (("clip", "llama", {"vision_feature_layer": [1, 2]}), r"vision_feature_layer is \[1, 2\]; .* of one layer"),
        (
            ("clip", "llama", {"vision_feature_layer": 5}),
            "vision_feature_layer is 5, but the vision tower has layers 1 to 4",
        ),
        (("clip", "llama", {"vision_feature_layer": -5}), "vision_feature_layer is -5"),
        (("clip", "llama", {"projector_hidden_act": "relu"}), "computes quick_gelu and relu; .* gelu in the projector"),
        (
            ("siglip", "llama", {"vision_config": {"hidden_act": "relu"}}),
            "computes relu and gelu; .* quick_gelu or gelu",
        ),
        (("clip", "llama", {"multimodal_projector_bias": False}), "projector has no biases"),
        (("clip", "llama", {"vision_config": {"intermediate_size": 64}}), "as wide as the tower .64.; .* swap"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(given: tuple[str, str, Settings], sentence: str) -> None:
    tower, model, settings = given
    found = config(tower, model, **settings)
    with pytest.raises(MinipovidError, match=sentence):
        llava.text_metadata(found)
        llava.mmproj_metadata(found, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mistral", "language_model.layers.0.self_attn.q_proj.bias"),
        ("qwen2", "language_model.layers.0.self_attn.o_proj.bias"),
        ("llama", "lm_head.bias"),
        ("llama", "language_model.layers.0.self_attn.q_norm.weight"),
        ("llama", "vision_tower.encoder.layers.0.layer_scale"),
    ],
)
def test_tensors_that_no_part_has(model: str, name: str) -> None:
    with pytest.raises(MinipovidError, match=f"The tensor {name} belongs to no part of LLaVA"):
        llava.place(name, config(model=model))


def test_context_ends_with_the_sliding_window() -> None:
    """llama.cpp does not slide it: Mistral 7B's 4096 of 32,768 positions; Qwen2 slides only where it says so."""
    mistral = config(model="mistral", **text(max_position_embeddings=32768, sliding_window=4096))
    assert llava.text_metadata(mistral)["llama.context_length"] == 4096
    wide = config(model="mistral", **text(max_position_embeddings=32768, sliding_window=None))
    assert llava.text_metadata(wide)["llama.context_length"] == 32768
    qwen2 = config(model="qwen2", **text(max_position_embeddings=32768, sliding_window=4096))
    assert llava.text_metadata(qwen2)["qwen2.context_length"] == 32768
    sliding = config(model="qwen2", **text(max_position_embeddings=9999, sliding_window=4096, use_sliding_window=True))
    assert llava.text_metadata(sliding)["qwen2.context_length"] == 4096


def test_interleave_as_the_hub_spells_it() -> None:
    """llava-hf/llava-interleave-qwen-0.5b-hf: 384 pixels in patches of 14 are 27 x 27, and a layer is left over."""
    found = LlavaConfig(
        image_token_index=151646,
        projector_hidden_act="gelu",
        text_config={
            **{"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16},
            **{"num_hidden_layers": 24, "num_key_value_heads": 16, "max_position_embeddings": 32768},
            **{"rope_theta": 1000000.0, "sliding_window": 32768, "vocab_size": 152000, "tie_word_embeddings": True},
        },
        vision_config={
            **{"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304},
            **{"num_attention_heads": 16, "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False},
        },
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    assert (llava.image_token_id(found), llava.image_tokens(found, (1, 1))) == (151646, 729)
    keys = llava.text_metadata(found)
    assert keys["general.architecture"] == "qwen2"
    assert (keys["qwen2.rope.freq_base"], keys["qwen2.attention.key_length"]) == (1000000.0, 64)
    keys = llava.mmproj_metadata(found, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    assert (keys["clip.vision.block_count"], keys["clip.vision.feature_layer"]) == (26, [26])
    assert keys["clip.use_gelu"] is True
    last = "language_model.model.layers.23.self_attn.q_proj.bias"
    assert llava.place(llava.canonical(last), found) == Place("text", "blk.23.attn_q.bias")
    assert llava.place("vision_tower.head.probe", found) is None


# --- pictures ---


@pytest.mark.parametrize("name", ["clip-llama", "siglip-qwen2"])
def test_llama_cpp_prepares_pictures_as_training_does(made: Made, name: str) -> None:
    """Given the raw picture, mtmd scales and pads by itself; what the tower makes of it is the same to the last bit."""
    files, seen = made(name, "tiny"), 0
    with files.open("f32", "f32") as runtime:
        for image in pictures(28, 18, seed=1):
            own = runtime._vision_model().encode(np.array(image))  # type: ignore[arg-type]
            np.testing.assert_array_equal(runtime.embed(image), own, err_msg=str(image.size))
            seen += image.size != (28, 28)
    assert seen == 16


@pytest.mark.parametrize("name", ["clip-llama", "siglip-qwen2"])
def test_processor_settings_as_transformers_5_saves_them(made: Made, name: str, tmp_path: Path) -> None:
    """Nested in processor_config.json, without preprocessor_config.json: the same transform."""
    base = made(name, "tiny").pair.model
    AutoProcessor.from_pretrained(base).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    assert llava.image_transform(tmp_path) == llava.image_transform(base)
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(MinipovidError, match="has no preprocessor_config.json with image_mean and image_std"):
        llava.image_transform(tmp_path)


# --- training ---


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("name", PAIRINGS)
def test_training_scores_as_transformers_does(made: Made, name: str, in_4bit: bool) -> None:
    """A fresh adapter changes nothing: `score`, with its shared prefix, equals transformers' plain passes over the
    same checkpoint (in 4 bits the same passes of the loaded model). Every linear layer of the text model is adapted."""
    original = copy(made(name, "tiny").original)
    section = ModelSection(path=str(made(name, "tiny").pair.model), load_in_4bit=in_4bit)
    model = load.load(section, LoraSection(r=4))
    assert len(model.adapter()) == 2 * 7 * 2
    assert model.image_tokens == 16
    if in_4bit:
        original.model = model.base
    to_ids = Encoder.of(model, 4096)
    images = list(pictures(28, 3))
    pairs = [Pair("", "", QUESTIONS[i], ANSWERS[i], ANSWERS[3 - i], {}) for i in range(3)]
    items = [
        (to_ids(pair.prompt, pair.texts()), {"clean": original.transform(image)})
        for pair, image in zip(pairs, images, strict=True)
    ]
    batch = data.collate(items)
    assert isinstance(batch, Batch)
    found = scoring.score(model, batch, [View("chosen", "clean"), View("rejected", "clean")])
    for row, (pair, image) in enumerate(zip(pairs, images, strict=True)):
        for kind in pair.texts():
            expected = original.logps(image, pair.prompt, pair.texts()[kind])
            logps = found[kind, "clean"].logps()[row, : len(expected)].detach().numpy()
            np.testing.assert_allclose(logps, expected, atol=1e-4, rtol=1e-4)


# --- spellings ---


def test_both_spellings_give_the_same_files(tmp_path: Path) -> None:
    """SigLIP and Qwen2 saved by transformers 4 and 5: the same bytes, whatever the folder holds first."""
    written = []
    for spelling in ("hub", "saved"):
        base = tiny_llava.build(tmp_path / spelling / "base", text="qwen2", tower="siglip", spelling=spelling)
        pair = GgufPair(base, None, "tiny", "float32")
        pair.write_text(base / "text.gguf", "f16", "original")
        pair.write_mmproj(base / "mmproj.gguf")
        written.append([(base / name).read_bytes() for name in ("text.gguf", "mmproj.gguf")])
    assert written[0] == written[1]


def test_a_size_that_is_left_out_is_what_transformers_takes(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for vision in ({"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model"}, None):
        content = {"model_type": "llava", **({} if vision is None else {"vision_config": vision})}
        (tmp_path / "config.json").write_text(json.dumps(content))
        expected = AutoConfig.from_pretrained(tmp_path).vision_config.image_size
        assert vision_layout.image_size(tmp_path) == expected
