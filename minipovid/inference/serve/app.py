"""The HTTP side: OpenAI's chat completions for one model, which answers one request at a time while others wait.

    app = application(runtime, "mine", api_key=None, loopback=True)

Errors have OpenAI's shape and one sentence; the log tells method, path, status and seconds, never a text or a key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from anyio import lowlevel
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import is_for_this_machine
from minipovid.inference.llama_cpp import Runtime, StreamedReply
from minipovid.inference.serve.request import ChatRequest, RefusedError, no_model, read

BODY = 40 * 2**20  # bytes of a request
HELD = 4 * BODY  # bytes of all requests that are inside
WAITING = 64  # requests in the queue
NOTED = 50  # names of ignored fields in the log
ARRIVAL = 120  # seconds that a body may take to arrive, for its sender holds a place in the queue

_T = TypeVar("_T")

_log = logging.getLogger("minipovid.serve")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_PATHS = ("GET /health", "GET /v1/models", "GET /v1/models/NAME", "POST /v1/chat/completions")
_KINDS |= {500: "server_error", 503: "server_error"}


def application(
    runtime: Runtime,
    model: str,
    *,
    api_key: str | None = None,
    loopback: bool = True,
    origins: Sequence[str] = (),
    body_limit: int = BODY,
) -> Starlette:
    """The server's app. `loopback`: only requests that were sent to this machine by name are answered. `origins` are
    those of web pages that may ask, "https://example.org"; a browser lets no other page read an answer."""
    endpoints = _Endpoints(runtime, model)
    queue = Middleware(_Queue, body_limit=body_limit)
    return Starlette(
        routes=[
            Route("/", endpoints.about),
            Route("/health", endpoints.health),
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{name:path}", endpoints.one_model),
            Route("/v1/chat/completions", endpoints.complete, methods=["POST"], middleware=[queue]),
        ],
        middleware=[Middleware(_Gate, api_key=api_key, loopback=loopback, origins=origins)],
        exception_handlers={HTTPException: _not_here, MinipovidError: _refused, Exception: _hidden},
    )


class _Gate:
    """Who may come in, and a line in the log for each who came."""

    def __init__(self, app: ASGIApp, api_key: str | None, loopback: bool, origins: Sequence[str]):
        self.app, self.loopback, self.origins = app, loopback, origins
        self.secret = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0
        origin = Headers(scope=scope).get("origin", "")

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if message["type"] == "http.response.start" and origin in self.origins:
                headers = MutableHeaders(scope=message)
                headers["access-control-allow-origin"] = origin
                headers.add_vary_header("origin")
            await send(message)

        try:
            answer = self._stop(scope) or self.app
            await answer(scope, receive, counted)
        except ClientDisconnect:
            pass  # in the middle of its request: there is nobody to answer
        except Exception:
            status = status or 500  # which is sent outside
            _log.exception("a request failed")
            raise
        finally:
            seconds = time.monotonic() - began
            _log.info("%s %s %s %.2f s", scope["method"], ascii(scope["path"])[1:-1], status or "gone", seconds)

    def _stop(self, scope: Scope) -> Response | None:
        """The refusal of who may not come in, and the answer to a browser that asks for a page; None for all else."""
        headers = Headers(scope=scope)
        if self.loopback and not is_for_this_machine(headers.get("host", "")):
            sentence = "This server answers on this machine alone; call it as 127.0.0.1 or localhost."
            return _refusal(RefusedError(sentence, 403))
        asks_for_a_page = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if asks_for_a_page and headers.get("origin") in self.origins:
            return Response(status_code=204, headers=_preflight(headers))
        if self.secret is None or scope["path"] in ("/", "/health"):
            return None
        given = headers.get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, self.secret):
            return None
        sentence = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
        return _refusal(RefusedError(sentence, 401, code="invalid_api_key"), {"www-authenticate": "Bearer"})


def _preflight(asked: Headers) -> dict[str, str]:
    """What a page of an allowed origin may send: anything to the paths that there are. A browser sends no key yet.

    Source: https://fetch.spec.whatwg.org/#http-cors-protocol
    """
    granted = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": asked.get("access-control-request-headers", "authorization, content-type"),
        "access-control-max-age": "600",
    }
    if asked.get("access-control-request-private-network") == "true":  # of a public site that calls this machine
        granted["access-control-allow-private-network"] = "true"
    return granted


class _Queue:
    """How many may be inside, and with how many bytes: a request counts from its head to the end of its answer."""

    def __init__(self, app: ASGIApp, body_limit: int):
        self.app, self.body_limit = app, body_limit
        self.requests = self.bytes_inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.requests > WAITING:  # one of them is being answered
            raise RefusedError(f"{WAITING} requests are waiting already; try again later.", 503)
        own_bytes = 0

        async def weighed() -> Message:
            nonlocal own_bytes
            message = await receive()
            size = len(message.get("body", b""))
            own_bytes, self.bytes_inside = own_bytes + size, self.bytes_inside + size
            self._judge(own_bytes)
            return message

        self.requests += 1
        try:
            await self.app(scope, weighed, send)
        finally:
            self.requests, self.bytes_inside = self.requests - 1, self.bytes_inside - own_bytes

    def _judge(self, own_bytes: int) -> None:
        """Raises RefusedError as soon as it is too much; what follows is not read."""
        if own_bytes > self.body_limit:
            limit = f"{self.body_limit / 2**20:g} MiB"
            raise RefusedError(f"The request is larger than {limit}; send fewer or smaller pictures.", 413)
        if self.bytes_inside > HELD:
            raise RefusedError(f"Requests of {HELD / 2**20:g} MiB are waiting already; try again later.", 503)


class _Endpoints:
    def __init__(self, runtime: Runtime, model: str):
        self.runtime, self.model = runtime, model
        self.turn = anyio.Lock()  # first come, first served
        self.born = int(time.time())
        self.noted: set[str] = set()  # fields of requests of which the log has told that they are ignored

    async def about(self, request: Request) -> Response:
        return JSONResponse({"server": "minipovid serve", "model": self.model, "api": "/v1", "paths": _PATHS})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self.model:
            raise no_model(request.path_params["name"], self.model)
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": self.born, "owned_by": "minipovid"}

    async def complete(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # It also keeps web pages out: a browser sends JSON to another site only where that site agrees.
            raise RefusedError("The body must be JSON; send it as `Content-Type: application/json`.", 415)
        try:
            with anyio.fail_after(ARRIVAL):
                body = bytearray()  # request.body() would keep every piece
                async for piece in request.stream():
                    body += piece
        except TimeoutError:
            raise RefusedError(f"The request did not arrive within {ARRIVAL} seconds; send it again.", 408) from None
        wanted = read(bytes(body), self.model)
        self._note(wanted.ignored)
        return _Answer(self, wanted)

    def _note(self, ignored: Sequence[str]) -> None:
        """Tell the log of each ignored field once; a client may name more than anybody wants to read."""
        for name in ignored:
            if name not in self.noted and len(self.noted) < NOTED:
                self.noted.add(name)
                _log.info("%s is ignored", ascii(name[:40])[1:-1])

    @asynccontextmanager
    async def reply(self, wanted: ChatRequest) -> AsyncIterator[StreamedReply]:
        """The model's attention, in turn. The reply is closed however the block ends."""
        async with self.turn:
            sampling = wanted.sampling(default_tokens=self.runtime.n_ctx)
            reply = await _in_thread(lambda: self.runtime.say(wanted.turns(), sampling))
            try:
                yield reply
            finally:
                reply.close()


