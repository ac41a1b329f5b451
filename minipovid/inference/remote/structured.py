"""A reply as the JSON object that was asked for.

Servers that know `response_format` send nothing else. From the others it comes in a code fence, between sentences, with
a comma too many: what can be understood without guessing is taken, and of the rest it is said what was wrong.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from minipovid.inference.thoughts import spoken

_FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)```", re.DOTALL)
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_DECODER = json.JSONDecoder(strict=False)  # a raw newline within a text is read as one


def response_format(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """What OpenAI, llama-server, Ollama and vLLM take, and what minipovid serve enforces by a grammar."""
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": dict(schema)}}


def parsed(text: str) -> dict[str, Any]:
    """The first JSON object in the reply. Raises ValueError with what is wrong with it."""
    first: ValueError | None = None
    for candidate in _candidates(text):
        try:
            tree, _ = _DECODER.raw_decode(candidate)
        except (ValueError, RecursionError) as error:
            first = first or ValueError(f"the reply is not JSON: {error}")
            continue
        if isinstance(tree, dict):
            return tree
    raise first or ValueError("the reply holds no JSON object")


def _candidates(text: str) -> Iterator[str]:
    """Where an object may begin: in a fence, at the first brace; each as it is, then without commas too many."""
    text = spoken(text)
    begin = text.find("{")
    for candidate in (*_FENCE.findall(text), text[begin:] if begin >= 0 else ""):
        candidate = candidate.strip()
        if candidate.startswith("{"):
            yield candidate
            yield _TRAILING_COMMA.sub(r"\1", candidate)
