"""POVID's step as the official code is built (commit 92c7c67, the variant `code` of minipovid/train/losses/povid.py),
over transformers and peft: what our step is measured against where TRL has no such method.

Three policy and three reference passes per pair: [chosen; rejected] under the clean picture, then chosen under the
noised one, whole sequences each, float32 logits of every position, log-softmax over all of them. The noisy pass runs
with autograd on though only its argmax is used, as there. Where in doubt we are kind: one tower run per sequence (six;
the official code has ten), and pairs come as ready tokens and pixels from our own dataset, noise included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from sides import BETA, LEARNING_RATE, Setting, lora, plain_model
from torch import Tensor

from minipovid.models.chat_template import VICUNA
from minipovid.models.encoder import Encoder
from minipovid.models.families import PHOTO, llava
from minipovid.pairs.source import load_pairs, locate
from minipovid.recipe import schema, strict
from minipovid.train.data import PairDataset


class Official:
    """The official structure on one pair a step."""

    def __init__(self, setting: Setting, name: str, *, checkpointing: bool) -> None:
        from transformers import AutoTokenizer

        folder, _ = setting.pairs(name)
        tree = {
            "name": "official",
            "model": {"path": str(setting.checkpoint)},
            "data": {"path": str(folder / "pairs.jsonl"), "max_length": 2048},
            "stages": [{"loss": {"name": "povid", "variant": "code"}}],
        }
        recipe = strict.validated(schema.Recipe, tree, name)
        base = plain_model(setting)
        tokenizer = AutoTokenizer.from_pretrained(setting.checkpoint)
        image = llava.image_token_id(base.config), llava.image_tokens(base.config, PHOTO)
        encoder = Encoder(VICUNA, tokenizer, *image, 2048)
        pairs, _ = load_pairs(recipe.data, encoder)
        self.data = PairDataset(
            pairs, locate(recipe.data)[1], encoder, llava.image_transform(setting.checkpoint), recipe
        )
        self.data.kinds = ("clean", "noised")
        if checkpointing:
            base.gradient_checkpointing_enable()
            base.enable_input_require_grads()
        self.model = get_peft_model(base, lora(setting)).train()
        self.setting, self.row = setting, 0
        weights = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)

    def step(self) -> None:
        example, pictures = self.data[0, self.row % len(self.data)]
        self.row += 1
        self._loss(example, {kind: torch.from_numpy(array) for kind, array in pictures.items()}).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self) -> None:
        del self.model, self.optimizer

    def _loss(self, example: Any, pictures: dict[str, Tensor]) -> Tensor:
        policy = self._three_passes(example, pictures)
        with torch.no_grad(), self.model.disable_adapter():
            reference = self._three_passes(example, pictures)
        chosen, rejected, noisy = (a - b for a, b in zip(policy, reference, strict=True))
        return -(F.logsigmoid(BETA * (chosen - rejected)) + F.logsigmoid(BETA * (chosen - noisy))) / 2

    def _three_passes(self, example: Any, pictures: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Summed log-probabilities of the chosen, the rejected and the noisy answer, all under the clean picture."""
        answers = [example.answers["chosen"], example.answers["rejected"]]
        tables = self._log_softmax(example.prompt, answers, pictures["clean"])
        says = self._log_softmax(example.prompt, answers[:1], pictures["noised"])[0].argmax(-1)
        chosen, rejected = (
            table.gather(-1, torch.tensor(answer, device=table.device)[:, None]).sum()
            for table, answer in zip(tables, answers, strict=True)
        )
        return chosen, rejected, tables[0].gather(-1, says[:, None]).sum()

    def _log_softmax(self, prompt: list[int], answers: list[list[int]], picture: Tensor) -> list[Tensor]:
        """Per answer the float32 log-probabilities [A, V], cut from those of the whole right-padded batch."""
        device, width = self.setting.device, len(prompt) + max(len(answer) for answer in answers)
        rows = [[*prompt, *answer] for answer in answers]
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        pixels = picture.to(device, self.setting.dtype).expand(len(rows), -1, -1, -1)
        with torch.autocast(device, self.setting.dtype, enabled=self.setting.dtype != torch.float32):
            logits = self.model(input_ids=ids, attention_mask=real, pixel_values=pixels, use_cache=False).logits
        table = F.log_softmax(logits.float(), -1)
        first = len(prompt) - 1
        return [row[first : first + len(answer)] for row, answer in zip(table, answers, strict=True)]
