"""A server for this machine: its address is had before anything is loaded, and no web page gets in by another name.

    with bound("127.0.0.1", 8080) as door:      # a taken port is told here
        with quiet_end():
            server(app, print, "/v1").run(sockets=[door])       # prints http://127.0.0.1:8080/v1 once it listens

DNS rebinding: a page of another site can make a browser call this machine under a name of its own, which its DNS points
here; the Host header then holds that name. An app that is for this machine refuses what `is_for_this_machine` denies.
"""

from __future__ import annotations

import ipaddress
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from minipovid.common.errors import MinipovidError

PATIENCE = 3  # seconds that running answers get when the server is told to end
_HOST = re.compile(r"(?:\[(?P<v6>[^]]*)\]|(?P<name>[^:]*))(?::\d*)?")  # "[::1]:8080", "localhost", "127.0.0.1:80"


def is_loopback(host: str) -> bool:
    """Is this address, or name of one, the machine itself?"""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_for_this_machine(host_header: str) -> bool:
    """Does a request's Host header name this machine, with or without a port? What is malformed does not."""
    host = _HOST.fullmatch(host_header)
    return host is not None and is_loopback(host["name"] if host["v6"] is None else host["v6"])


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address and does not listen yet: a taken port is told before anything is loaded.

    `port` 0 takes any free one. Raises MinipovidError.
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


def server(app: Any, announce: Callable[[str], None], path: str = "/") -> uvicorn.Server:
    """uvicorn without its own logs (they hold whole URLs) and without what it would load or trust by itself.

    `announce` gets the URL of `path` once the server listens.
    """
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
    return _Server(config, announce, path)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, announce: Callable[[str], None], path: str):
        super().__init__(config)
        self._announce, self._path = announce, path

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        for door in sockets or []:
            address, port = door.getsockname()[:2]
            self._announce(f"http://{f'[{address}]' if ':' in address else address}:{port}{self._path}")


@contextmanager
def quiet_end() -> Iterator[None]:
    """uvicorn ends in peace and then raises the signal again that ended it; here that does nothing.

    From then on what still computes is given time to finish a step, and the same signal once more ends everything at
    once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def once(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, once) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
