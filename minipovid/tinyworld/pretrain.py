"""How the tiny world's base model was made: `python -m minipovid.tinyworld.pretrain --out DIR` makes it again.

A real LLaVA of 1.6 million parameters (CLIP tower, two-layer projector, Llama), in two lessons. First tower and
projector learn to see, from scenes without habits. Then all of it learns to caption and to answer from scenes with
habits, new ones at every step: captions, and conversations of five questions about one picture (from single questions
it never learns to look). It ends up seeing well and, where it is unsure, naming the usual companion: the hallucination
that preference tuning then has to cure. About half an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from torch import Tensor
from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from minipovid.images.transform import ImageTransform
from minipovid.tinyworld import text
from minipovid.tinyworld.scenes import (
    COLOURS,
    COMPANION,
    PLACES,
    SHAPES,
    SIDE,
    Scene,
    habit_scene,
    render,
    unbiased_scene,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, of RGB in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
TRANSFORM = ImageTransform(SIDE, MEAN, STD)
PATCH = 8
IMAGE_TOKENS = (SIDE // PATCH) ** 2
BATCH = 32
CAPTIONS = 12  # of them; the others are conversations
DEV_PICTURES = 64


class Words:
    """The SentencePiece vocabulary and the ids of llava-hf's two added tokens behind it."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.image = self.pieces.get_piece_size()
        self.pad = self.image + 1
        self.size = 32 * math.ceil((self.pad + 1) / 32)  # quantised rows come in blocks of 32
        self.encode = lru_cache(maxsize=100_000)(lambda part: tuple(self.pieces.encode(part)))

    def prompt(self, question: str) -> list[int]:
        """`USER: <image>` with one id per image token, line end, question, `ASSISTANT:`."""
        start = [self.pieces.bos_id(), *self.encode("USER: "), *[self.image] * IMAGE_TOKENS]
        return [*start, *self.encode(f"\n{question} ASSISTANT:")]

    def answer(self, answer: str) -> list[int]:
        return [*self.encode(answer), self.pieces.eos_id()]

    def row(self, turns: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """(ids, labels) of a conversation; labels are -100 wherever the model is not the speaker."""
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            asked = list(self.encode(f"USER: {question} ASSISTANT:")) if number else self.prompt(question)
            said = self.answer(answer)
            ids += asked + said
            labels += [-100] * len(asked) + said
        return ids, labels


def learn_words(scenes: int = 4000) -> Words:
    """A byte-pair vocabulary learnt from the world's own text, with bytes to fall back on, as Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_corpus(scenes),
        model_writer=model,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return Words(model.getvalue())


def _corpus(scenes: int) -> Iterator[str]:
    """The world's sentences, as USER and ASSISTANT say them, and the letters that they happen to lack."""
    for number in range(scenes):
        scene = unbiased_scene(f"words {number}")
        prompt = text.CAPTION_PROMPTS[number % len(text.CAPTION_PROMPTS)]
        yield f"USER: {prompt} ASSISTANT: {text.describe(scene).text}"
        for question, answer in (*text.conversation(scene), *text.tour(scene)):
            yield f"USER: {question} ASSISTANT: {answer}"
    yield " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-")


def save_words(words: Words, folder: Path) -> None:
    """tokenizer.model for llama.cpp, and the same ids as tokenizer.json for transformers."""
    (folder / "tokenizer.model").write_bytes(words.model)
    pieces = words.pieces
    names = [pieces.id_to_piece(index) for index in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(
        BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=_merges(words),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # Llama's legacy normaliser: every stretch of text between special tokens gets a space in front, as in llama.cpp.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", pieces.bos_id())]
    )
    added = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in added])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, added))


def _tokenizer_config(tokenizer: Tokenizer, added: Iterable[str]) -> dict[str, Any]:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {str(tokenizer.token_to_id(token)): {"content": token, **flags} for token in added},
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "extra_special_tokens": {"image_token": "<image>"},
        "model_max_length": 1024,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "legacy": True,
    }


