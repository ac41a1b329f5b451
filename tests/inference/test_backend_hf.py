"""The training-side model answers: as transformers' own generate(), however its questions are put together."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_llava
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from trained_run import a_run
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minipovid.common.errors import MinipovidError
from minipovid.export import export_merged
from minipovid.inference import backends
from minipovid.inference.backends import GREEDY, Decoding, Question, hf
from minipovid.inference.llama_cpp.stream import whole
from minipovid.models import load
from minipovid.models.encoder import Encoder
from minipovid.pairs.pair import Pair
from minipovid.recipe import read as recipes
from minipovid.recipe import schema
from minipovid.tinyworld import CHECKPOINT, scenes, text
from minipovid.train.data import PairDataset, collate
from minipovid.train.losses import View
from minipovid.train.scoring import score

PROMPTS = [*map(text.question, scenes.SHAPES[:4]), *text.CAPTION_PROMPTS]
MOST = 48  # tokens: every caption of the tiny world ends before


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads wait for each other longer than a model this small computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = a_run(tmp_path_factory.mktemp("runs") / "run")
    export_merged(made)
    return made


def opened(run: Path, decoding: Decoding = GREEDY, **own: Any) -> hf.HfBackend:
    return hf.open(run, hf.Options(**own), decoding)


@pytest.fixture(scope="module")
def trained(run: Path) -> hf.HfBackend:
    return opened(run)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        scenes.render(scenes.unbiased_scene(f"hf {number}")).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def ask(prompts: Sequence[str] = PROMPTS, max_tokens: int = MOST, image: str = "0.png") -> list[Question]:
    return [Question(str(number), image, prompt, {}, max_tokens) for number, prompt in enumerate(prompts)]


# --- the oracle: transformers' and peft's own loading, processor, template and generate ---


def vicuna(prompt: str) -> str:
    """LLaVA 1.5's format, which the built-in checkpoint brings no template for."""
    return f"USER: <image>\n{prompt} ASSISTANT:"


@torch.inference_mode()
def generated(model: Any, folder: Path, picture: Path | None, prompts: Sequence[str]) -> list[str]:
    """One prompt at a time."""
    processor = AutoProcessor.from_pretrained(folder)
    answers = []
    for prompt in prompts:
        if picture is not None:
            inputs = processor(text=_templated(processor, prompt), images=Image.open(picture), return_tensors="pt")
        else:
            inputs = processor(text=vicuna(prompt).replace("<image>\n", ""), return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=MOST, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(ids, skip_special_tokens=True).strip())
    return answers


def _templated(processor: Any, prompt: str) -> str:
    if processor.chat_template is None:
        return vicuna(prompt)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    turns = [{"role": "user", "content": content}]
    written: str = processor.apply_chat_template(turns, add_generation_prompt=True)
    return written.removeprefix(processor.tokenizer.bos_token or "")  # the tokenizer adds it


