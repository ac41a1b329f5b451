"""A model as an OpenAI-compatible server on this machine.

serve(Path("runs/mine"))      # prints http://127.0.0.1:8080/v1 once it listens, and answers until Ctrl-C
"""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp import Runtime
from minipovid.inference.serve.app import application, is_loopback

KEY = "MINIPOVID_API_KEY"  # the environment variable that holds the key, unless another is named
PATIENCE = 3  # seconds that running answers get when the server is told to end

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
    announce: Callable[[str], None] = print,
    **options: Any,
) -> None:
    """Answer until SIGINT or SIGTERM. `port` 0 takes any free one; `announce` gets the URL once the server listens.

    `options` go to Runtime. The model is called `model_name`, or like the run. Raises MinipovidError for an address
    that cannot be had, and for one beyond this machine without a key (unless `no_key`).
    """
    if not is_loopback(host) and api_key is None and not no_key:
        raise MinipovidError(
            f"On {host} everyone who reaches this machine could use the model; set a key in {KEY}, or say --no-key."
        )
    with bound(host, port) as door, Runtime.open(run, quant=quant, **options) as runtime:
        model = model_name or run.resolve().name
        app = application(runtime, model, api_key=api_key, loopback=is_loopback(host))
        _log.info(
            "%s is called %s; %s", runtime.path.name, model, "a key is asked for" if api_key else "no key is asked"
        )
        with _quiet_end():
            server(app, announce).run(sockets=[door])


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


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: a taken port is told before a model is loaded.

    Raises MinipovidError.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host.lower() == "localhost" else host)
    except ValueError:
        raise MinipovidError(f"--host {host!r} is no address; take 127.0.0.1, or 0.0.0.0 for every network.") from None
    door = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((str(address), port))
    except (OSError, OverflowError) as error:
        door.close()
        why = getattr(error, "strerror", None) or str(error)
        raise MinipovidError(f"Port {port} of {host} cannot be had ({why}); choose another with --port.") from None
    return door


def server(app: Any, announce: Callable[[str], None]) -> uvicorn.Server:
    """uvicorn without its own logs (they hold whole URLs) and without what it would load or trust by itself."""
    config = uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=PATIENCE,
    )
    return _Server(config, announce)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None]):
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for door in sockets or []:
            address, port = door.getsockname()[:2]
            self._announce(f"http://[{address}]:{port}/v1" if ":" in address else f"http://{address}:{port}/v1")


@contextmanager
def _quiet_end() -> Iterator[None]:
    """uvicorn ends in peace and then raises the signal again that ended it; here that does nothing.

    From then on the model is given time to finish a step, and the same signal once more ends everything at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
