"""Texts that do not belong where they stand, seen by one row alone.

A reader refuses a row whose two answers open with different questions (POVID, TRL). Here is what it cannot see: a
question that names another picture, columns that were mixed up, marks of a chat, an answer that is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from minipovid.common.data_files import short
from minipovid.models.chat_template import IMAGE
from minipovid.pairs.check.findings import Finding
from minipovid.pairs.injection import MARKS, talk
from minipovid.pairs.pair import Pair

_FILE = re.compile(r"[\w-]+\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)\b", re.IGNORECASE)
_ROLE = re.compile(r"^\s*(?:USER|ASSISTANT|Human|GPT|### ?\w+)\s*:", re.MULTILINE)
COPIED = 20  # characters of a question that an answer opens with; shorter ones may be said again by chance


def odd(pair: Pair) -> Iterator[Finding]:
    question, own = pair.prompt.strip(), PurePosixPath(pair.image.replace("\\", "/")).name
    others = (name for name in _FILE.findall(question) if not own.casefold().endswith(name.casefold()))
    if name := next(others, ""):
        yield Finding("another picture", f"the question names {name}, and the row's picture is {own}")
    texts = {"question": pair.prompt, "chosen answer": pair.chosen, "rejected answer": pair.rejected}
    for name, text in texts.items():
        if IMAGE in text:
            yield Finding("placeholder in the text", f"{IMAGE} stands in the {name}; take it out")
        if mark := _ROLE.search(text) or MARKS.search(text.replace(IMAGE, "")):
            yield Finding("marks of a chat", f"the {name} holds {short(mark.group().strip())}, a chat's own format")
    for side, answer in pair.texts().items():
        opens = len(question) >= COPIED and answer.strip().startswith(question)
        if opens or answer.strip() == question:
            yield Finding("question in the answer", f"the {side} answer opens with the question itself")
        if phrase := talk(answer):
            yield Finding("refusal or talk", f"the {side} answer refuses or talks about its task ({short(phrase)})")
