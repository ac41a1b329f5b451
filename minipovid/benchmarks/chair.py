"""CHAIR: which objects does a caption mention that are not there? (Rohrbach et al., arXiv 1809.02156)

The file lists pictures with what is in them; `objects.txt` beside it has one object per line with its synonyms:

    {"image": "images/eval/eval-0001.png", "prompt": "Describe the picture.", "objects": ["circle", "star"]}
    circle, disc, dot
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from minipovid.errors import MinipovidError
from minipovid.types import Answer, Question

MAX_TOKENS = 256


def questions(path: Path) -> list[Question]:
    """Raises MinipovidError where the file, or objects.txt beside it, is not what CHAIR needs."""
    names = path.with_name("objects.txt")
    if not names.is_file():
        raise MinipovidError(f"CHAIR needs the objects' names and synonyms in {names}, and that file is not there.")
    synonyms = _synonyms(names)
    result = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            truth = {"objects": sorted(row["objects"]), "synonyms": synonyms}
            result.append(Question(str(number), row["image"], row["prompt"], truth, MAX_TOKENS))
        except (ValueError, KeyError, TypeError):
            raise MinipovidError(
                f"{path}: line {number} is no CHAIR picture; it should hold image, prompt and objects as JSON."
            ) from None
    return result


def mentions(caption: str, synonyms: Mapping[str, str]) -> list[str]:
    """The objects that a caption mentions, in order and as often as it does; plurals in -s and -es count."""
    words = re.findall(r"[a-z]+", caption.lower())
    found, at = [], 0
    while at < len(words):
        for width in (2, 1):
            phrase = " ".join(words[at : at + width])
            known = next((synonyms[form] for form in _singulars(phrase) if form in synonyms), None)
            if known is not None:
                found.append(known)
                at += width - 1
                break
        at += 1
    return found


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """chair_s: captions with an absent object; chair_i: mentions that are of absent objects; recall: objects named."""
    hallucinated = mentioned = with_any = found = there = words = 0
    for answer in answers:
        truth = set(answer.question.truth["objects"])
        said = mentions(answer.text, answer.question.truth["synonyms"])
        wrong = sum(name not in truth for name in said)
        hallucinated, mentioned, with_any = hallucinated + wrong, mentioned + len(said), with_any + (wrong > 0)
        found, there = found + len(truth & set(said)), there + len(truth)
        words += len(answer.text.split())
    captions = max(len(answers), 1)
    return {
        "chair_s": with_any / captions,
        "chair_i": hallucinated / max(mentioned, 1),
        "recall": found / max(there, 1),
        "words": words / captions,
    }


def _synonyms(path: Path) -> dict[str, str]:
    """Every synonym -> its object, the first word of its line."""
    lines = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return {name.strip(): line[0].strip() for line in lines for name in line}


def _singulars(phrase: str) -> tuple[str, ...]:
    return phrase, phrase.removesuffix("s"), phrase.removesuffix("es")
