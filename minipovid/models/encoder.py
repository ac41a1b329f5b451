"""A question and its answers -> token ids, with one for every image token; or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.models import chat_template
from minipovid.models.chat_template import IMAGE, Chat
from minipovid.models.tokenizer import SpecialTokenError

if TYPE_CHECKING:
    from minipovid.models.model import Model


class Example(NamedTuple):
    """One row of data as token ids; the prompt holds every image token."""

    prompt: list[int]
    answers: dict[str, list[int]]


class Encoder:
    """Text to tokens for one model: an Example, or a sentence that says why the row cannot be trained on."""

    def __init__(self, chat: Chat, tokenizer: Any, image_token_id: int, image_tokens: int, max_length: int) -> None:
        self.chat, self.tokenizer = chat, tokenizer
        self.image_token_id, self.image_tokens, self.max_length = image_token_id, image_tokens, max_length
        self.image = chat_template.placeholder(tokenizer, image_token_id)

    @classmethod
    def of(cls, model: Model, max_length: int) -> Encoder:
        chat = chat_template.of(model.folder, model.tokenizer, model.image_token_id)
        return cls(chat, model.tokenizer, model.image_token_id, model.image_tokens, max_length)

    def __call__(self, question: str, texts: Mapping[str, str]) -> Example:
        """Of a question about one picture and its answers by name ("chosen", ...).

        Raises MinipovidError where the row does not fit `max_length`, and SpecialTokenError where a text holds a
        special token of the model. The sign that ends an answer may stand behind it once.
        """
        differ = len(set(texts.values())) > 1
        texts = {kind: self.chat.bare(text) for kind, text in texts.items()}
        self._check(question, texts)
        if differ and len(set(texts.values())) == 1:
            raise SpecialTokenError("the answers are the same but for the sign that ends them; make them differ")
        prompt = self.chat.prompt(question)
        prompt_ids = self.token_ids(prompt)
        answers = {kind: self._continuation(prompt, prompt_ids, text, kind) for kind, text in texts.items()}
        where = prompt_ids.index(self.image_token_id)
        expanded = [*prompt_ids[:where], *[self.image_token_id] * self.image_tokens, *prompt_ids[where + 1 :]]
        for kind, ids in answers.items():
            total = len(expanded) + len(ids)
            if total > self.max_length:
                raise MinipovidError(
                    f"prompt ({len(expanded) - self.image_tokens}), picture ({self.image_tokens}) and {kind} answer "
                    f"({len(ids)}) take {total} tokens, more than data.max_length {self.max_length}; shorten the row "
                    "or raise data.max_length"
                )
        return Example(expanded, answers)

    def token_ids(self, text: str) -> list[int]:
        """Of a rendered conversation, one token for each picture's place.

        Raises MinipovidError where the tokenizer does not know the placeholder.
        """
        ids: list[int] = self.tokenizer(text.replace(IMAGE, self.image)).input_ids
        if ids.count(self.image_token_id) != text.count(IMAGE):
            raise MinipovidError(
                f"the tokenizer does not take {self.image} for one token, {self.image_token_id}; take tokenizer.json "
                "and config.json from the same model"
            )
        return ids

    def _check(self, question: str, answers: Mapping[str, str]) -> None:
        """Raises SpecialTokenError."""
        for name, text in {"question": question, **{f"{kind} answer": text for kind, text in answers.items()}}.items():
            if why := self.chat.obeyed(text):
                raise SpecialTokenError(f"the {name} {why}")
        empty = [kind for kind, text in answers.items() if not text]
        if empty:
            raise SpecialTokenError(f"the {empty[0]} answer is empty but for the sign that ends it; write one")

    def _continuation(self, prompt: str, prompt_ids: list[int], text: str, kind: str) -> list[int]:
        """The answer's tokens as they follow the prompt; tokenising both together must not change the prompt's own."""
        ids = self.token_ids(prompt + self.chat.answer(text))
        if ids[: len(prompt_ids)] != prompt_ids:
            raise MinipovidError(f"the {kind} answer's first characters melt into the prompt's last token; rephrase it")
        return ids[len(prompt_ids) :]
