"""Every documented form of a conversation is one and the same pair; what a pair has no place for is refused."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from foreign_rows import ANSWERED, ASKED, FACTORY, RATED, RLAIF, SWIFT, TRL
from PIL import Image

from minipovid.pairs import convert
from minipovid.pairs import formats as pairs
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import BadRow, Pair


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 3), "red").save(file, "PNG")
    return file.getvalue()


PNG = png()
DATA_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


def asking(*parts: Any, **answered: str) -> list[dict[str, Any]]:
    """Messages with a picture's part in the question, as transformers and OpenAI have it."""
    asked = {"role": "user", "content": [*parts, {"type": "text", "text": "Why?"}]}
    return [asked, *({"role": "assistant", "content": words} for words in answered.values())]


PATH, URL = {"type": "image", "path": "a.png"}, {"type": "image_url", "image_url": {"url": DATA_URL}}
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "rejected_response, a text": ("ms_swift", SWIFT),
    "rejected_response, a list": ("ms_swift", {**SWIFT, "rejected_response": [{"role": "assistant", "content": "B."}]}),
    "rejected_response, a message": (
        "ms_swift",
        {**SWIFT, "rejected_response": {"role": "assistant", "content": "B."}},
    ),
    "rejected_messages": ("ms_swift", {**SWIFT, "rejected_messages": [ASKED, {"from": "bot", "value": "B."}]}),
    "query, response, nothing before": (
        "ms_swift",
        {"query": "<image>Why?", "response": "A.", "rejected_response": "B.", "images": "a.png", "history": []}
        | {"system": None},
    ),
    "instruction, output": (
        "ms_swift",
        {"instruction": "<image>Why?", "input": "", "output": "A.", "rejected_response": "B.", "images": ["a.png"]},
    ),
    "conversation of exchanges": (
        "ms_swift",
        {"conversation": [{"human": "<image>Why?", "assistant": "A."}], "rejected_response": "B.", "image": "a.png"},
    ),
    "conversations": (
        "ms_swift",
        {
            "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "A."}],
            "rejected_response": "B.",
            "images": [{"bytes": None, "path": "a.png"}],
        },
    ),
    "the picture in ms-swift's message": (
        "ms_swift",
        {
            "messages": asking({"type": "image", "image": "a.png"}, chosen="A."),
            "rejected_response": "B.",
            "images": None,
        },
    ),
    "sharegpt": ("llamafactory", {**FACTORY, "system": "", "tools": "[]"}),
    "sharegpt with OpenAI's tags": (
        "llamafactory",
        {
            "messages": [ASKED],
            "chosen": ANSWERED,
            "rejected": {"role": "assistant", "content": "B."},
            "images": ["a.png"],
        },
    ),
    "alpaca": (
        "llamafactory",
        {"instruction": "<image>Why?", "input": "", "chosen": "A.", "rejected": "B.", "images": ["a.png"]},
    ),
    "TRL, a message": ("trl", {**TRL, "prompt": [ASKED], "chosen": [ANSWERED]}),
    "TRL, nulls": ("trl", {**TRL, "image": None, "rejected_images": None, "system": float("nan"), "id": None}),
    "transformers, path": ("trl", {"prompt": asking(PATH), "chosen": "A.", "rejected": "B.", "images": None}),
    "transformers, url of a file": (
        "trl",
        {"prompt": asking({"type": "image", "url": "file:a.png", "text": None}), "chosen": "A.", "rejected": "B."},
    ),
    "transformers, implicit prompt": (
        "trl",
        {"chosen": asking(PATH, chosen="A."), "rejected": asking(PATH, rejected="B."), "images": []},
    ),
    "the picture in both places": ("trl", {**TRL, "prompt": asking(PATH)}),
    "OpenAI": ("trl", {"prompt": asking(URL), "chosen": "A.", "rejected": [{"role": "assistant", "content": "B."}]}),
    "OpenAI, a bare link": (
        "trl",
        {"prompt": asking({"type": "image_url", "image_url": DATA_URL}), "chosen": "A.", "rejected": "B."},
    ),
    "RLAIF-V, its picture a path": ("rlaif_v", {**RLAIF, "image": None, "image_path": "a.png"}),
    "VLFeedback, a path of Windows": ("vlfeedback", {**RATED, "img_path": "C:\\merged_images\\a.png"}),
}


@pytest.mark.parametrize(("name", "row"), FORMS.values(), ids=FORMS)
def test_every_documented_form_is_read(name: str, row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "data.json").write_text(json.dumps([row, row]))
    assert pairs.detect(tmp_path / "data.json") == name
    assert convert.import_pairs(tmp_path / "data.json", tmp_path / "mine")[1:5] == (2, 0, 0, 1)
    for pair in jsonl.read(tmp_path / "mine" / "pairs.jsonl"):
        assert isinstance(pair, Pair) and (pair.prompt, pair.chosen, pair.rejected) == ("Why?", "A.", "B.")
        assert (tmp_path / "mine" / pair.image).read_bytes() == PNG


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        (
            "ms_swift",
            {**SWIFT, "system": "Be brief."},
            "system holds a text, which a pair cannot keep; take it out, or",
        ),
        ("trl", {**TRL, "system_prompt": "Be brief."}, "system_prompt holds a text, which a pair cannot keep"),
        ("trl", {**TRL, "videos": ["a.mp4"]}, "videos holds ['a.mp4'], which a pair cannot keep"),
        (
            "ms_swift",
            {"query": "Why?", "response": "A.", "rejected_response": "B.", "history": [["Q?", "A."]], "image": "a.png"},
            "history holds [['Q?', 'A.']], which a pair cannot keep",
        ),
        (
            "trl",
            {**TRL, "prompt": asking({**PATH, "path": "b.png"})},
            "the row shows 2 pictures, and a pair has one; lea",
        ),
        ("trl", {**TRL, "images": None, "prompt": asking(PATH, PATH)}, "prompt has <image> in the middle or twice"),
        (
            "trl",
            {**TRL, "images": None, "prompt": asking({"type": "image"})},
            "images is missing; a preference about a",
        ),
        (
            "ms_swift",
            {**SWIFT, "rejected_response": [ASKED, ANSWERED]},
            "rejected_response must be one answer from the assistant; its turns are from ['user', 'assistant']",
        ),
    ],
)
def test_what_a_pair_cannot_keep_is_refused(name: str, row: dict[str, Any], why: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(row))
    (bad,) = pairs.reader(name).read(tmp_path / "data.json")
    assert isinstance(bad, BadRow) and bad.why.startswith(why)
