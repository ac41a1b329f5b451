"""A SentencePiece vocabulary: from tokenizer.model or, where a checkpoint holds none, from tokenizer.json's merges.

llama.cpp joins the neighbours whose union scores highest, transformers applies the merge of the lowest rank; so a token
scores the rank of its first merge, negated. (llama.cpp's own converter gives all of them one score then: rare words
come apart wrongly.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minipovid.export.vocabulary.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Pieces, VocabPiece

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def keys(folder: Path, model: Mapping[str, Any]) -> tuple[Pieces, dict[str, Any]]:
    """(the model's own tokens, GGUF keys besides their list); `model` is tokenizer.json's."""
    path = folder / "tokenizer.model"
    table = _from_file(path) if path.is_file() else _from_merges(model)
    return table, {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}


def _from_file(path: Path) -> Pieces:
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())
    return {i: VocabPiece(model.id_to_piece(i), model.get_score(i), _type(model, i)) for i in ids}


def _type(model: Any, index: int) -> int:
    flags = [(model.is_unknown, UNKNOWN), (model.is_control, CONTROL), (model.is_unused, UNUSED), (model.is_byte, BYTE)]
    return next((kind for is_kind, kind in flags if is_kind(index)), NORMAL)


def _from_merges(model: Mapping[str, Any]) -> Pieces:
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs(model["merges"])):
        ranks.setdefault(left + right, rank)
    unmerged, unknown = len(ranks), model.get("unk_token") or "<unk>"
    return {
        index: VocabPiece(text, -float(ranks.get(text, unmerged)), _kind(text, unknown))
        for text, index in model["vocab"].items()
    }


def _kind(text: str, unknown: str) -> int:
    if text == unknown:
        return UNKNOWN
    return BYTE if _BYTE.fullmatch(text) else NORMAL


def pairs(merges: Iterable[Any]) -> Iterable[tuple[str, str]]:
    """Merges as pairs; older tokenizer.json files write "left right"."""
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right
