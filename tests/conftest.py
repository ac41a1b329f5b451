"""What holds for every test: no network, no Hub, a cache folder of its own, no more threads than a small model uses."""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="minipovid-tests-")  # goes when the session ends
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))  # before anything imports torch
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _refuse_outside(host: Any) -> None:
    """Raise RuntimeError unless `host` is this machine."""
    if host in (None, "", "localhost", b"localhost"):
        return
    try:
        inside = ipaddress.ip_address(host if isinstance(host, str) else host.decode()).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise RuntimeError(f"a test wants the network: {host}")


class _LoopbackSocket(socket.socket):
    """A socket that connects to this machine only."""

    def connect(self, address: Any) -> None:
        if self.family in _INTERNET:
            _refuse_outside(address[0])
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        if self.family in _INTERNET:
            _refuse_outside(address[0])
        return super().connect_ex(address)


_getaddrinfo = socket.getaddrinfo


def _loopback_getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
    _refuse_outside(host)
    return _getaddrinfo(host, *rest, **named)


socket.socket = _LoopbackSocket  # type: ignore[misc]
socket.getaddrinfo = _loopback_getaddrinfo
