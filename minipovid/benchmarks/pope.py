"""POPE: is this object in the picture? (Li et al., arXiv 2305.10355)

One file per sampling rule, JSON lines despite the usual `.json`:

    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a car in the image?", "label": "no"}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from minipovid.errors import MinipovidError
from minipovid.types import Answer, Question

MAX_TOKENS = 16


def questions(path: Path) -> list[Question]:
    """Raises MinipovidError where the file is not POPE's."""
    result = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(text)
            truth = {"label": {"yes": "yes", "no": "no"}[row["label"].lower()]}
            result.append(Question(str(row["question_id"]), row["image"], row["text"], truth, MAX_TOKENS))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MinipovidError(
                f"{path}: line {number} is no POPE question; it needs question_id, image, text and label (yes or no)."
            ) from None
    return result


def says_yes(answer: str) -> bool:
    """The official reading: "no" if the first sentence holds the word No, no or not; anything else is a yes."""
    words = answer.strip().partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def score(answers: Sequence[Answer]) -> dict[str, float]:
    """Shares in [0, 1]; `false_yes` is FP / (FP + TN), how often an absent object is affirmed."""
    counts = {(truth, said): 0 for truth in (True, False) for said in (True, False)}
    for answer in answers:
        counts[answer.question.truth["label"] == "yes", says_yes(answer.text)] += 1
    (tp, fn), (fp, tn) = ((counts[truth, True], counts[truth, False]) for truth in (True, False))
    return {
        "accuracy": _share(tp + tn, len(answers)),
        "precision": _share(tp, tp + fp),
        "recall": _share(tp, tp + fn),
        "f1": _share(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": _share(tp + fp, len(answers)),
        "false_yes": _share(fp, fp + tn),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