def _merges(words: Words) -> list[tuple[str, str]]:
    """The merge list that SentencePiece keeps only as scores: every split of a piece into two, best pieces first."""
    pieces = words.pieces
    plain = [i for i in range(pieces.get_piece_size()) if not (pieces.is_control(i) or pieces.is_byte(i))]
    ids = {pieces.id_to_piece(i): i for i in plain if not pieces.is_unknown(i)}
    found = []
    for piece, index in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                found.append((-pieces.get_score(index), ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def new_model(words: Words) -> LlavaForConditionalGeneration:
    """The shape of LLaVA 1.5, small: feature layer -2, no class token, quick GELU, an output head of its own."""
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=96,
        hidden_act="quick_gelu",
    )
    language = LlamaConfig(
        vocab_size=words.size,
        hidden_size=128,
        intermediate_size=384,  # a multiple of 64: bitsandbytes needs it on a CPU
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        initializer_range=0.08,  # about 1 / sqrt(128); with the usual 0.02, meant for wide models, learning starts late
        tie_word_embeddings=False,
        bos_token_id=words.pieces.bos_id(),
        eos_token_id=words.pieces.eos_id(),
        pad_token_id=words.pad,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=words.image,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, words.pad
    model = LlavaForConditionalGeneration(config)
    # Untied, but equal at first: an image token that looks like a word then nearly says that word.
    model.lm_head.weight.data.copy_(model.get_input_embeddings().weight.data)
    return model


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Normalised pictures [B, 3, S, S]; at 64 x 64 the image transform has nothing to resize."""
    return torch.from_numpy(np.stack([TRANSFORM(render(scene)) for scene in scenes]))


def open_eyes(model: LlavaForConditionalGeneration, words: Words, steps: int, name: str, rate: float = 2e-3) -> None:
    """Teach tower and projector to see, as CLIP had been taught before LLaVA took it: what stands in each place?

    The mean image token of a place must lie near the embeddings of its shape's and its colour's word, as CLIP's picture
    lies near its caption; and each image token must say in which place it lies.
    """
    eyes = _Eyes(model, words)
    optimizer = torch.optim.AdamW(eyes.parameters(), lr=rate, betas=(0.9, 0.98))
    schedule = _warm_cosine(optimizer, steps)
    for step in range(1, steps + 1):
        scenes = [unbiased_scene(f"{name} {step} {number}") for number in range(2 * BATCH)]
        loss, right = eyes(pixels(scenes), torch.tensor([_seen(scene) for scene in scenes]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(eyes.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0:
            print(f"eyes {step}/{steps}  loss {loss.item():.3f}  shapes right {right:.2f}", flush=True)


class _Eyes(torch.nn.Module):
    """Tower, projector and the words' embeddings, with what the first lesson needs besides."""

    def __init__(self, model: LlavaForConditionalGeneration, words: Words) -> None:
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector
        self.embedding = model.get_input_embeddings()
        width = model.lm_head.in_features
        self.shapes = torch.tensor([words.encode(shape)[0] for shape in SHAPES])
        self.colours = torch.tensor([words.encode(colour)[0] for colour in COLOURS])
        self.nothing = torch.nn.Parameter(0.08 * torch.randn(1, width))
        self.where = torch.nn.Linear(width, len(PLACES))

    def forward(self, pictures: Tensor, truth: Tensor) -> tuple[Tensor, float]:
        """(loss, share of the shapes named right) for pictures [B, 3, S, S] and truth [B, places, (shape, colour)]."""
        tower = self.tower(pictures, output_hidden_states=True).hidden_states[-2][:, 1:]
        tokens = self.projector(tower)  # [B, patches, H]
        by_place = torch.einsum("bph,pl->blh", tokens, PATCH_SHARE)
        shape, colour = self._near(by_place, self.shapes), self._near(by_place, self.colours)
        place = self.where(torch.nn.functional.normalize(tokens, dim=-1) * 10)
        loss = sum(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            for logits, labels in (
                (shape, truth[..., 0]),
                (colour, truth[..., 1]),
                (place, PATCH_SHARE.argmax(1).expand(len(tokens), -1)),
            )
        )
        full = truth[..., 0] > 0
        right = (shape.argmax(-1) == truth[..., 0])[full].float().mean().item()
        return torch.as_tensor(loss), right

    def _near(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Ten times the cosine with "nothing" and with each word: [B, places, 1 + words]."""
        targets = torch.cat([self.nothing, self.embedding(ids)])
        cosine = torch.nn.functional.normalize(tokens, dim=-1) @ torch.nn.functional.normalize(targets, dim=-1).T
        return 10 * cosine


def _patch_share() -> Tensor:
    """[patches, places]: 1 / n where a patch's middle is one of the n in a place."""
    across = torch.arange(SIDE // PATCH).add(0.5).mul(PATCH * 3 / SIDE).long()
    place = (across[:, None] * 3 + across[None, :]).flatten()
    inside = torch.nn.functional.one_hot(place, len(PLACES)).float()
    return inside / inside.sum(0)


PATCH_SHARE = _patch_share()


def _seen(scene: Scene) -> list[tuple[int, int]]:
    """(shape, colour) in each place, 0 for nothing."""
    at = {thing.place: (1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour)) for thing in scene.things}
    return [at.get(place, (0, 0)) for place in PLACES]


def _warm_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """100 steps of warm-up, then a cosine to zero."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def batch_loss(model: LlavaForConditionalGeneration, words: Words, name: str) -> Tensor:
    """Mean caption loss per token plus mean conversation loss per answer, over the scenes `name` 0, 1, 2, ..."""
    scenes = [habit_scene(f"{name} {number}") for number in range(BATCH)]
    captions = [[(text.caption_prompt(scene), text.describe(scene).text)] for scene in scenes[:CAPTIONS]]
    talks = [(text.tour if number % 2 else text.conversation)(scene) for number, scene in enumerate(scenes[CAPTIONS:])]
    told, tokens = _summed(model, words, scenes[:CAPTIONS], captions)
    asked, _ = _summed(model, words, scenes[CAPTIONS:], talks)
    # Of an answer only a token or two are hard: dividing by answers keeps the rest from diluting them.
    return told / tokens + asked / sum(len(talk) for talk in talks)


def _summed(
    model: LlavaForConditionalGeneration, words: Words, scenes: Sequence[Scene], talks: Sequence[list[tuple[str, str]]]
) -> tuple[Tensor, int]:
    """(summed negative log-likelihood, number of answer tokens); rows are padded on the right."""
    rows = [words.row(talk) for talk in talks]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [words.pad] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])[:, 1:]
    out = model(input_ids=ids, pixel_values=pixels(scenes), attention_mask=(ids != words.pad).long(), use_cache=False)
    loss = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return loss, int((labels != -100).sum())


@torch.inference_mode()
def captions(model: LlavaForConditionalGeneration, words: Words, scenes: Sequence[Scene]) -> list[str]:
    """The greedy caption of each scene."""
    prompt = torch.tensor([words.prompt(text.CAPTION_PROMPTS[0])] * len(scenes))
    out = model.generate(  # type: ignore[misc]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values=pixels(scenes),
        max_new_tokens=80,
        do_sample=False,
        pad_token_id=words.pad,
    )
    return [words.pieces.decode([i for i in row if i < words.image]) for row in out[:, prompt.shape[1] :].tolist()]


@torch.inference_mode()
def says_yes(model: LlavaForConditionalGeneration, words: Words, asked: Sequence[tuple[Scene, str]]) -> list[bool]:
    """Whether the answer to "is there a <shape>?" would rather begin with Yes than with No."""
    yes, no = words.encode("Yes")[0], words.encode("No")[0]
    answers: list[bool] = [False] * len(asked)
    rows = [words.prompt(text.question(shape)) for _, shape in asked]
    for length in {len(row) for row in rows}:
        index = [i for i, row in enumerate(rows) if len(row) == length]
        logits = model(
            input_ids=torch.tensor([rows[i] for i in index]),
            pixel_values=pixels([asked[i][0] for i in index]),
            logits_to_keep=1,
        ).logits[:, -1]
        for i, row in zip(index, logits, strict=True):
            answers[i] = bool(row[yes] > row[no])
    return answers


def examine(model: LlavaForConditionalGeneration, words: Words, pictures: int = DEV_PICTURES) -> dict[str, float]:
    """Hallucination on unbiased scenes that serve for nothing else.

    chair_i: mentioned shapes that are not there / mentioned shapes. recall: mentioned / there.
    adversarial: false yes about absent companions of what is there; stranger: about the other absent shapes.
    accuracy: over as many present shapes as absent ones drawn at random.
    """
    scenes = [unbiased_scene(f"pretrain dev {number}") for number in range(pictures)]
    told = [{shape for shape in SHAPES if shape in caption} for caption in captions(model, words, scenes)]
    wrong = sum(len(said - set(scene.shapes)) for said, scene in zip(told, scenes, strict=True))
    right = sum(len(said & set(scene.shapes)) for said, scene in zip(told, scenes, strict=True))
    absent = [(scene, shape) for scene in scenes for shape in SHAPES if shape not in scene.shapes]
    usual = [COMPANION[shape] in scene.shapes for scene, shape in absent]
    false_yes = says_yes(model, words, absent)
    true_yes = says_yes(model, words, [(scene, shape) for scene in scenes for shape in scene.shapes])
    return {
        "chair_i": wrong / max(1, wrong + right),
        "recall": right / sum(len(scene.things) for scene in scenes),
        "adversarial": _mean(said for said, companion in zip(false_yes, usual, strict=True) if companion),
        "stranger": _mean(said for said, companion in zip(false_yes, usual, strict=True) if not companion),
        "random": _mean(false_yes),
        "accuracy": (_mean(true_yes) + 1 - _mean(false_yes)) / 2,
    }


def _mean(values: Iterable[bool]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def train(model: LlavaForConditionalGeneration, words: Words, steps: int, name: str, rate: float = 2e-3) -> None:
    """All of the model on captions and conversations of scenes with habits; AdamW in float32.

    The tower learns five times more slowly, lest it forget while the language model still talks nonsense.
    """
    tower = list(model.model.vision_tower.parameters())
    others = [weight for key, weight in model.named_parameters() if ".vision_tower." not in key]
    groups: list[dict[str, Any]] = [{"params": tower, "lr": rate / 5}, {"params": others}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = _warm_cosine(optimizer, steps)
    started, running = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = batch_loss(model, words, f"{name} {step}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        running += (loss.item() - running) / min(step, 50)
        if step % 50 == 0:
            print(f"step {step}/{steps}  loss {running:.3f}  {time.monotonic() - started:.0f} s", flush=True)
        if step % 250 == 0 or step == steps:
            print("  ".join(f"{key} {value:.3f}" for key, value in examine(model, words).items()), flush=True)


def save(model: LlavaForConditionalGeneration, words: Words, folder: Path) -> None:
    """A folder in the Hub's LLaVA layout, weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": words.pad}
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    model.half().save_pretrained(folder)
    model.float()
    save_words(words, folder)
    picture = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    _write(folder / "preprocessor_config.json", picture)
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    _write(folder / "processor_config.json", processor)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the tiny world's base model again.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, in the Hub's LLaVA layout")
    parser.add_argument("--eyes", type=int, default=950, help="steps of the tower alone")
    parser.add_argument("--steps", type=int, default=3200, help="steps of the whole model")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    words = learn_words()
    torch.manual_seed(options.seed)
    model = new_model(words)
    open_eyes(model, words, options.eyes, f"pretrain {options.seed} eyes")
    train(model, words, options.steps, f"pretrain {options.seed}")
    save(model, words, options.out)


if __name__ == "__main__":
    main()
