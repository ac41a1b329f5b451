"""A model's tokenizer, and the special tokens by which the model is steered.

    special = SpecialTokens.of(tokenizer)
    special.first("use <s> for strike-through")   # "<s>": LLaVA's tokenizer takes it for the beginning of a sequence

A tokenizer does not ask who wrote `</s>`. In a text of a user it would be obeyed and not read, so no text may hold one.
Asking a model needs neither torch nor transformers: llama.cpp's side fills the same class from the file's vocabulary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.common.errors import MinipovidError
from minipovid.models.hub import settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SETTINGS, _LLAMA = "tokenizer_config.json", ("LlamaTokenizer", "LlamaTokenizerFast")


class SpecialTokenError(MinipovidError):
    """A text of a user holds what would be obeyed instead of read."""


@dataclass(frozen=True)
class SpecialTokens:
    """The texts that a tokenizer takes for special tokens; `ends` are those among them that end an answer."""

    texts: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        """Of one of transformers. A single character (`!` as padding) is a letter of everybody's texts and none."""
        added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        named = getattr(tokenizer, "all_special_tokens", ())
        texts = tuple(sorted({text for text in (*added, *named) if len(text.strip()) > 1}))
        return cls(texts, (tokenizer.eos_token,) if tokenizer.eos_token in texts else ())

    @cached_property
    def _any(self) -> re.Pattern[str]:
        """The longest first: `<|im_end|>` is named, and not a shorter one within it."""
        longest_first = sorted(self.texts, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def first(self, text: str) -> str:
        """The first special token that a text holds; "" where it holds none."""
        found = self._any.search(text)
        return found.group() if found else ""

    def without_end(self, answer: str, *ends: str) -> str:
        """An answer without the token that ends it, and the white space around that, where it is written out: data
        sets of other trainers have it so. One is taken off; an answer without one stays as it is."""
        bare = answer.rstrip()
        end = next((end for end in (*ends, *self.ends) if end and bare.endswith(end)), "")
        return bare.removesuffix(end).rstrip() if end else answer


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder. Raises MinipovidError, with the reason, where it cannot be read."""
    from transformers import AutoTokenizer, LlamaTokenizer

    own = settings(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    has_json, has_model = ((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    try:
        if has_model and not has_json and own.get("tokenizer_class", _LLAMA[0]) in _LLAMA:
            # AutoTokenizer would read it without the beginning of sequence that Llama's adds unless told otherwise.
            begins = own.get("add_bos_token", True)
            return LlamaTokenizer.from_pretrained(folder, local_files_only=True, add_bos_token=begins)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # it runs what the files say: a damaged one may raise anything
        why = next(iter(str(error).strip().splitlines()), "") or repr(error)
        raise MinipovidError(
            f"The tokenizer in {folder} cannot be read ({why}); download tokenizer.json and tokenizer_config.json of "
            "this model again."
        ) from None


def adds_begin(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does it put its beginning-of-sequence token before a text? SmolLM2 names one and adds none."""
    begin = tokenizer.bos_token_id
    return begin is not None and tokenizer("xq").input_ids[0] == begin
