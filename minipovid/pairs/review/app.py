"""The HTTP side of the review: one page, its rows, their pictures, and what is decided about them.

    GET  /                     the page; all of its style and script is in it
    GET  /api/state            what is reviewed, how far it is, what can be filtered by
    GET  /api/rows?state=&maker=&kind=&search=&after=17 (or before=17)
    GET  /api/rows/17          one row, its answers in pieces that say what differs
    POST /api/rows/17          {"of": "93c2...", "action": "accept" | "reject" | "edit" | "swap", "chosen", "rejected"}
    POST /api/undo
    GET  /picture/17           by number alone: no path comes from the browser

Who else may ask: nobody. Another site's page can make a browser call this machine, so a request must be sent to this
machine by name (DNS rebinding), and come from the page itself (Sec-Fetch-Site, Origin).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import threading
from functools import cache
from importlib.resources import files
from typing import Any

from anyio import to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import is_for_this_machine
from minipovid.images import embedded
from minipovid.images import load as images
from minipovid.pairs.review.book import Book, Filter, FullRow, maker
from minipovid.pairs.review.decisions import Decisions, ReviewRow, State
from minipovid.pairs.review.marks import pieces

BODY = 2**20  # bytes of a request: two answers
# What every browser shows; other pictures are sent as PNG.
SHOWN = {".jpg": "image/jpeg", ".png": "image/png", ".gif": "image/gif", ".webp": "image/webp", ".bmp": "image/bmp"}


def application(book: Book, decisions: Decisions) -> Starlette:
    desk = _Handlers(book, decisions)
    return Starlette(
        routes=[
            Route("/", desk.page),
            Route("/favicon.ico", desk.no_icon),
            Route("/api/state", desk.state),
            Route("/api/rows", desk.rows),
            Route("/api/rows/{n:int}", desk.row, methods=["GET"]),
            Route("/api/rows/{n:int}", desk.decide, methods=["POST"]),
            Route("/api/undo", desk.undo, methods=["POST"]),
            Route("/picture/{n:int}", desk.picture),
        ],
        middleware=[Middleware(_PageGate)],
        exception_handlers={HTTPException: _failure, MinipovidError: _failure, OSError: _failure},
    )


class _PageGate:
    """Who may come in, and what every answer says of itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _headers().items():
                    headers.setdefault(name, value)
            await send(message)

        why = _stranger(scope)
        await (JSONResponse({"error": why}, 403) if why else self.app)(scope, receive, sealed)


