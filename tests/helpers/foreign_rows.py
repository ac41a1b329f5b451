"""One preference, "Why?" with the answers "A." and "B.", as each foreign format writes its row."""

from __future__ import annotations

import json


def annotated(*ratings: str) -> dict[str, dict[str, str]]:
    aspects = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
    return {name: {"Rating": rating, "Rationale": "."} for name, rating in zip(aspects, ratings, strict=True)}


TRL = {"images": ["a.png"], "prompt": "Why?", "chosen": "A.", "rejected": "B."}
ASKED = {"role": "user", "content": "Why?"}
ANSWERED = {"role": "assistant", "content": "A."}
SWIFT = {"messages": [ASKED, ANSWERED], "images": ["a.png"], "rejected_response": "B."}
FACTORY = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "A."},
    "rejected": {"from": "gpt", "value": "B."},
    "images": ["a.png"],
}
RLHF = {"image": "a.png", "text": json.dumps({"question": "Why?", "chosen": "A.", "rejected": "B."}), "idx": 1}
RLAIF = {"image": "a.png", "question": "Why?", "chosen": "A.", "rejected": "B.", "idx": "1"}
RATED = {
    "id": "a",
    "prompt": "Why?",
    "completions": [
        {"annotations": annotated("3", "5", "1"), "model": "qwen", "response": "B."},
        {"annotations": annotated("4", "5", "5"), "model": "gpt4v", "response": "A."},
    ],
}
POVID = {
    "image": "a.png",
    "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "A."}],
    "rejected_conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "B."}],
}
