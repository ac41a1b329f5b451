"""The body of an answer over HTTP: a chat completion, or what a server says is wrong.

An error may come as OpenAI sends it, as a list of FastAPI's objects (HTTP 422), or within an HTTP 200.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from minipovid.inference import remote
from minipovid.inference.remote.retry import QUOTA, Trouble

_SHOWN = 100  # characters of a body that nobody understands


def reply(body: str, prompt_tokens: int) -> remote.Reply:
    """A chat completion. Raises Trouble where it is none: an error within HTTP 200 as its own status would be."""
    tree = loaded(body)
    choices = tree.get("choices") if isinstance(tree, dict) else None
    choice: Any = choices[0] if isinstance(choices, list) and choices else None
    for part in (tree, choice):
        if isinstance(part, dict) and part.get("error"):
            raise trouble(200, part)
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise Trouble(f"the server's answer is no chat completion: {body[:_SHOWN]!r}")
    content = message.get("content")
    text = _text(content)
    has_thought = any(_text(message.get(name)) for name in ("reasoning_content", "reasoning"))
    return remote.Reply(
        text,
        str(choice.get("finish_reason") or ""),
        _text(message.get("refusal")) or "".join(_refusals(content)),
        _usage(tree.get("usage"), prompt_tokens, text),
        model=_text(tree.get("model")),
        mute=content is None or (not text and has_thought),
    )


def trouble(status: int, body: Any, wait: float | None = None) -> Trouble:
    """What a server says is wrong, as one sentence. `status` is HTTP's; an error within a 200 may have its own."""
    error = body.get("error") if isinstance(body, dict) else None
    error = body if error is None else error
    codes = [error.get(name) for name in ("code", "type")] if isinstance(error, dict) else []
    own = next((int(code) for code in map(str, codes) if code.isdecimal() and 400 <= int(code) < 600), 0)
    named = [code for code in codes if isinstance(code, str)]
    code = QUOTA if QUOTA in named else next(iter(named), "")
    where = f"HTTP 200, error {own}" if status == 200 and own else f"HTTP {status}"
    words = f"{where}: {_sentence(error) or 'no reason given'}"
    return Trouble(words, status=own if status == 200 else status, code=code, wait=wait)


def loaded(body: str) -> Any:
    """The JSON of a body; the text itself where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


def _sentence(error: Any) -> str:
    """The words of an error, whatever holds them."""
    if isinstance(error, str):
        return error
    if isinstance(error, list):
        return "; ".join(filter(None, map(_sentence, error)))
    if not isinstance(error, Mapping):
        return ""
    words = next((said for key in ("message", "msg", "detail", "error") if (said := _sentence(error.get(key)))), "")
    place = error.get("loc", error.get("param"))
    where = ".".join(str(each) for each in place if each != "body") if isinstance(place, list) else str(place or "")
    return f"{where}: {words}" if where and words else words


def _text(content: Any) -> str:
    """A text, or the texts of a list of parts that are said: no thoughts and no refusals."""
    if isinstance(content, list):
        return "".join(map(_part, content))
    return content if isinstance(content, str) else ""


def _part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
        return _text(part.get("text"))
    return part if isinstance(part, str) else ""


def _refusals(content: Any) -> Iterator[str]:
    if isinstance(content, list):
        yield from (_text(part.get("refusal")) for part in content if isinstance(part, dict))


def _usage(usage: Any, prompt_tokens: int, text: str) -> remote.Usage:
    """What the server counted; by the rule of thumb where it counts nothing."""
    prompt, answer = (usage.get("prompt_tokens"), usage.get("completion_tokens")) if isinstance(usage, dict) else (0, 0)
    if isinstance(prompt, int) and isinstance(answer, int) and min(prompt, answer) >= 0 and prompt + answer:
        return remote.Usage(1, prompt, answer)
    return remote.Usage(1, prompt_tokens, remote.text_tokens(text) + 1, estimated=1)