def _stranger(scope: Scope) -> str | None:
    """Why the request is not the page's own."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if not is_for_this_machine(host):
        return "This page is for this machine alone; open it as 127.0.0.1 or localhost."
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") and scope["path"] != "/":
        return "Another site's page asks; only the review's own may."
    if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
        return "Only the review's own page may decide."
    return None


@cache
def _page() -> str:
    return (files("minipovid.pairs.review") / "page.html").read_text(encoding="utf-8")


@cache
def _headers() -> dict[str, str]:
    """The page may run its own script and style, known by their hashes, load its own pictures and ask its own server.

    Trusted Types: the browser itself refuses to make HTML of a text.
    """
    script, style = (_hashes(_page(), tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-store",
    }


def _hashes(page: str, tag: str) -> str:
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


class _Handlers:
    def __init__(self, book: Book, decisions: Decisions) -> None:
        self.book, self.decisions, self.turn = book, decisions, threading.Lock()

    def page(self, request: Request) -> Response:
        return HTMLResponse(_page())

    def no_icon(self, request: Request) -> Response:
        return Response(status_code=204)

    def state(self, request: Request) -> Response:
        path = self.book.source.path.resolve()
        return JSONResponse(
            {
                "name": path.name,
                "folder": str(path.parent),
                "key": hashlib.sha256(str(path).encode()).hexdigest()[:16],  # what the browser keeps drafts under
                "decisions": self.decisions.file.name,
                **{"total": self.book.total, "bad": self.book.bad, "counts": self.book.counts()},
                **{"stale": self.decisions.stale, "torn": self.decisions.history.torn},
                **self.book.choices(),
            }
        )

    def rows(self, request: Request) -> Response:
        query = request.query_params
        wanted = Filter(*(query.get(key, "") for key in ("state", "maker", "kind", "search")))
        after, before = (_number(query.get(key, "0")) for key in ("after", "before"))
        rows, matches, ahead = self.book.page(wanted, after, before)
        return JSONResponse({"rows": rows, "matches": matches, "ahead": ahead})

    def row(self, request: Request) -> Response:
        return JSONResponse(_as_json(self._sheet(_row(request))))

    async def decide(self, request: Request) -> Response:
        wish = await _body(request)
        return await to_thread.run_sync(self._decide, _row(request), wish)

    async def undo(self, request: Request) -> Response:
        await _body(request)
        return await to_thread.run_sync(self._undo)

    def picture(self, request: Request) -> Response:
        """The file as it is, or as PNG where browsers do not show its kind."""
        path = self.book.picture(_row(request))
        if path is None:
            raise HTTPException(404, "There is no such row.")
        try:
            with path.open("rb") as file:
                suffix = embedded.extension(file.read(32)) or ""
            tag = f'"{path.stat().st_mtime_ns:x}-{path.stat().st_size:x}"'
        except OSError as error:
            raise HTTPException(404, f"The picture {path} cannot be read: {error.strerror}.") from None
        headers = {"cache-control": "no-cache", "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        if suffix in SHOWN:
            return FileResponse(path, media_type=SHOWN[suffix], headers=headers)
        png = io.BytesIO()
        images.load(path).save(png, "PNG")
        return Response(png.getvalue(), media_type="image/png", headers=headers)

    def _sheet(self, n: int) -> FullRow:
        sheet = self.book.row(n)
        if sheet is None:
            raise HTTPException(404, f"There is no row {n}.")
        return sheet

    def _decide(self, n: int, wish: dict[str, Any]) -> Response:
        with self.turn:
            sheet = self._sheet(n)
            if wish.get("of") != sheet.row.of:
                raise HTTPException(409, "The pairs have changed since this page was loaded; load it again.")
            return self._keep(n, sheet.row, _next_state(sheet.row, sheet.state, wish))

    def _undo(self) -> Response:
        with self.turn:
            last = self.decisions.undoable(self.book)
            n = self.book.number(last[0].id) if last is not None else None
            if last is None or n is None:
                raise HTTPException(404, "There is nothing to undo.")
            return self._keep(n, *last, undo=True)

    def _keep(self, n: int, row: ReviewRow, state: State, undo: bool = False) -> Response:
        """On the disk first."""
        self.decisions.decide(row, state, undo)
        self.book.settle(row.id, state)
        return JSONResponse({"row": _as_json(self._sheet(n)), "counts": self.book.counts()})


def _row(request: Request) -> int:
    """The row's number in the path; SQLite's reach to 2^63."""
    n = int(request.path_params["n"])
    return n if n < 2**63 else 0


def _as_json(sheet: FullRow) -> dict[str, Any]:
    """A row as the page wants it. Spans say where the row's own rejected answer is wrong, and nothing of another."""
    chosen, rejected = sheet.row.texts(sheet.state)
    spans = sheet.spans if rejected == sheet.row.rejected else ()
    return {
        **{"n": sheet.n, "id": sheet.row.id, "where": sheet.place, "of": sheet.row.of, "state": sheet.state.label},
        **{"prompt": sheet.prompt, "image": sheet.image, "maker": maker(sheet.source)},
        "chosen": {"text": chosen, "own": sheet.row.chosen, "pieces": pieces(chosen, rejected)},
        "rejected": {"text": rejected, "own": sheet.row.rejected, "pieces": pieces(rejected, chosen, spans)},
    }


def _next_state(row: ReviewRow, now: State, wish: dict[str, Any]) -> State:
    """What an action makes of a row. The texts come with it, so that an action sent twice is done once."""
    action = wish.get("action")
    if action == "accept":
        return row.as_wanted(*row.texts(now))
    if action == "reject":
        return row.state("rejected", *row.texts(now))
    if action not in ("edit", "swap"):
        raise HTTPException(422, "An action is accept, reject, edit or swap.")
    state = row.as_wanted(_text(wish, "chosen"), _text(wish, "rejected"))
    return State() if action == "swap" and state.label == "accepted" else state  # swapped back


def _text(wish: dict[str, Any], side: str) -> str:
    text = wish.get(side)
    if not isinstance(text, str) or not text.strip():
        raise HTTPException(422, f"The {side} answer is empty; a pair needs both.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise HTTPException(422, f"The {side} answer holds half a character; write it again.") from None
    other = wish.get("rejected" if side == "chosen" else "chosen")
    if isinstance(other, str) and text.strip() == other.strip():
        raise HTTPException(422, "The two answers are equal, so there is nothing to prefer.")
    return text


async def _body(request: Request) -> dict[str, Any]:
    """A JSON object, of at most BODY bytes."""
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > BODY:
            raise HTTPException(413, "The answers are longer than 1 MiB.")
    try:
        wish = json.loads(data or b"{}")
    except (ValueError, RecursionError):
        wish = None
    if not isinstance(wish, dict):
        raise HTTPException(400, "The request is not a JSON object.")
    return wish


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _failure(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code)
    if isinstance(error, OSError):
        return JSONResponse({"error": f"It could not be kept: {error.strerror or error}."}, 507)
    return JSONResponse({"error": str(error)}, 404)
