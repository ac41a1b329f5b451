"""What a server does not take of a request that OpenAI's takes: found out from its 400.

A parameter is dropped where the error names it, and that is kept for the next run. Where it names none, and this server
never took a schema, the next try is without one; if that goes well, so are all others of this run. `max_tokens` is not
dropped but respelt: newer OpenAI models want it as max_completion_tokens. A schema may lose its bounds alone, those of
lengths and numbers, which not every grammar counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from minipovid.inference.remote.retry import Trouble

REFUSED = (400, 422, 501)
_BOUNDS = ("minLength", "maxLength", "minItems", "maxItems")
# What may be dropped, and how an error names it; the first that fits is tried without.
_NAMED = {
    "max_tokens": ("max_completion_tokens",),
    "temperature": ("temperature",),
    "bounds": ("minlength", "maxlength", "minitems", "maxitems", "repetition", "grammar"),
    "response_format": ("response_format", "response format", "json_schema", "structured", "guided"),
}


def spelt(request: dict[str, Any], dropped: Set[str]) -> dict[str, Any]:
    """The request without what this server does not take."""
    rest = {key: value for key, value in request.items() if key not in dropped}
    if "max_tokens" in dropped:
        rest["max_completion_tokens"] = request["max_tokens"]
    if "bounds" in dropped and "response_format" in rest:
        rest["response_format"] = _unbounded(rest["response_format"])
    return rest


def _unbounded(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: _unbounded(value) for key, value in part.items() if key not in _BOUNDS}
    return [_unbounded(value) for value in part] if isinstance(part, list) else part


def named(trouble: Trouble, dropped: Set[str]) -> frozenset[str]:
    """What this refusal names that was sent: the first of the table."""
    if trouble.status not in REFUSED:
        return frozenset()
    sentence = str(trouble).lower()
    names = (name for name, spellings in _NAMED.items() if any(each in sentence for each in spellings))
    first = next((name for name in names if name not in dropped), None)
    return frozenset() if first is None else frozenset({first})


def guessed(trouble: Trouble, sent: Mapping[str, Any], schema_taken: bool) -> frozenset[str]:
    """What this refusal of what was sent may mean where it names nothing."""
    open_question = trouble.status in REFUSED and not schema_taken and "response_format" in sent
    return frozenset({"response_format"} if open_question else ())
