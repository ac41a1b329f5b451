"""VLFeedback (MMInstruction, 80,258 rows): four models' answers, each rated 1-5 by GPT-4V in three aspects.

    {"id": "svit-detail-17", "prompt": "What is this?", "models": [...], "completions": [{"model": "qwen_vl_chat",
      "response": "A cat.", "annotations": {"Helpfulness": {"Rating": "4", "Rationale": "..."},
      "Ethical Considerations": {...}, "Visual Faithfulness": {...}}}, ...], "img_path": "..."}

Its own rule (run_dpo.py of vlf-silkie/VLFeedback, arXiv 2312.10665): an answer's score is the mean of its ratings, each
two answers are a pair, the higher score is chosen; equal scores and ratings that are no numbers make none. So a row
gives up to six pairs. Ids repeat in the data, so the row's number goes into a pair's. As published, the jsonl names no
picture: it is <id>.jpg of merged_images.zip, so `data.images` is that folder; of img_path only the file's name counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from minipovid.common.data_files import Bad, short, text
from minipovid.images import embedded
from minipovid.pairs.conversations import answer, question
from minipovid.pairs.pair import BadRow, Pair
from minipovid.pairs.reading import NoPair, identity, known, pairs_of, rows


class Rated(NamedTuple):
    """One model's answer; the score is None where a rating is no number."""

    model: str
    text: str
    score: float | None


def read(path: Path) -> Iterator[Pair | BadRow]:
    yield from pairs_of(_pairs(path), lambda row: row["pair"])


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("prompt", "completions"), ("id", "models", "img_path", "image"))


def _pairs(path: Path) -> Iterator[tuple[str, Any]]:
    """The pairs of every row, each as a row of its own; what makes none as a Bad."""
    for number, row in rows(path):
        try:
            for pair in _combined(number, row) if isinstance(row, dict) else [row]:
                yield number, {"id": pair.id, "pair": pair} if isinstance(pair, Pair) else pair
        except Bad as bad:
            yield number, bad


def _combined(number: str, row: dict[str, Any]) -> list[Pair]:
    rated = [_rated(completion) for completion in _completions(row)]
    prompt, image = question(text(row, "prompt"), "prompt"), _picture(row)
    pairs = []
    for (i, one), (j, other) in combinations(enumerate(rated), 2):
        if one.score is None or other.score is None or one.score == other.score:
            continue
        chosen, rejected = (one, other) if one.score > other.score else (other, one)
        sides = {"chosen": chosen, "rejected": rejected}
        source = {side: f"{each.model} (VLFeedback, {each.score:.2f})" for side, each in sides.items()}
        pairs.append(Pair(f"{identity(row)}:{number}:{i}-{j}", image, prompt, chosen.text, rejected.text, source))
    if not pairs:
        raise NoPair("no two of its answers have different scores")
    return pairs


def _rated(completion: Mapping[str, Any]) -> Rated:
    words = answer(text(completion, "response"), "response")
    return Rated(text(completion, "model"), words, _score(completion))


def _picture(row: dict[str, Any]) -> str:
    if row.get("image") is not None:
        return embedded.of(row, "image")
    if row.get("img_path") is not None:
        return PureWindowsPath(text(row, "img_path")).name  # it parts at slashes of both kinds
    return f"{identity(row) or text(row, 'id')}.jpg"


def _completions(row: dict[str, Any]) -> list[Mapping[str, Any]]:
    """The completions: a list of objects, or, as datasets stores one, an object of lists of equal length."""
    cell = row.get("completions")
    if isinstance(cell, Mapping) and all(isinstance(column, list) for column in cell.values()):
        if len({len(column) for column in cell.values()}) > 1:
            raise Bad("completions has columns of unequal lengths")
        cell = [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    if not isinstance(cell, list) or not all(isinstance(each, Mapping) for each in cell):
        raise Bad(f"completions is {short(cell)}, but it must be a list of answers with their annotations")
    return cell


def _score(completion: Mapping[str, Any]) -> float | None:
    aspects = completion.get("annotations")
    if not isinstance(aspects, Mapping) or not aspects:
        raise Bad(f"annotations is {short(aspects)}, but it must be an object of rated aspects")
    try:
        ratings = [float(aspect["Rating"]) for aspect in aspects.values()]
    except (ValueError, TypeError, KeyError):
        return None
    return sum(ratings) / len(ratings)
