"""The tokenizer as llama.cpp needs it, from the checkpoint's own files, and the proof that both read texts alike.

tokenizer = vocabulary.load(folder)
spaces = vocabulary.spacing(tokenizer, "<image>")
keys = vocabulary.metadata(folder, tokenizer, 32064, spaces)  # of a GGUF
vocabulary.check(gguf, tokenizer, prompt, "<image>", spaces, answers)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.common.errors import MinipovidError
from minipovid.export.vocabulary import byte_level, sentencepiece
from minipovid.export.vocabulary.parity import PROBES, Spacing, check, spacing
from minipovid.export.vocabulary.pieces import in_order, with_added
from minipovid.models.tokenizer import adds_begin, load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["PROBES", "Spacing", "check", "load", "metadata", "spacing"]


def metadata(
    folder: Path, tokenizer: PreTrainedTokenizerBase, size: int, spaces: Spacing, end: str = ""
) -> dict[str, Any]:
    """GGUF keys of a vocabulary of `size` tokens; `end` ends an answer, with or without text around the token.

    Raises MinipovidError for a tokenizer that llama.cpp cannot follow, or that does not fit the model.
    """
    model = _model(tokenizer)
    is_byte_level = not model.get("byte_fallback")
    kind = byte_level if is_byte_level else sentencepiece
    table, keys = kind.keys(folder, model)
    table = with_added(table, tokenizer)
    if max(table) >= size:
        raise MinipovidError(f"The tokenizer of {folder} has {max(table) + 1} tokens, but the model only {size}.")
    pieces = in_order(table, size)
    if len({piece.text for piece in pieces}) != size:
        raise MinipovidError(f"The tokenizer of {folder} has two tokens of the same text; llama.cpp cannot load that.")
    keys |= {
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        **_ids(tokenizer, end),
        "tokenizer.ggml.add_bos_token": adds_begin(tokenizer),
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": spaces.every,
    }
    if is_byte_level:
        keys["tokenizer.ggml.pre"] = byte_level.pre(keys, tokenizer, spaces, model)
    else:
        keys["tokenizer.ggml.scores"] = [piece.score for piece in pieces]
    return keys


def _model(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What tokenizer.json says of its model. Raises MinipovidError for another kind than llama.cpp's two BPEs."""
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        raise MinipovidError(
            f"The tokenizer is a {model['type']} model; export knows SentencePiece BPE and byte-level BPE."
        )
    return model


def _ids(tokenizer: PreTrainedTokenizerBase, end: str) -> dict[str, int]:
    """Tokens with a role. llama.cpp stops at end-of-sequence and, where answers end otherwise, at end-of-turn."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.eos_token_id}
    closing = [index for index in tokenizer(end, add_special_tokens=False).input_ids if index in special]
    roles = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "eot": closing[0] if closing else None,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {f"tokenizer.ggml.{role}_token_id": index for role, index in roles.items() if index is not None}
