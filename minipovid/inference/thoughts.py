"""What a reasoning model thinks before it speaks is no part of what it says, whoever reads that."""

from __future__ import annotations

import re

_TAG = r"(?:think(?:ing)?|thoughts?|reasoning)"
_WHOLE = re.compile(rf"<({_TAG})>.*?</\1>", re.DOTALL | re.IGNORECASE)
# Some templates write the opening tag into the prompt, and a reply that was cut off has no closing one.
_ENDED = re.compile(rf"^.*</{_TAG}>", re.DOTALL | re.IGNORECASE)
_BEGUN = re.compile(rf"<{_TAG}>.*$", re.DOTALL | re.IGNORECASE)


def spoken(text: str) -> str:
    """The text without its thoughts: <think>...</think> and its like, also where one of the two tags is not there."""
    if "<" not in text:
        return text
    said = _BEGUN.sub("", _ENDED.sub("", _WHOLE.sub("", text)))
    return text if said == text else said.strip()