def plain(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def by_peft(run: Path, base: Path = CHECKPOINT) -> Any:
    return PeftModel.from_pretrained(plain(base), run / "adapter").eval()


@pytest.mark.parametrize("weights", ["adapter", "merged", "base"])
def test_answers_are_those_of_generate(run: Path, pictures: list[Path], weights: Any) -> None:
    """28 answers, word for word. The merged weights are loaded as they lie in RUN/merged."""
    loaded = {
        "adapter": lambda: by_peft(run),
        "merged": lambda: plain(run / "merged"),
        "base": lambda: plain(CHECKPOINT),
    }
    backend, oracle = opened(run, weights=weights), loaded[weights]()
    for picture in pictures:
        expected = generated(oracle, CHECKPOINT, picture, PROMPTS)
        assert list(backend.answers(ask(), picture)) == expected
        assert all(answer.endswith(".") for answer in expected)


@pytest.mark.parametrize(
    "kind",
    [{}, {"text": "mistral"}, {"text": "qwen2", "tower": "siglip"}],
    ids=["vicuna", "mistral", "chatml"],
)
def test_other_formats_and_towers(kind: Mapping[str, str], tmp_path: Path) -> None:
    """Random models: 48 random tokens an answer, byte by byte; pictures of the tower's own size."""
    base = tiny_llava.build(tmp_path / "base", **kind)
    made = a_run(tmp_path / "run", base, alpha=8)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    prompts = ["What is this?", "Is there a red circle?\nAnswer yes or no.", "What"]
    found = list(opened(made).answers(ask(prompts), tmp_path / "0.png"))
    expected = generated(by_peft(made, base), base, tmp_path / "0.png", prompts)
    assert found == [told.rstrip("\ufffd").strip() for told in expected]
    assert len(set(found)) == 3 and sum(map(len, found)) > 100


def dequantised(run: Path) -> Any:
    """The 16-bit model with every text layer replaced by what bitsandbytes makes of its 4 bits, and the adapter."""
    settings = recipes.read(run / "recipe.yaml")
    loaded = load.load(settings.model, settings.lora)
    loaded.load_adapter(run / "adapter")
    found = plain(CHECKPOINT)
    with torch.no_grad():
        for name, layer in loaded.base.named_modules():
            if isinstance(layer, LoraLayer):
                base = layer.get_base_layer()
                assert isinstance(base, Linear4bit)
                weight = dequantize_4bit(base.weight.data, base.weight.quant_state).float()
                found.get_submodule(name).weight.copy_(weight + layer.get_delta_weight("default"))
    return found


def test_the_base_is_quantised_as_the_recipe_says(run: Path, pictures: list[Path], tmp_path: Path) -> None:
    made = a_run(tmp_path / "run", in_4bit=True)
    found = list(opened(made).answers(ask(), pictures[0]))
    assert found == generated(dequantised(made), CHECKPOINT, pictures[0], PROMPTS)
    base = opened(made, weights="base")
    assert base.identity()["load_in_4bit"] is True
    assert base.identity()["model"] == opened(run).identity()["model"]
    both = [list(backend.answers(ask(), pictures[1])) for backend in (base, opened(run, weights="base"))]
    assert both[0] != both[1]  # four bits are seen in what the base says


def test_text_alone(trained: hf.HfBackend, run: Path) -> None:
    prompts = ["Describe the picture.", "Is there a star in the picture?"]
    questions = ask(prompts, image="")
    trained.check(questions)
    assert list(trained.answers(questions, None)) == generated(by_peft(run), CHECKPOINT, None, prompts)
    assert list(trained.answers(questions[:1], None)) == generated(by_peft(run), CHECKPOINT, None, prompts[:1])


# --- what is shared ---


def test_together_as_one_by_one(trained: hf.HfBackend, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, in whatever order, two or three at a time, and each alone."""
    questions = ask()
    together = list(trained.answers(questions, pictures[0]))
    assert len(set(together)) > 3
    assert [next(trained.answers([question], pictures[0])) for question in questions] == together
    assert list(trained.answers(questions[::-1], pictures[0])) == together[::-1]
    monkeypatch.setattr(hf, "COLUMNS", 3 * MOST)
    assert list(trained.answers(questions, pictures[0])) == together
    same = ask([PROMPTS[0]] * 3)
    assert list(trained.answers(same, pictures[0])) == [together[0]] * 3


def test_parts_by_hand() -> None:
    """4096 columns: 3000 and 1096 fill them, 4097 stand alone, 2000 and 2000 begin anew. No part is empty."""
    widths = [3000, 1096, 4097, 2000, 2000, 1000]
    assert list(hf._parts(widths)) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]
    assert list(hf._parts([5000])) == [slice(0, 1)]
    assert list(hf._parts([1] * 9)) == [slice(0, 9)]


def test_every_token_is_computed_once(
    trained: hf.HfBackend, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 image tokens and what seven prompts share, their rests, and the tokens said but for each answer's last."""
    tower, columns = [], []
    see, read = trained._model.family.image_features, hf._hidden
    monkeypatch.setattr(trained._model.family, "image_features", lambda *args: tower.append(1) or see(*args))

    def watched(model: Any, embeddings: torch.Tensor, *rest: Any, **where: Any) -> torch.Tensor:
        columns.append(embeddings.shape[1])
        return read(model, embeddings, *rest, **where)

    monkeypatch.setattr(hf, "_hidden", watched)
    list(trained.answers(ask(max_tokens=3), pictures[0]))
    prompts = [trained._prompt(question, True) for question in ask()]
    shared = len([1 for tokens in zip(*prompts, strict=False) if len(set(tokens)) == 1])
    assert shared > 64
    assert columns == [shared, sum(len(ids) - shared for ids in prompts), 7, 7]
    assert tower == [1]


@pytest.mark.parametrize("length", [0, 1, 70])
def test_logits_of_a_tree_are_those_of_separate_passes(length: int) -> None:
    """Three branches that grow unevenly behind prefixes of several lengths, against whole sequences in transformers."""
    model = load.load(schema.ModelSection(path="tinyworld", load_in_4bit=False), schema.LoraSection(r=1))
    oracle, dice = plain(CHECKPOINT), torch.Generator().manual_seed(length)

    def some(n: int) -> list[int]:
        return torch.randint(3, 400, (n,), generator=dice).tolist()

    prefix, said = some(length), {5: list[int](), 2: list[int](), 9: list[int]()}
    cache = DynamicCache()
    with torch.inference_mode():
        if prefix:
            hf._hidden(model, hf._embedded(model, torch.tensor([prefix])), cache)
        trees = [
            hf.Branches(model, model.head.weight, cache) for _ in range(2)
        ]  # the second grows as if there were no first
        for lengths in ({5: 3, 2: 1, 9: 8}, {5: 1, 9: 2}, {2: 4}, {9: 1, 2: 1, 5: 1}):
            new = {branch: some(n) for branch, n in lengths.items()}
            found = [tree.grow(new) for tree in trees]
            for branch, tokens in new.items():
                said[branch] += tokens
            whole = [oracle(input_ids=torch.tensor([prefix + said[branch]])).logits[0, -1] for branch in new]
            for logits in found:
                torch.testing.assert_close(logits, torch.stack(whole), atol=2e-5, rtol=1e-4)
    assert cache.get_seq_length() == length


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_finds_every_token_the_likeliest(dtype: str, pictures: list[Path], tmp_path: Path) -> None:
    """`score`, which training uses, over the answers: the same prompt, picture and precision. In bfloat16 two tokens
    may be as likely as each other but for rounding: no logit is more than a quarter above the one that was taken."""
    made = a_run(tmp_path / "run", dtype=dtype)
    settings, backend = recipes.read(made / "recipe.yaml"), opened(made)
    assert backend.identity()["dtype"] == dtype
    said = list(backend.answers(ask(), pictures[0]))
    pairs = [
        Pair(prompt, pictures[0].name, prompt, answer, "No.") for prompt, answer in zip(PROMPTS, said, strict=True)
    ]
    model = backend._model
    transform = model.family.image_transform(model.folder)
    dataset = PairDataset(pairs, pictures[0].parent, Encoder.of(model, 256), transform, settings)
    batch = collate([dataset[0, row] for row in range(len(pairs))])
    assert not isinstance(batch, MinipovidError)
    with torch.inference_mode():
        scores = score(model, batch, [View("chosen", "clean", grad=False)])["chosen", "clean"]
    above = scores.logits().amax(-1) - scores.logits().gather(-1, scores.ids[..., None])[..., 0]
    assert above[scores.mask].max() <= (0.25 if dtype == "bfloat16" else 1e-4)
    assert scores.mask.sum() > 60


# --- how it ends, how it is drawn ---


def test_max_tokens(trained: hf.HfBackend, pictures: list[Path]) -> None:
    """Questions of different lengths together: each is the beginning of its whole answer, in tokens."""
    whole = list(trained.answers(ask(), pictures[0]))
    questions = [replace(question, max_tokens=2 * number) for number, question in enumerate(ask())]
    cut = list(trained.answers(questions, pictures[0]))
    assert cut[0] == ""
    assert all(long.startswith(short) for long, short in zip(whole, cut, strict=True))

    def tokens(answer: str) -> int:
        return len(trained._model.tokenizer(answer, add_special_tokens=False).input_ids)

    assert list(map(tokens, cut)) == [min(2 * number, tokens(answer)) for number, answer in enumerate(whole)]


def test_an_answer_ends_where_the_context_does(trained: hf.HfBackend, pictures: list[Path], monkeypatch: Any) -> None:
    """Three tokens fit behind the prompt, and the fourth needs no room."""
    (question,) = ask(["Describe the picture."])
    length = len(trained._prompt(question, True))
    told = [next(trained.answers([replace(question, max_tokens=most)], pictures[0])) for most in (3, 4, 5)]
    assert len(set(told)) == 3
    monkeypatch.setattr(trained, "_context", length + 3)
    assert list(trained.answers([question], pictures[0])) == [told[1]]
    monkeypatch.setattr(trained, "_context", length - 1)
    with pytest.raises(MinipovidError, match=f"takes {length} tokens with its picture, more than the {length - 1} "):
        trained.check([question])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_character_that_was_cut_off_is_left_out(kind: str, tmp_path: Path) -> None:
    """Wherever max_tokens cuts an answer in two, what is told is what llama.cpp's side makes of the same bytes."""
    base = tiny_llava.build(tmp_path / "base", text=kind)
    backend = opened(a_run(tmp_path / "run", base))
    tokenizer, byte = backend._model.tokenizer, {letter: number for number, letter in bytes_to_unicode().items()}

    def raw(piece: str) -> bytes:
        if kind == "qwen2":
            return bytes(byte[letter] for letter in piece)
        found = re.fullmatch("<0x(..)>", piece)
        return bytes.fromhex(found[1]) if found else piece.replace("\u2581", " ").encode()

    told = "A red \N{PARTY POPPER}\N{CIRCUS TENT} circle: \N{EURO SIGN}"
    ids = tokenizer(f" {told}\n\n", add_special_tokens=False).input_ids
    begun = [ids[:length] for length in range(len(ids) + 1)]
    expected = [whole([raw(piece) for piece in tokenizer.convert_ids_to_tokens(each)]) for each in begun]
    assert [backend._text(each) for each in begun] == expected
    assert expected[-1] == told
    image = backend._model.image_token_id  # what a broken model may say; llama.cpp's piece of it is empty
    assert backend._text([image, *ids, image]) == told


def test_sampling(run: Path, pictures: list[Path]) -> None:
    """A rerun draws the same, alone or together; another seed and another question draw otherwise; cold is greedy."""
    greedy = list(opened(run).answers(ask(), pictures[0]))

    def drawn(temperature: float, seed: int, together: bool = True) -> list[str]:
        backend = opened(run, Decoding(temperature, seed))
        groups = [ask()] if together else [[question] for question in ask()]
        return [answer for group in groups for answer in backend.answers(group, pictures[0])]

    assert drawn(1.0, 7) == drawn(1.0, 7) == drawn(1.0, 7, together=False)
    assert drawn(1.0, 7) != drawn(1.0, 8)
    assert drawn(1e-9, 7) == drawn(1e-320, 8) == greedy
    hot = opened(run, Decoding(3.0))
    assert len(set(hot.answers(ask([PROMPTS[0]] * 4), pictures[0]))) == 4  # by id, for the prompt is the same


def test_what_is_drawn_is_as_likely_as_it_should_be(trained: hf.HfBackend) -> None:
    """Logits ln 1, ln 2, ln 5 at temperature 1/2: 1, 4 and 25 of 30, over 3,000 seeds, within five standard errors."""
    decoding, trained._decoding = trained._decoding, Decoding(0.5)
    try:
        logits = torch.tensor([1.0, 2.0, 5.0]).log().expand(3000, 3)
        (question,) = ask(["?"])
        drawn = trained._chosen(logits, [hf._generator(seed, question) for seed in range(3000)])
    finally:
        trained._decoding = decoding
    for token, share in enumerate((1 / 30, 4 / 30, 25 / 30)):
        assert drawn.count(token) / 3000 == pytest.approx(share, abs=5 * (share * (1 - share) / 3000) ** 0.5)


# --- who it is, what it refuses ---


def test_names_and_identities(run: Path, trained: hf.HfBackend, tmp_path: Path) -> None:
    """Whatever decides an answer changes the identity; loading again does not."""
    other = Path(shutil.copytree(run, tmp_path / "other"))
    shutil.rmtree(other / "adapter")
    tiny_llava.adapter(CHECKPOINT, other / "adapter", r=4, alpha=2, seed=1)
    every = [opened(run, weights=weights) for weights in ("adapter", "merged", "base")]
    every += [opened(run, Decoding(0.7, 3)), opened(other)]
    assert [backend.name for backend in every] == ["hf", "hf-merged", "hf-base", "hf", "hf"]
    told = [json.dumps(backend.identity(), sort_keys=True) for backend in every]
    assert len(set(told)) == 5
    assert json.loads(told[0]) == trained.identity()
    assert trained.decoding == {} and every[3].decoding == {"temperature": 0.7, "seed": 3}
    assert trained.concurrency == 1
    assert {**trained.identity(), **every[3].decoding} == every[3].identity()
    assert set(every[2].identity()) == set(trained.identity()) - {"adapter"}


def test_opened_by_name_and_closed(run: Path, pictures: list[Path], trained: hf.HfBackend) -> None:
    with backends.opened("hf", run) as backend:
        assert list(backend.answers(ask(), pictures[0])) == list(trained.answers(ask(), pictures[0]))
    assert not hasattr(backend, "_model")


def test_the_adapter_changes_answers(run: Path, trained: hf.HfBackend, pictures: list[Path]) -> None:
    base = opened(run, weights="base")
    both = [[answer for path in pictures for answer in each.answers(ask(), path)] for each in (trained, base)]
    assert both[0] != both[1]


@pytest.mark.parametrize(
    ("prompt", "image", "sentence"),
    [
        ("What is <image>?", "0.png", "Question 0 holds the placeholder <image>; leave it out."),
        ("What is <image>?", "", "Question 0 holds the placeholder <image>; leave it out."),
        ("Yes.</s>", "0.png", "Question 0 holds the sign that ends a turn, </s>; leave it out."),
        ("<s>", "", "Question 0 holds <s>, a special token of this model; write it otherwise, or leave it out."),
        (
            "a " * 1000,
            "0.png",
            "Question 0 takes 1,073 tokens with its picture, more than the 1,024 that the model was trained for; "
            "shorten it.",
        ),
    ],
)
def test_questions_that_cannot_be_asked(trained: hf.HfBackend, prompt: str, image: str, sentence: str) -> None:
    with pytest.raises(MinipovidError) as error:
        trained.check(ask([prompt], image=image))
    assert str(error.value) == sentence


def test_a_broken_picture_is_one_sentence(trained: hf.HfBackend, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"nothing")
    with pytest.raises(MinipovidError, match="is not a picture that minipovid can read"):
        list(trained.answers(ask(), tmp_path / "0.png"))


def refusal(run: Path, **own: Any) -> str:
    with pytest.raises(MinipovidError) as error:
        opened(run, **own)
    return str(error.value)


def test_missing_pieces(tmp_path: Path) -> None:
    made = a_run(tmp_path / "run")
    assert (
        refusal(made, weights="merged")
        == f"{made} holds no merged model; write it with `minipovid export {made} --merged`."
    )
    (made / "adapter" / "adapter_model.safetensors").unlink()
    trained = f"{made} holds no trained adapter; finish the training with `minipovid train` first."
    assert refusal(made) == trained
    assert opened(made, weights="base").name == "hf-base"  # needs none
    (tmp_path / "base" / "gguf").mkdir(parents=True)
    told = refusal(tmp_path / "base")
    assert told == f"{tmp_path / 'base'} holds GGUF files alone, and transformers reads none; use --backend gguf."
    assert refusal(tmp_path / "no").startswith(f"There is no folder {tmp_path / 'no'}; name a run folder")


def test_the_base_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = a_run(tmp_path / "run")
    settings = (made / "recipe.yaml").read_text()
    elsewhere = settings.replace("path: tinyworld", "path: some/where", 1)
    (made / "recipe.yaml").write_text(elsewhere.replace("revision: null", "revision: v1", 1))
    settled = recipes.read(made / "recipe.yaml").model
    assert (settled.path, settled.revision) == ("some/where", "v1")
    told = refusal(made)
    wanted = "The model some/where is not on this machine; fetch it with `hf download some/where --revision v1`."
    assert told == wanted
    gone = tmp_path / "gone"
    (made / "recipe.yaml").write_text(settings.replace("path: tinyworld", f"path: {gone}", 1))
    assert refusal(made).startswith(f"There is no model {gone}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **settings: _cached(settings))
    (made / "recipe.yaml").write_text(elsewhere)
    assert opened(made).name == "hf"


def _cached(settings: Mapping[str, Any]) -> str:
    assert (settings["revision"], settings["local_files_only"]) == (None, True)
    return str(CHECKPOINT)


def test_no_room_is_one_sentence(run: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(run)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(hf, "_hidden", full)
    with pytest.raises(MinipovidError, match="^The GPU has not enough memory for this model in transformers; use"):
        list(backend.answers(ask(), pictures[0]))
    monkeypatch.setattr(load, "load", full)
    assert refusal(run).startswith("The GPU has not enough memory")
