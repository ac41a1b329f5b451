"""A review that is served from a thread, and what its tests ask of it over real sockets."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from minipovid.common.local_http import bound, server
from minipovid.pairs.review import decisions_file
from minipovid.pairs.review.app import application
from minipovid.pairs.review.book import Book
from minipovid.pairs.review.decisions import Decisions
from minipovid.pairs.source import find


class Site(NamedTuple):
    """A served review."""

    port: int
    pairs: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON or bytes, headers). A POST comes from the page itself, unless said otherwise."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            sent |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {name: value for name, value in sent.items() if value})
        answer = connection.getresponse()
        raw, told = answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, json.loads(raw) if "json" in told.get("content-type", "") else raw, told

    def get(self, path: str, **headers: str) -> Any:
        status, told, _ = self.ask("GET", path, **headers)
        assert status == 200, told
        return told

    def act(self, n: int, action: str, **texts: str) -> Any:
        status, told, _ = self.ask(
            "POST", f"/api/rows/{n}", {"of": self.get(f"/api/rows/{n}")["of"], "action": action, **texts}
        )
        assert status == 200, told
        return told

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in decisions_file(self.pairs).read_text(encoding="utf-8").splitlines()]


@contextmanager
def served(pairs: Path, images: Path | None = None) -> Iterator[Site]:
    """A real server in a thread, ended when the block ends."""
    ready, urls = threading.Event(), list[str]()
    source = find(pairs, None, images)
    with bound("127.0.0.1", 0) as door, Decisions(decisions_file(source.path)) as decisions, Book(source) as book:
        decisions.meet(book)

        def announce(url: str) -> None:
            urls.append(url)
            ready.set()

        running = server(application(book, decisions), announce)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            assert ready.wait(20)
            yield Site(urlsplit(urls[0]).port or 0, source.path)
        finally:
            running.should_exit = True
            thread.join(20)
