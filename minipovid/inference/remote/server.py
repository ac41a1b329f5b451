"""Where the teacher lives and the key to it, from the environment alone; the key shows in nothing that is printed.

    MINIPOVID_TEACHER_BASE_URL, MINIPOVID_TEACHER_API_KEY     http://127.0.0.1:8080/v1, and no key, for a local server
    OPENAI_BASE_URL, OPENAI_API_KEY                           what every OpenAI client reads

A model that is examined, and no teacher, has MINIPOVID_MODEL_... in the place of the first.

The first pair wins. A key goes only to the address that it stands beside: OPENAI_API_KEY is not shown to a server that
MINIPOVID_TEACHER_BASE_URL names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import is_loopback

OPENAI = "https://api.openai.com/v1"
NO_KEY = "none"  # what a server gets that asks for no key: the client insists on sending one
_SECRET = 8  # characters; a shorter key is a placeholder, and may be a word of an answer


@dataclass(frozen=True)
class Server:
    """An address and its key."""

    base_url: str
    key: str = field(default=NO_KEY, repr=False)

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] = os.environ,
        own: str = "MINIPOVID_TEACHER",
        who: str = "teacher",
        needed: bool = True,
    ) -> Server:
        """`own` begins the names of the first pair. Raises MinipovidError where there is neither a key nor the address
        of a server that may want none; where none is `needed`, for nothing will be sent, that is OpenAI's, keyless."""
        own_url = environment.get(f"{own}_BASE_URL", "")
        own_key = _key(environment, f"{own}_API_KEY")
        if own_url:
            return cls(_checked(own_url, f"{own}_BASE_URL"), own_key or NO_KEY)
        url, key = environment.get("OPENAI_BASE_URL", ""), own_key or _key(environment, "OPENAI_API_KEY")
        if needed and not url and not key:
            raise MinipovidError(
                f"No {who} is named: export OPENAI_API_KEY, or for a local server {own}_BASE_URL, such as "
                "http://127.0.0.1:8080/v1."
            )
        return cls(_checked(url, "OPENAI_BASE_URL") if url else OPENAI, key or NO_KEY)

    @property
    def name(self) -> str:
        """Host, port and path: without a password that the address may hold."""
        parts = urlsplit(self.base_url)
        port = f":{parts.port}" if parts.port else ""
        return f"{parts.hostname}{port}{parts.path.rstrip('/')}"

    @property
    def is_local(self) -> bool:
        """Does it run on this machine?"""
        return is_loopback(urlsplit(self.base_url).hostname or "")

    def hush(self, text: str) -> str:
        """The text with the key, and a password of the address, replaced by ***."""
        for secret in (self.key, urlsplit(self.base_url).password or ""):
            if len(secret) >= _SECRET:
                text = text.replace(secret, "***")
        return text


def _key(environment: Mapping[str, str], variable: str) -> str:
    key = environment.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()) or " " in key:  # no header takes it, and its error would show it
        raise MinipovidError(f"{variable} holds a character that no key has; copy the key into it again.")
    return key


def _checked(url: str, variable: str) -> str:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        whole = False
    if not whole:
        raise MinipovidError(f"{variable} is no web address; write it like http://127.0.0.1:8080/v1.")
    return url
