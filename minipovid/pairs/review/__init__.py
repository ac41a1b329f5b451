"""A person looks at pairs on a local page and accepts, rejects, edits or swaps: ILLUME's human critic, for any pairs.

    review(Path("pairs.jsonl"), images=Path("photos"))        # prints http://127.0.0.1:8090/ and serves until Ctrl-C
    apply(Path("pairs.jsonl"), to=Path("reviewed.jsonl"))     # the pairs as they were decided

The pairs are never changed. Decisions go to <pairs>.decisions.jsonl, one line each, on the disk before the page hears
that they are kept; both commands read them there, and the last line about a row counts (decisions.py).
"""

from __future__ import annotations

import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from minipovid.common import interrupts
from minipovid.common.errors import MinipovidError
from minipovid.pairs.review.apply import ApplyCounts, apply
from minipovid.pairs.review.decisions import decisions_file
from minipovid.pairs.source import find

__all__ = ["PORT", "ApplyCounts", "apply", "decisions_file", "review"]
PORT = 8090


def review(
    path: Path | str,
    *,
    format: str | None = None,
    images: Path | None = None,
    host: str = "127.0.0.1",
    port: int = PORT,
    open_browser: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve the page until SIGINT or SIGTERM; `announce` gets its URL once it listens. `port` 0 takes any free one.

    `path`, `format` and `images` are those of `check`. Raises MinipovidError for an address beyond this machine, one
    that cannot be had, and pairs that another `pairs show` has open.
    """
    from minipovid.common.local_http import bound, is_loopback, server
    from minipovid.pairs.review.app import application
    from minipovid.pairs.review.book import Book
    from minipovid.pairs.review.decisions import Decisions

    if not is_loopback(host):
        raise MinipovidError(
            f"The page shows pictures to everyone who reaches it, so it stays on this machine and {host} is not taken; "
            f"from another one, come by `ssh -L {port}:127.0.0.1:{port}`."
        )
    source = find(path, format, images)

    def listens(page: str) -> None:
        announce(page)
        if open_browser:
            webbrowser.open(page)

    with (
        interrupts.unwound(),
        bound(host, port) as door,
        Decisions(decisions_file(source.path)) as decisions,
        Book(source) as book,
    ):
        decisions.meet(book)
        with suppress(KeyboardInterrupt):  # uvicorn ends in peace and then raises what ended it
            server(application(book, decisions), listens).run(sockets=[door])
