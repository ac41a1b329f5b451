"""`minipovid serve` on loopback, within a test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from minipovid.common.local_http import bound, server
from minipovid.inference.llama_cpp import Runtime
from minipovid.inference.serve.app import application


@contextmanager
def serving(model: Runtime) -> Iterator[str]:
    """The URL of `minipovid serve` on loopback."""
    urls: list[str] = []
    ready = threading.Event()

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    door = bound("127.0.0.1", 0)
    running = server(application(model, "tinyworld"), announce, "/v1")
    thread = threading.Thread(target=running.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield urls[0]
    finally:
        running.should_exit = True
        thread.join(20)
