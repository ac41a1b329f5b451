"""How many tokens the rows take with a model's own tokenizer, and which do not fit."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minipovid.common.errors import MinipovidError
from minipovid.models import chat_template, families, tokenizer
from minipovid.models.encoder import Encoder
from minipovid.models.hub import configuration, resolve_model
from minipovid.models.tokenizer import SpecialTokenError
from minipovid.pairs.check.findings import Finding
from minipovid.pairs.pair import Pair
from minipovid.pairs.source import PairSource
from minipovid.recipe.schema import ModelSection


class TokenCounts(NamedTuple):
    """Tokens of a row: prompt, picture and the longer of the two answers."""

    model: str
    max_length: int
    picture: int
    median: int
    most: int  # what 95 % of the rows take at most
    longest: int
    too_long: int  # rows


class TokenLengths:
    """The running list: 4 bytes a row."""

    def __init__(self, encoder: Encoder, model: str, max_length: int) -> None:
        self.encoder, self.model, self.max_length = encoder, model, max_length
        self.lengths = array("i")

    @classmethod
    def of(cls, source: PairSource) -> TokenLengths | None:
        """None where no model is named. Raises MinipovidError where its tokenizer cannot be had."""
        if source.model is None:
            return None
        return cls(_encoder(source.model), source.model.path, source.max_length)

    def see(self, pair: Pair) -> Iterator[Finding]:
        try:
            example = self.encoder(pair.prompt, pair.texts())
        except MinipovidError as error:
            kind = "special token in the text" if isinstance(error, SpecialTokenError) else "cannot be tokenised"
            yield Finding(kind, str(error))
            return
        longer, length = max(((side, len(ids)) for side, ids in example.answers.items()), key=lambda each: each[1])
        total = len(example.prompt) + length
        self.lengths.append(total)
        if total > self.max_length:
            why = f"prompt and picture ({len(example.prompt)}) and the {longer} answer ({length})"
            yield Finding("too long", f"{why} take {total} tokens, more than the {self.max_length} of data.max_length")

    def summary(self) -> TokenCounts:
        lengths = np.frombuffer(self.lengths, np.int32) if self.lengths else np.zeros(1, np.int32)
        median, most, longest = (int(value) for value in np.percentile(lengths, [50, 95, 100], method="higher"))
        too_long = int((lengths > self.max_length).sum())
        return TokenCounts(self.model, self.max_length, self.encoder.image_tokens, median, most, longest, too_long)


def _encoder(section: ModelSection) -> Encoder:
    """Of the configuration and the tokenizer alone: no weight is read. It refuses nothing for its length.

    models/load.py, which reads configurations too, is left alone: what it imports takes 200 MiB.
    """
    folder = resolve_model(section.path, section.revision, weights=False)
    config, words = configuration(folder), tokenizer.load(folder)
    family = families.of(config.model_type)
    image = family.image_token_id(config)
    chat = chat_template.of(folder, words, image)
    return Encoder(chat, words, image, family.image_tokens(config, families.PHOTO), sys.maxsize)
