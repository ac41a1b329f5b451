"""One token of a vocabulary, as llama.cpp wants it listed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types


class VocabPiece(NamedTuple):
    text: str
    score: float
    kind: int


Pieces = dict[int, VocabPiece]  # by id; what is missing is padding


def in_order(table: Pieces, size: int) -> list[VocabPiece]:
    """All `size` tokens in the order of their ids. Rows of the embedding that no text uses get unique names: without
    them llama.cpp aborts the whole process."""
    return [table.get(index) or VocabPiece(f"[PAD{index}]", -10000.0, UNUSED) for index in range(size)]


def with_added(table: Pieces, tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """The model's own tokens and those that were added to the tokenizer. A token may be both; then it is a special one
    although the model takes it for text, unless that knows better."""
    table = dict(table)
    for index, token in tokenizer.added_tokens_decoder.items():
        if index not in table or table[index].kind == NORMAL:
            table[index] = VocabPiece(token.content, -1000.0, CONTROL if token.special else USER_DEFINED)
    return table
