"""A tiny checkpoint in transformers, the oracle of llama.cpp's answers, and pictures to show both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from minipovid.models import chat_template
from minipovid.models.chat_template import Turn
from minipovid.models.families import llava

QUESTIONS = [
    "What is this?",
    "Is there a red circle?\nAnswer yes or no.",
    "naïve café 猫 🐈 xqzzyvw",
    "  two spaces  ",
]


def picture(seed: int) -> Image.Image:
    """Random colour patches, every other one wide or tall."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    return small.resize([(28, 28), (90, 40), (33, 120)][seed % 3], Image.Resampling.NEAREST)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


class Twin:
    """The checkpoint in transformers, float32; an adapter in PEFT's layout on top of it, where one is given."""

    def __init__(self, folder: Path, adapter: Path | None = None):
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        self.model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        if adapter is not None:
            from peft import PeftModel

            self.model = PeftModel.from_pretrained(self.model, adapter).merge_and_unload()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.transform = llava.image_transform(folder)
        self.chat = chat_template.of(folder, self.tokenizer)
        self.end = self.model.generation_config.eos_token_id

    def features(self, image: Image.Image) -> np.ndarray:
        with torch.no_grad():
            return llava.image_features(self.model, self._pixels([image]))[0].numpy()

    def prompt_ids(self, question: str) -> list[int]:
        """With one placeholder for the picture."""
        return self.tokenizer(self.chat.prompt(question)).input_ids

    def answer_ids(self, image: Image.Image, question: str, max_tokens: int) -> list[int]:
        return self._generate(self.prompt_ids(question), [image], max_tokens)

    def reply_ids(self, turns: Sequence[Turn], max_tokens: int) -> list[int]:
        """The greedy answer to a conversation."""
        ids = self.tokenizer(self.chat.render(turns)).input_ids
        return self._generate(ids, [image for turn in turns for image in turn.pictures], max_tokens)

    def logits(self, image: Image.Image, question: str, answer: str) -> np.ndarray:
        """Float64 [A, V]: about each of the answer's tokens, the end of the turn included."""
        prompt = self._expand(self.prompt_ids(question))
        ids = self._expand(self._ids(question, answer))
        with torch.no_grad():
            logits = self.model(input_ids=ids, pixel_values=self._pixels([image])).logits[0].double()
        return logits[prompt.shape[1] - 1 : -1].numpy()

    def logps(self, image: Image.Image, question: str, answer: str) -> np.ndarray:
        logps = torch.from_numpy(self.logits(image, question, answer)).log_softmax(-1)
        ids = torch.tensor(self._ids(question, answer)[-len(logps) :])
        return logps.gather(1, ids[:, None])[:, 0].numpy()

    def _ids(self, question: str, answer: str) -> list[int]:
        return self.tokenizer(self.chat.prompt(question) + self.chat.answer(answer)).input_ids

    def _generate(self, prompt: list[int], pictures: Sequence[Image.Image], max_tokens: int) -> list[int]:
        ids = self._expand(prompt)
        seen = {"pixel_values": self._pixels(pictures)} if pictures else {}
        settings = {"do_sample": False, "max_new_tokens": max_tokens, **seen}
        out = self.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
        out = out[0, ids.shape[1] :].tolist()
        return out[: out.index(self.end)] if self.end in out else out

    def _pixels(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return torch.from_numpy(np.stack([self.transform(image) for image in pictures]))

    def _expand(self, ids: list[int]) -> torch.Tensor:
        """One placeholder per row of a picture, as the model wants it."""
        placeholder = llava.image_token_id(self.model.config)
        rows = llava.image_tokens(self.model.config, (1, 1))
        return torch.tensor([[id for token in ids for id in [token] * (rows if token == placeholder else 1)]])
