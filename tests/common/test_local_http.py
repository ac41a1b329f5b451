"""A server for this machine: who is let in by the Host header, which address is had, and how it ends."""

from __future__ import annotations

import http.client
import signal
import threading

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import bound, is_for_this_machine, is_loopback, quiet_end, server


@pytest.mark.parametrize(
    "header",
    ["localhost", "LOCALHOST:80", "127.0.0.1", "127.0.0.1:8080", "127.9.9.9:1", "[::1]", "[::1]:8080", "localhost:"],
)
def test_a_host_header_that_names_this_machine(header: str) -> None:
    assert is_for_this_machine(header)


@pytest.mark.parametrize(
    "header",
    [
        *("", ":", ":80", "[]", "[::1", "[::1]x", "[::1]evil.example:80", "::1", "::1:80"),
        *("evil.example", "evil.example:80", "evil.example:127.0.0.1", "127.0.0.1.evil.example", "10.0.0.1:80"),
        *("localhost.evil.example", "localhost@evil.example", "evil.example@127.0.0.1", "me@localhost:80"),
        *("127.0.0.1:80:80", "127.0.0.1:evil", "127.0.0.1 evil.example", "127.0.0.1/x", "localhost.", " localhost"),
        *("0.0.0.0", "[::]", "192.168.0.7", "2130706433", "0x7f000001", "127.1", "localhost\nevil.example"),
    ],
)
def test_a_host_header_that_names_another_or_none(header: str) -> None:
    """DNS rebinding: the browser of a page of evil.example sends evil.example, wherever that points by now."""
    assert not is_for_this_machine(header)


def test_what_is_the_machine_itself() -> None:
    assert all(map(is_loopback, ("localhost", "Localhost", "127.0.0.1", "127.255.0.3", "::1")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.0.2.7", "localhost:80", "example.org", "[::1]")))


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("::1", "[::1]")])
def test_the_url_is_told_once_it_listens(host: str, shown: str) -> None:
    app = Starlette(routes=[Route("/a/b", lambda request: PlainTextResponse("here"))])
    urls: list[str] = []
    ready = threading.Event()

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    with bound(host, 0) as door:
        port = door.getsockname()[1]
        with pytest.raises(MinipovidError, match=f"Port {port} of {host} cannot be had .* choose another with --port"):
            door.listen()
            bound(host, port)
        running = server(app, announce, "/a/b")
        thread = threading.Thread(target=running.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            assert ready.wait(20) and urls == [f"http://{shown}:{port}/a/b"]
            caller = http.client.HTTPConnection(shown.strip("[]"), port, timeout=20)
            caller.request("GET", "/a/b")
            assert caller.getresponse().read() == b"here"
            caller.close()
        finally:
            running.should_exit = True
            thread.join(20)


def test_an_address_that_is_none() -> None:
    with pytest.raises(MinipovidError, match="--host 'example.org' is no address; take 127.0.0.1, or 0.0.0.0"):
        bound("example.org", 0)
    with pytest.raises(MinipovidError, match="Port 99999 of 127.0.0.1 cannot be had"):
        bound("127.0.0.1", 99999)


def test_the_signal_that_ends_the_server_ends_all_when_it_comes_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with quiet_end():
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