class _Answer(Response):
    """A completion, as it comes or as a whole; worked out while it is sent, and no longer than the client listens."""

    def __init__(self, endpoints: _Endpoints, wanted: ChatRequest):
        super().__init__()
        self.endpoints, self.wanted, self.started = endpoints, wanted, False
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": endpoints.model}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                async with self.endpoints.reply(self.wanted) as reply:
                    if self.wanted.stream:
                        await self._stream(reply, send)
                    else:
                        await (await self._whole(reply))(scope, receive, send)
            except MinipovidError as error:
                if self.started:
                    await self._event(send, _object(error))
                    await self._event(send, None)
                else:
                    await _refusal(error)(scope, receive, send)
            group.cancel_scope.cancel()

    async def _whole(self, reply: StreamedReply) -> Response:
        text = "".join([piece async for piece in _pieces(reply)])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
        body = {**self.head, "object": "chat.completion", "choices": [choice], "usage": _usage(reply)}
        return JSONResponse(body)

    async def _stream(self, reply: StreamedReply, send: Send) -> None:
        async for piece in _pieces(reply):
            await self._chunk(send, {"role": "assistant", "content": piece} if not self.started else {"content": piece})
        await self._chunk(send, {}, reply.finish_reason)
        if self.wanted.include_usage:
            await self._event(send, self._piece([]) | {"usage": _usage(reply)})
        await self._event(send, None)

    async def _chunk(self, send: Send, delta: dict[str, str], finish: str | None = None) -> None:
        await self._event(send, self._piece([{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]))

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.wanted.include_usage else {}
        return {**self.head, "object": "chat.completion.chunk", "choices": choices, **usage}

    async def _event(self, send: Send, content: dict[str, Any] | None) -> None:
        """One server-sent event; None ends them. The status goes out with the first: before, a failure has its own."""
        if not self.started:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self.started = True
        data = "[DONE]" if content is None else json.dumps(content, ensure_ascii=False)
        body = f"data: {data}\n\n".encode()
        await send({"type": "http.response.body", "body": body, "more_body": content is not None})


async def _pieces(reply: StreamedReply) -> AsyncIterator[str]:
    while (piece := await _in_thread(lambda: next(reply, None))) is not None:
        yield piece


async def _in_thread(work: Callable[[], _T]) -> _T:
    """Work in a thread, so that other clients are heard meanwhile. It is finished although its client goes away.

    Only the end of the server tears us off; its loop then waits for asyncio's own threads (for anyio's it would not),
    so that no model is freed that still computes.
    """
    await lowlevel.checkpoint_if_cancelled()
    with anyio.CancelScope(shield=True):
        result = await asyncio.to_thread(work)
    return result


def _usage(reply: StreamedReply) -> dict[str, int]:
    prompt, answer = reply.prompt_tokens, reply.answer_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _object(error: Exception) -> dict[str, Any]:
    """OpenAI's error object."""
    refused = error if isinstance(error, RefusedError) else RefusedError(str(error))
    kind = _KINDS.get(refused.status, "invalid_request_error")
    return {"error": {"message": str(refused), "type": kind, "param": refused.param, "code": refused.code}}


def _refusal(error: Exception, headers: Mapping[str, str] | None = None) -> Response:
    status = error.status if isinstance(error, RefusedError) else 400
    return JSONResponse(_object(error), status, headers)


async def _refused(_: Request, error: Exception) -> Response:
    return _refusal(error)


async def _not_here(request: Request, error: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    there = f"{', '.join(_PATHS[:-1])} and {_PATHS[-1]}"
    what = f"{request.method} {request.url.path[:80]!r}"
    return _refusal(
        RefusedError(f"There is no {what} here; this server has {there}.", error.status_code), error.headers
    )


async def _hidden(_: Request, error: Exception) -> Response:
    return _refusal(RefusedError("Something went wrong in the server; its log says what.", 500))
