"""A model as an OpenAI-compatible server on this machine.

serve(Path("runs/mine"))      # prints http://127.0.0.1:8080/v1 once it listens, and answers until Ctrl-C
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import bound, is_loopback, quiet_end, server
from minipovid.inference.llama_cpp import Runtime
from minipovid.inference.serve.app import application

KEY = "MINIPOVID_API_KEY"  # the environment variable that holds the key, unless another is named

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(:\d+)?|https?://\[[0-9a-f:]+\](:\d+)?")  # as browsers spell it
_log = logging.getLogger("minipovid.serve")


def serve(
    run: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    quant: str | None = None,
    api_key: str | None = None,
    no_key: bool = False,
    model_name: str | None = None,
    allow_origins: Sequence[str] = (),
    announce: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Answer until SIGINT or SIGTERM. `port` 0 takes any free one; `announce` gets the URL once the server listens.

    `options` go to Runtime. The model is called `model_name`, or like the run. Web pages of `allow_origins` may ask,
    as far as they get here: the guard against DNS rebinding stays. Raises MinipovidError for an address
    that cannot be had, for one beyond this machine without a key (unless `no_key`), and for what is no origin.
    """
    for origin in allow_origins:
        if not _ORIGIN.fullmatch(origin):
            raise MinipovidError(
                f"--allow-origin {origin!r} is no origin; name the page's scheme and host, and its port if it has one, "
                "as in https://example.org or http://localhost:3000."
            )
    if not is_loopback(host) and api_key is None and not no_key:
        raise MinipovidError(
            f"On {host} everyone who reaches this machine could use the model; set a key in {KEY}, or say --no-key."
        )
    with bound(host, port) as door, Runtime.open(run, quant=quant, **options) as runtime:
        model = model_name or run.resolve().name
        app = application(runtime, model, api_key=api_key, loopback=is_loopback(host), origins=allow_origins)
        _log.info(
            "%s is called %s; %s", runtime.path.name, model, "a key is asked for" if api_key else "no key is asked"
        )
        with quiet_end():
            server(app, announce, "/v1").run(sockets=[door])


def key_from(variable: str | None) -> str | None:
    """The API key in an environment variable; None where none was named and MINIPOVID_API_KEY is not set.

    Raises MinipovidError for a named variable that is missing, and for an empty key.
    """
    key = os.environ.get(variable or KEY)
    if key is None and variable is None:
        return None
    if not key:
        raise MinipovidError(f"The environment variable {variable or KEY} holds no key; set it, or leave it out.")
    return key
