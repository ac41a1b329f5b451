"""The server against the official openai client, over real sockets; a real tiny model where the model matters."""

from __future__ import annotations

import base64
import json
import logging
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import tiny_llava
from PIL import Image

from minipovid.common import local_http
from minipovid.common.errors import MinipovidError
from minipovid.common.local_http import bound, server
from minipovid.export import export_base
from minipovid.inference.llama_cpp import Runtime, Sampling, StreamedReply
from minipovid.inference.llama_cpp.locks import Locks
from minipovid.inference.llama_cpp.stream import Stream
from minipovid.inference.serve import app as apps
from minipovid.inference.serve import key_from, serve
from minipovid.inference.serve import request as requests
from minipovid.models.chat_template import Turn

MODEL = "tiny"
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


class FakeReply:
    """Says the words that it is given, one a piece."""

    def __init__(self, runtime: FakeRuntime, pieces: Iterator[str]):
        self.runtime, self.pieces = runtime, pieces
        self.prompt_tokens, self.answer_tokens, self.finish_reason, self.closed = 7, 0, None, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        assert self.runtime.speaking in (None, self), "two replies at once"
        self.runtime.speaking = self
        piece = next(self.pieces, None)
        if piece is None:
            self.finish_reason = "stop"
            raise StopIteration
        self.answer_tokens += 1
        return piece

    def close(self) -> None:
        self.closed = True
        self.runtime.speaking = None


class FakeRuntime:
    """Answers with what it was shown and asked; remembers the replies."""

    n_ctx = 99

    def __init__(self, pieces: Callable[[Sequence[Turn]], Iterator[str]] | None = None):
        self.pieces, self.speaking = pieces or echo, None
        self.asked: list[tuple[Sequence[Turn], Sampling]] = []
        self.replies: list[FakeReply] = []

    def say(self, turns: Sequence[Turn], sampling: Sampling) -> FakeReply:
        self.asked.append((turns, sampling))
        self.replies.append(FakeReply(self, self.pieces(turns)))
        return self.replies[-1]


def echo(turns: Sequence[Turn]) -> Iterator[str]:
    """Each turn's role, the colours of its pictures' corners, and its text, word by word."""
    for turn in turns:
        yield f"[{turn.role}]"
        for picture in turn.pictures:
            assert isinstance(picture, Image.Image)
            yield f" {seen(picture)}"
        for word in turn.text.split():
            yield f" {word}"


def seen(picture: Image.Image) -> str:
    """The size, and the nearest named colours of the upper left and the lower right corner."""
    assert picture.mode == "RGB"
    names = []
    for corner in ((0, 0), (picture.width - 1, picture.height - 1)):
        pixel = picture.getpixel(corner)
        assert isinstance(pixel, tuple)
        names.append(min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True))))
    return f"{picture.width}x{picture.height}:{'-'.join(names)}"


@contextmanager
def listening(runtime: Any, **options: Any) -> Iterator[str]:
    """The URL of a real server on loopback."""
    urls: list[str] = []
    ready = threading.Event()

    def announce(url: str) -> None:
        urls.append(url)
        ready.set()

    door = bound("127.0.0.1", 0)
    running = server(apps.application(runtime, MODEL, **options), announce, "/v1")
    thread = threading.Thread(target=running.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        assert ready.wait(10)
        yield urls[0]
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def client(url: str, key: str = "none") -> openai.OpenAI:
    plain = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30, http_client=plain)


def data_url(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def shown(*urls: str, text: str = "What is this?") -> list[Any]:
    """One user message with pictures before the text."""
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def ask(to: openai.OpenAI, messages: str | list[Any], **options: Any) -> Any:
    said = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    return to.chat.completions.create(model=MODEL, messages=said, **options)


def halves(left: str, right: str) -> Image.Image:
    """A picture [20, 10] of two colours side by side."""
    picture = Image.new("RGB", (20, 10), left)
    picture.paste(right, (10, 0, 20, 10))
    return picture


@pytest.fixture(scope="module")
def fake() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture(scope="module")
def url(fake: FakeRuntime) -> Iterator[str]:
    with listening(fake) as url:
        yield url


@pytest.fixture(scope="module")
def to(url: str) -> openai.OpenAI:
    return client(url)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
NULLS = (
    *("n", "max_tokens", "max_completion_tokens", "n_predict", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repeat_penalty", "stop", "response_format", "stream", "stream_options"),
    *("tools", "tool_choice", "logprobs", "top_logprobs", "logit_bias", "user", "metadata", "modalities", "audio"),
)


# --- what is understood ---


def test_null_is_absent(url: str, fake: FakeRuntime) -> None:
    """In every optional field, and inside of those that are groups."""
    plain = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    assert post(url, json.dumps(plain | dict.fromkeys(NULLS)).encode())[0] == 200
    picture = {"type": "image_url", "text": None, "image_url": {"url": WHOLE, "detail": None}}
    said = {"role": "user", "name": None, "content": [picture, {"type": "text", "text": "hi", "image_url": None}]}
    form = {"type": "text", "json_schema": None}
    more = {"messages": [said], "stream_options": {"include_usage": None}, "response_format": form}
    assert post(url, json.dumps(plain | more).encode())[0] == 200
    sampling = fake.asked[-2][1]
    assert sampling == Sampling(max_tokens=99, seed=sampling.seed)


def test_messages_as_clients_write_them(to: openai.OpenAI) -> None:
    """A picture's URL as a string, and with a detail; an answer of nothing, beside a tool's call; two users' turns."""
    red = data_url(Image.new("RGB", (4, 4), "red"))
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": red}, {"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "user", "content": "Or"},
        {"role": "assistant", "tool_calls": calls},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": red, "detail": "low"}}]},
        {"role": "user", "content": "two?"},
    ]
    said = "[system] Be brief.[user] 4x4:red-red One?[assistant][user] Or[assistant][user] 4x4:red-red[user] two?"
    assert ask(to, messages).choices[0].message.content == said


def test_one_model_by_its_name(to: openai.OpenAI) -> None:
    assert to.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="There is no model 'org/gpt-5' here; ask for 'tiny'") as caught:
        to.models.retrieve("org/gpt-5")
    assert caught.value.code == "model_not_found"


def test_what_this_is(url: str) -> None:
    """Where a person looks first; and HEAD, with which programs ask whether a server is there."""
    for key in ("none", "secret"):
        with listening(FakeRuntime(), api_key=key) as locked:
            assert raw(locked, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")[1]["api"] == "/v1"
    for path in (b"/", b"/health", b"/v1/models", b"/v1/models/tiny"):
        head = sent_back(url, b"HEAD " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and head.endswith(b"\r\n\r\n")


def test_the_log_tells_once_what_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Names, and no value."""
    caplog.set_level(logging.INFO, "minipovid.serve")
    with listening(FakeRuntime()) as url:
        for _ in range(2):
            ask(client(url), "hi", tools=TOOLS, user="secret", extra_body={"a\nb": 1, "top_k": 3})
    assert [text for text in caplog.messages if "ignored" in text] == [
        "tools is ignored",
        "user is ignored",
        r"a\nb is ignored",
    ]
    assert "secret" not in caplog.text


PAGE = "http://localhost:3000"
PREFLIGHT = (
    b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nOrigin: %s\r\nAccess-Control-Request-Method: POST\r\n"
)


def test_a_page_of_an_allowed_origin_may_ask() -> None:
    """Before its request a browser asks without a key; another origin and another host get nothing."""
    asked = b"Access-Control-Request-Headers: content-type, x-stainless-os\r\nConnection: close\r\n\r\n"
    with listening(FakeRuntime(), api_key="k", origins=("https://a.example", PAGE)) as url:
        answer = sent_back(url, PREFLIGHT % (b"localhost", PAGE.encode()) + asked).lower()
        assert (
            answer.startswith(b"http/1.1 204") and b"\naccess-control-allow-origin: http://localhost:3000\r" in answer
        )
        assert b"\naccess-control-allow-headers: content-type, x-stainless-os\r" in answer
        for host, origin in ((b"localhost", b"http://evil.example"), (b"evil.example", PAGE.encode())):
            other = sent_back(url, PREFLIGHT % (host, origin) + asked).lower()
            assert other.startswith((b"http/1.1 401", b"http/1.1 403")) and b"access-control-allow-methods" not in other
        done = client(url, "k").chat.completions.with_raw_response.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], extra_headers={"Origin": PAGE}
        )
        assert (done.headers["access-control-allow-origin"], done.headers["vary"]) == (PAGE, "origin")
        with pytest.raises(openai.AuthenticationError) as refused:
            client(url, "wrong").models.list(extra_headers={"Origin": PAGE})
        assert refused.value.response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("origin", ["*", "null", "example.org", "https://example.org/", "HTTP://A", ""])
def test_what_is_no_origin(tmp_path: Path, origin: str) -> None:
    with pytest.raises(MinipovidError, match="is no origin; name the page's scheme and host"):
        serve(tmp_path, allow_origins=[origin])


def test_a_text(to: openai.OpenAI) -> None:
    done = ask(to, "Is there a dog?")
    assert done.choices[0].message.content == "[user] Is there a dog?"
    assert done.choices[0].message.role == "assistant"
    assert done.choices[0].finish_reason == "stop"
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.usage.total_tokens) == (7, 5, 12)
    assert done.model == MODEL and done.object == "chat.completion" and abs(done.created - time.time()) < 60


def test_models_and_health(to: openai.OpenAI, url: str) -> None:
    assert [(model.id, model.owned_by) for model in to.models.list()] == [(MODEL, "minipovid")]
    assert raw(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")[1] == {"status": "ok"}


def with_alpha() -> Image.Image:
    picture = Image.new("RGBA", (20, 10), (255, 0, 0, 255))
    picture.putpixel((0, 0), (0, 0, 0, 0))
    return picture


def turned() -> dict[str, Any]:
    """The EXIF tag of a camera that was held on its side: show this a quarter turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (data_url(halves("red", "blue")), "20x10:red-blue"),
        (data_url(halves("red", "blue"), "JPEG", quality=95), "20x10:red-blue"),
        (data_url(halves("red", "blue"), "WEBP", lossless=True), "20x10:red-blue"),
        (data_url(halves("red", "blue"), "GIF"), "20x10:red-blue"),
        (data_url(halves("red", "blue"), "BMP"), "20x10:red-blue"),
        (data_url(halves("red", "blue").convert("P")), "20x10:red-blue"),
        (data_url(with_alpha()), "20x10:white-red"),
        (data_url(halves("red", "blue"), "JPEG", quality=95, **turned()), "10x20:red-blue"),
        (data_url(halves("red", "blue"), "PNG", **turned()), "10x20:red-blue"),
    ],
    ids=["png", "jpeg", "webp", "gif", "bmp", "palette", "alpha", "turned jpeg", "turned png"],
)
def test_a_picture_arrives_as_the_viewer_sees_it(to: openai.OpenAI, sent: str, expected: str) -> None:
    assert ask(to, shown(sent)).choices[0].message.content == f"[user] {expected} What is this?"


def test_pictures_in_any_turn_keep_their_order(to: openai.OpenAI) -> None:
    red, blue, green = (data_url(Image.new("RGB", (4, 4), name)) for name in ("red", "blue", "green"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        *shown(red, blue, text="Two?"),
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "And "}, *shown(green, text="th")[0]["content"]]},
    ]
    messages[-1]["content"].append({"type": "text", "text": "is?"})
    assert ask(to, messages).choices[0].message.content == (
        "[system] Be brief.[system] Be kind.[user] 4x4:red-red 4x4:blue-blue Two?[assistant] Yes."
        "[user] 4x4:green-green And this?"
    )


def test_a_stream_is_the_whole_in_pieces(to: openai.OpenAI) -> None:
    chunks = list(ask(to, "one two three", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "[user] one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 7 + 4
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_ends_with_done_and_tells_no_usage_unasked(url: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}
    status, text = post(url, json.dumps(body).encode())
    assert status == 200
    events = re.findall(r"data: (.*)\r?\n", text)
    assert events[-1] == "[DONE]" and "usage" not in "".join(events)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"max_tokens": 99, "temperature": 0.0, "top_p": 1.0, "stop": (), "schema": None}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_completion_tokens": 4}, {"max_tokens": 4}),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 5}, {"temperature": 0.5, "top_p": 0.9, "seed": 5}),
        ({"temperature": 1, "seed": -1}, {"temperature": 1.0, "seed": 2**32 - 1}),
        ({"stop": "."}, {"stop": (".",)}),
        ({"stop": ""}, {"stop": ()}),
        ({"stop": []}, {"stop": ()}),
        ({"stop": [".", "!"]}, {"stop": (".", "!")}),
        ({"response_format": {"type": "text"}}, {"schema": None}),
        ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}},
            {"schema": {"type": "boolean"}},
        ),
        ({"max_tokens": -1}, {"max_tokens": 99}),
        ({"max_completion_tokens": -1, "max_tokens": 5}, {"max_tokens": 5}),
        ({"extra_body": {"n_predict": -1}}, {"max_tokens": 99}),
        ({"extra_body": {"n_predict": 6}}, {"max_tokens": 6}),
        ({"extra_body": {"top_k": 40, "min_p": 0.05}}, {"top_k": 40, "min_p": 0.05}),
        (
            {"presence_penalty": 0.5, "frequency_penalty": -1, "extra_body": {"repeat_penalty": 1.1}},
            {"presence_penalty": 0.5, "frequency_penalty": -1.0, "repeat_penalty": 1.1},
        ),
        ({"extra_body": {"repetition_penalty": 1.2}}, {"repeat_penalty": 1.2}),
        ({"extra_body": {"whatever": [1]}, "user": "me", "store": False, "n": 1, "tools": []}, {}),
        ({"tools": TOOLS, "tool_choice": "auto", "reasoning_effort": "low", "parallel_tool_calls": True}, {}),
        ({"extra_body": {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "guided_json": None}}, {}),
        ({"tool_choice": "auto", "modalities": ["text"], "stop": ["x" * 1000] * 16}, {"stop": ("x" * 1000,) * 16}),
    ],
)
def test_how_an_answer_is_drawn(
    to: openai.OpenAI, fake: FakeRuntime, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    ask(to, "hi", **options)
    sampling = fake.asked[-1][1]
    assert {name: getattr(sampling, name) for name in expected} == expected


def test_an_unnamed_seed_is_drawn_anew(to: openai.OpenAI, fake: FakeRuntime) -> None:
    for _ in range(2):
        ask(to, "hi", temperature=1)
    assert fake.asked[-1][1].seed != fake.asked[-2][1].seed


# --- what is refused ---


def refusal(to: openai.OpenAI, messages: str | list[Any] = "hi", **options: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(to, messages, **options)
    assert set(caught.value.body) == {"message", "type", "param", "code"}
    assert "\n" not in caught.value.body["message"] and caught.value.body["message"].endswith(".")
    return caught.value


def test_an_unknown_model(to: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There is no model 'gpt-5' here; ask for 'tiny'") as caught:
        to.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


def schema(tree: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": tree}}}


@pytest.mark.parametrize(
    ("options", "param", "why"),
    [
        ({"n": 2}, "n", "less than or equal to 1"),
        ({"n": True}, "n", "valid integer"),
        ({"logprobs": True}, "logprobs", "cannot do `logprobs`"),
        ({"top_logprobs": 5}, "top_logprobs", "minipovid cannot do `top_logprobs`; leave it out"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less than or equal to 2"),
        ({"repeat_penalty": 0}, "repeat_penalty", "greater than 0"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"stop": ["", "."]}, "stop.0", "at least 1 character"),
        *(({"stop": nothing}, "stop", "valid list") for nothing in (4, 0, False, {})),
        ({"stop": ["."] * 17}, "stop", "at most 16 items"),
        ({"stop": ["." * 1001]}, "stop.0", "at most 1000 characters"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
        ({"max_tokens": -2}, "max_tokens", "greater than or equal to 1"),
        ({"mirostat": 2}, "mirostat", "cannot do `mirostat`"),
        ({"guided_json": {"type": "object"}}, "guided_json", "cannot do `guided_json`"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice", "cannot do `tool_choice`"),
        ({"tools": TOOLS, "tool_choice": TOOLS[0]}, "tool_choice", "cannot do `tool_choice`"),
        ({"messages": ["hi"]}, "messages.0", "it must be a JSON object"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages.0.content.0", "it must be a JSON object"),
        ({"response_format": "json"}, "response_format", "it must be a JSON object"),
        ({"stream_options": True}, "stream_options", "it must be a JSON object"),
        ({"temperature": float("nan")}, "temperature", "than or equal to"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "this type needs `json_schema`"),
        (schema({"type": "string", "maxLength": 30_000}), "response_format.json_schema.schema", "at most 1000 times"),
        (schema({"type": "string", "pattern": "^a{0,30000}$"}), "response_format.json_schema.schema", "at most 1000"),
        (schema({"type": "string", "pattern": "^a{30000}$"}), "response_format.json_schema.schema", "at most 1000"),
        (schema({"enum": ["x" * 40_000]}), "response_format.json_schema.schema", "at most 32768 characters"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "is missing; add it"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "is missing; add it"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "the last message must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0", "needs `text`"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages.0.content.0.type",
            "should be 'text' or 'image_url'",
        ),
        (
            {"messages": [{**shown(data_url(halves("red", "blue")))[0], "role": "system"}, *shown()]},
            "messages",
            "pictures belong into the user's messages",
        ),
        ({"messages": [{"role": "user", "content": "x" * 2**20 + "x"}]}, "messages", "more than 1,048,576 characters"),
        ({"messages": shown(*[data_url(halves("red", "blue"))] * 17)}, "messages", "more than 16 pictures"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(url: str, options: dict[str, Any], param: str, why: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], **options}
    status, answer = post(url, json.dumps(body).encode())
    error = json.loads(answer)["error"]
    assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert why in error["message"] and error["message"].endswith(".") and "\n" not in error["message"]
    assert not re.search(r"_[A-Z]|Chat[A-Z]|pydantic", error["message"])


@pytest.mark.parametrize(
    "link",
    ["https://example.org/a.png", "http://127.0.0.1/a.png", "file:///etc/passwd", "a.png", "http://a/;base64,aGk="],
)
def test_no_link_is_followed(to: openai.OpenAI, link: str) -> None:
    error = refusal(to, shown(link))
    assert error.status_code == 400 and "no link is followed; send the picture itself as data:" in error.message
    assert error.param == "messages.0.content.0.image_url.url"


def bomb(width: int, height: int) -> str:
    """A PNG of which only the header is true: whoever tries to decode it says "damaged", never "pixels"."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10)))
    return "data:image/png;base64," + base64.b64encode(png + chunk(b"IEND", b"")).decode()


WHOLE = data_url(Image.effect_noise((60, 60), 90))


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("data:image/png;base64,@@@@", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,aGVsbG8gd29ybGQ=", "not a picture"),
        (WHOLE[: len(WHOLE) // 8 * 4 + 2], "base64|cut short"),
        (WHOLE[: 22 + (len(WHOLE) - 22) // 8 * 4], "cut short or damaged"),
        (bomb(20_000, 20_000), "more than 178,956,970 pixels"),
        (bomb(8192, 6144), r"more than 50,331,448 pixels; scale it .* All pictures together may have 50,331,648\."),
        (bomb(8192, 6143), "damaged"),
    ],
    ids=["base64", "empty", "text", "half a character", "half", "bomb", "large", "just not too large"],
)
def test_a_broken_picture(to: openai.OpenAI, sent: str, why: str) -> None:
    error = refusal(to, shown(data_url(halves("red", "blue")), sent))
    assert error.status_code == 400 and re.search(why, error.message) and "/tmp" not in error.message
    assert ask(to, "next").choices[0].message.content == "[user] next"


@pytest.mark.parametrize("head", ["data:image/png;base64,", " DATA:image/png;charset=utf-8;BASE64,"])
@pytest.mark.parametrize("end", ["", "="])
def test_base64_is_taken_as_it_comes(head: str, end: str) -> None:
    """In lines, in the alphabet of URLs, without padding; the decoder is the one that reads data sets."""
    buffer = BytesIO()
    Image.effect_noise((61, 60), 90).save(buffer, "PNG")
    words = base64.urlsafe_b64encode(buffer.getvalue()).decode().rstrip("=")
    link = head + "\r\n".join(words[at : at + 76] for at in range(0, len(words), 76)) + end
    body = json.dumps({"model": MODEL, "messages": shown(link)}).encode()
    ((picture,),) = (turn.pictures for turn in requests.read(body, MODEL).turns())
    assert isinstance(picture, Image.Image) and picture.size == (61, 60)


def test_a_large_picture(to: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PICTURE_MIB", 0)
    error = refusal(to, shown(WHOLE))
    assert error.status_code == 413 and "A picture is larger than 0 MiB; scale it down." in error.message


def test_pictures_too_large_together(to: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PIXELS", 3700)
    assert ask(to, shown(WHOLE, data_url(Image.new("L", (10, 10)))))
    told = "The picture no. 2 has more than 100 pixels; .* All pictures together may have 3,700."
    assert re.search(told, refusal(to, shown(WHOLE, bomb(10, 11))).message)


def test_a_body_too_large_is_not_even_read() -> None:
    """The end of the body never comes, and the refusal comes nevertheless."""
    with listening(FakeRuntime(), body_limit=100_000) as url:
        assert refusal(client(url), "x" * 100_000).status_code == 413
        status, answer = raw(url, HEAD + b"Content-Length: 999999999\r\n\r\n" + b"x" * 100_001)
        assert status == 413 and "larger than 0.0953674 MiB; send fewer or smaller" in answer["error"]["message"]
        assert ask(client(url), "hi")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": ' * 100_000, b"null", b'{"model": "\\ud800"}'])
def test_a_body_that_is_no_json_object(url: str, body: bytes) -> None:
    status, answer = post(url, body)
    assert status == 400 and "The body is no JSON object; send one with" in answer


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", ""])
def test_a_body_of_another_kind(url: str, kind: str) -> None:
    """What a web page can make a browser send to another site unasked is of these kinds."""
    assert post(url, b'{"model": "tiny"}', kind)[0] == 415


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET /v1/chat/completions", 405),
        ("OPTIONS /v1/chat/completions", 405),
        ("GET /page", 404),
        ("POST /v1/models", 405),
    ],
)
def test_other_paths_and_methods(url: str, line: str, status: int) -> None:
    found, answer = raw(url, f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert found == status and "this server has GET /health" in answer["error"]["message"]
    if status == 405:
        assert b"\nallow: " in sent_back(url, f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


def test_no_page_of_another_site_may_ask(url: str) -> None:
    """No CORS header is ever sent, and a name that somebody else's DNS points at this machine is not answered."""
    for host in (b"evil.example", b"evil.example:80", b"localhost.evil.example", b"10.0.0.1", b""):
        status, answer = raw(
            url, b"GET /v1/models HTTP/1.1\r\nOrigin: http://evil.example\r\nHost: " + host + b"\r\n\r\n"
        )
        assert status == 403 and "call it as 127.0.0.1 or localhost" in answer["error"]["message"]
    for host in (b"127.0.0.1:99", b"LOCALHOST", b"[::1]:80", b"127.9.9.9"):
        assert raw(url, b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")[0] == 200
    preflight = b"OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n"
    assert b"access-control" not in sent_back(url, preflight).lower()


# --- one after the other ---


def test_sixteen_at_once(fake: FakeRuntime, url: str) -> None:
    """Each gets its own answer; FakeReply fails where two are read in turns."""
    pictures = {name: data_url(Image.new("RGB", (4, 4), name)) for name in COLOURS}

    def one(number: int) -> bool:
        name = list(COLOURS)[number % 4]
        stream = number % 2 == 0
        done = ask(client(url), shown(pictures[name], text=f"number {number}"), stream=stream)
        text = "".join(c.choices[0].delta.content or "" for c in done) if stream else done.choices[0].message.content
        return bool(text == f"[user] 4x4:{name}-{name} number {number}")

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == [True] * 16


def endless(turns: Sequence[Turn]) -> Iterator[str]:
    """Goes on for ever if that is asked for."""
    while "ever" in turns[-1].text:
        time.sleep(0.005)
        yield "word "
    yield "done"


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_a_client_that_goes_away_stops_the_model() -> None:
    runtime = FakeRuntime(endless)
    with listening(runtime) as url:
        stream = ask(client(url), "ever", stream=True)
        assert "".join(next(stream).choices[0].delta.content for _ in range(3)) == "word word word "
        stream.close()
        assert until(lambda: runtime.replies[0].closed)
        with connected(url) as line:
            line.sendall(request("ever"))
            assert until(lambda: len(runtime.replies) == 2 and runtime.replies[1].answer_tokens > 0)
        assert until(lambda: runtime.replies[1].closed)
        assert ask(client(url), "hi").choices[0].message.content == "done"


def test_a_client_that_goes_away_while_it_waits_is_not_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minipovid.serve")
    was_read, runtime = threading.Event(), FakeRuntime(endless)

    def read(raw: bytes, model: str) -> requests.Wanted:
        was_read.set()
        return requests.read(raw, model)

    with listening(runtime) as url:
        first = ask(client(url), "ever", stream=True)
        next(first)
        monkeypatch.setattr(apps, "read", read)
        with connected(url) as line:
            line.sendall(request("never mind"))
            assert was_read.wait(10)
        assert until(lambda: "gone" in caplog.text)
        first.close()
        assert ask(client(url), "hi").choices[0].message.content == "done"
        assert [turns[-1].text for turns, _ in runtime.asked] == ["ever", "hi"]


def test_a_client_that_goes_away_while_it_sends_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minipovid.serve")
    with listening(FakeRuntime()) as url:
        with connected(url) as line:
            let_in(line, 100)
        assert until(lambda: "POST /v1/chat/completions gone" in caplog.text)
        assert quiet(caplog)


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "ARRIVAL", 0.05)
    with listening(FakeRuntime()) as url, connected(url) as line:
        let_in(line, 100)
        assert parsed(heard(line))[0] == 408


def test_a_queue_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one that is answered and one that waits, a third is refused before its body is read (none comes here)."""
    monkeypatch.setattr(apps, "WAITING", 1)
    head, _, body = request("hi").rpartition(b"\r\n\r\n")
    with listening(FakeRuntime(endless)) as url:
        first = ask(client(url), "ever", stream=True)
        next(first)
        with connected(url) as second:
            let_in(second, len(body))
            status, answer = raw(url, head + b"\r\n\r\n")
            assert status == 503 and "1 requests are waiting already; try again later." in answer["error"]["message"]
            first.close()
            second.sendall(body)
            assert b"done" in heard(second)
        assert until(lambda: raw(url, request("hi"))[0] == 200)


def test_what_waits_has_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "HELD", 100_000)
    large = "x" * 60_000
    with listening(FakeRuntime(endless)) as url:
        first = ask(client(url), f"ever {large}", stream=True)
        next(first)
        error = refusal(client(url), large)
        assert error.status_code == 503 and "Requests of 0.0953674 MiB are waiting already" in error.message
        first.close()
        assert until(lambda: raw(url, request(large))[0] == 200)
        assert raw(url, request(large))[0] == 200


class SlowRuntime:
    """The runtime's own replies, over a step that takes half a second."""

    n_ctx, at_work = 99, False

    def say(self, turns: Sequence[Turn], sampling: Sampling) -> StreamedReply:
        return StreamedReply(self.step, 7, 99, Stream(), Locks())

    def step(self, said: list[int]) -> tuple[int, bytes]:
        self.at_work = True
        time.sleep(0.5)
        self.at_work = False
        return 0, b"word "


def test_the_server_ends_quietly_although_an_answer_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Patience runs out in the middle of a step, and that has ended when the server has."""
    runtime = SlowRuntime()
    monkeypatch.setattr(local_http, "PATIENCE", 0.1)
    with listening(runtime) as url:
        next(ask(client(url), "ever", stream=True))
    assert quiet(caplog) and not runtime.at_work


def quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Does the log hold no complaint and no traceback?"""
    return not [record for record in caplog.records if record.exc_info or record.levelno >= logging.WARNING]


# --- what goes wrong inside ---


def broken(error: Exception, after: int) -> Callable[[Sequence[Turn]], Iterator[str]]:
    def pieces(turns: Sequence[Turn]) -> Iterator[str]:
        yield from ["word "] * after
        raise error

    return pieces


def test_a_failure_is_hidden_from_the_client_and_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "minipovid.serve")
    with listening(FakeRuntime(broken(RuntimeError("secret place"), 1))) as url:
        error = refusal(client(url))
        assert error.status_code == 500 and "its log says what" in error.message and "secret" not in str(error.body)
        assert "secret place" in caplog.text and "POST /v1/chat/completions 500" in caplog.text
        with pytest.raises(openai.APIError):
            list(ask(client(url), "hi", stream=True))


def test_a_sentence_of_ours_reaches_the_client() -> None:
    with listening(FakeRuntime(broken(MinipovidError("The prompt is too long."), 0))) as url:
        for stream in (False, True):
            error = refusal(client(url), stream=stream)
            assert error.status_code == 400 and "The prompt is too long." in error.message
    with listening(FakeRuntime(broken(MinipovidError("The schema leads nowhere."), 2))) as url:
        stream = ask(client(url), "hi", stream=True)
        with pytest.raises(openai.APIError, match="The schema leads nowhere."):
            list(stream)


# --- who may come in ---


def test_an_api_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "minipovid.serve")
    with listening(FakeRuntime(), api_key="s3cret-k€y") as url:
        for wrong in ("s3cret", "s3cret-k€y2", ""):
            status, answer = post(url, b"{}", headers=f"Authorization: Bearer {wrong}\r\n".encode())
            assert status == 401 and "The API key is missing or wrong" in answer
        assert post(url, b"{}", headers="Authorization: Bearer s3cret-k€y\r\n".encode())[0] == 400
        assert post(url, b"{}")[0] == 401
        assert raw(url, b"GET /v1/models?key=abc HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 401
        assert raw(url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 200
    with listening(FakeRuntime(), api_key="simple") as url:
        assert ask(client(url, "simple"), "my prompt").choices[0].message.content == "[user] my prompt"
        with pytest.raises(openai.AuthenticationError, match="send it as `Authorization: Bearer KEY`"):
            ask(client(url, "other"), "my prompt")
    assert "POST /v1/chat/completions 200" in caplog.text and "GET /v1/models 401" in caplog.text
    assert not [word for word in ("s3cret", "simple", "other", "prompt", "abc") if word in caplog.text]


def test_where_the_key_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIPOVID_API_KEY", raising=False)
    assert key_from(None) is None
    monkeypatch.setenv("MINIPOVID_API_KEY", "one")
    monkeypatch.setenv("OTHER", "two")
    assert (key_from(None), key_from("OTHER")) == ("one", "two")
    with pytest.raises(MinipovidError, match="The environment variable NOWHERE holds no key"):
        key_from("NOWHERE")
    monkeypatch.setenv("MINIPOVID_API_KEY", "")
    with pytest.raises(MinipovidError, match="MINIPOVID_API_KEY holds no key"):
        key_from(None)


def listeners() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


def test_nothing_listens_beyond_loopback(url: str) -> None:
    assert ("127.0.0.1", int(url.split(":")[2].split("/")[0])) in listeners()
    assert {address for address, _ in listeners()} <= {"127.0.0.1", "::1"}


def test_beyond_loopback_only_when_asked_and_with_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.7"):
        with pytest.raises(MinipovidError, match="everyone who reaches this machine.* say --no-key"):
            serve(tmp_path, host=host, port=0)
    with bound("0.0.0.0", 0) as door:  # asked for; it does not listen yet
        assert door.getsockname()[0] == "0.0.0.0"
    with pytest.raises(MinipovidError, match="holds no GGUF files"):
        serve(tmp_path, port=0)


def test_an_address_that_cannot_be_had(tmp_path: Path) -> None:
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            MinipovidError, match=f"Port {port} of localhost cannot be had .* choose another with --port"
        ):
            serve(tmp_path, host="localhost", port=port)
    with pytest.raises(MinipovidError, match="Port 99999 of 127.0.0.1 cannot be had"):
        bound("127.0.0.1", 99999)
    with pytest.raises(MinipovidError, match="'example.org' is no address"):
        bound("example.org", 0)


# --- a real model ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a GGUF pair with random weights."""
    folder = tmp_path_factory.mktemp("serve")
    export_base(str(tiny_llava.build(folder / "tiny-7b")), folder / "run" / "gguf", ["f32"])
    return folder / "run"


@pytest.fixture(scope="module")
def model(run: Path) -> Iterator[Runtime]:
    with Runtime.open(run, n_ctx=256) as runtime:
        yield runtime


@pytest.fixture(scope="module")
def real(model: Runtime) -> Iterator[openai.OpenAI]:
    with listening(model) as url:
        yield client(url)


def spoken(model: Runtime, pictures: Sequence[Image.Image], text: str, **sampling: Any) -> str:
    """The runtime's own answer, without a server."""
    with model.say([Turn("user", text, tuple(pictures))], Sampling(**sampling)) as reply:
        return "".join(reply)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_the_model_s(real: openai.OpenAI, model: Runtime, count: int, stream: bool) -> None:
    pictures = [halves("red", "blue"), halves("green", "white").resize((33, 70))][:count]
    expected = spoken(model, pictures, "What is this?", max_tokens=20)
    messages = shown(*map(data_url, pictures))
    done = ask(
        real, messages, max_tokens=20, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {})
    )
    if stream:
        chunks = list(done)
        text, usage = "".join(c.choices[0].delta.content or "" for c in chunks[:-1]), chunks[-1].usage
    else:
        text, usage = done.choices[0].message.content, done.usage
    assert text == expected and text
    reply = model.say([Turn("user", "What is this?", tuple(pictures))], Sampling())
    assert usage.prompt_tokens == reply.prompt_tokens > 16 * count
    assert 0 < usage.completion_tokens <= 20
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_pictures_matter(model: Runtime) -> None:
    """Else the tests around would pass with pictures lost."""
    answers = {spoken(model, [Image.new("RGB", (28, 28), name)], "What is this?", max_tokens=20) for name in COLOURS}
    assert len(answers) == len(COLOURS)


def test_sixteen_at_once_of_a_real_model(real: openai.OpenAI, model: Runtime) -> None:
    def one(number: int) -> str:
        messages = shown(data_url(Image.new("RGB", (28, 28), list(COLOURS)[number % 4])), text=f"Is it {number}?")
        return str(ask(real, messages, max_tokens=12).choices[0].message.content)

    expected = [
        spoken(model, [Image.new("RGB", (28, 28), list(COLOURS)[number % 4])], f"Is it {number}?", max_tokens=12)
        for number in range(16)
    ]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(one, range(16))) == expected
    assert len(set(expected)) > 8


def test_where_an_answer_ends(real: openai.OpenAI) -> None:
    whole = ask(real, "Describe this.", max_tokens=20).choices[0].message.content
    cut = ask(real, "Describe this.", max_tokens=3)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert [*ask(real, "Describe this.", max_tokens=3, stream=True)][-1].choices[0].finish_reason == "length"
    stop = whole[len(whole) // 2 :][:2]
    stopped = ask(real, "Describe this.", max_tokens=20, stop=["never comes", stop])
    assert stopped.choices[0].message.content == whole.partition(stop)[0].rstrip()
    assert stopped.choices[0].finish_reason == "stop"


def test_penalties_change_a_greedy_answer(real: openai.OpenAI) -> None:
    """Of six, one at least. And top_k 1 is greedy at any temperature."""

    def said(text: str, **more: Any) -> str:
        return str(ask(real, text, max_tokens=24, **more).choices[0].message.content)

    texts = ["Describe this.", *(f"Is it {number}?" for number in range(5))]
    plain = [said(text) for text in texts]
    for penalty in ({"presence_penalty": 2}, {"frequency_penalty": 2}, {"extra_body": {"repeat_penalty": 10}}):
        assert [said(text, **penalty) for text in texts] != plain, penalty
    for sure in ({"top_k": 1}, {"min_p": 1}):
        assert said(texts[0], temperature=1.5, extra_body=sure) == plain[0]


def test_a_seed_repeats_an_answer(real: openai.OpenAI) -> None:
    answers = [
        ask(real, "Describe this.", temperature=1.5, seed=seed, max_tokens=20).choices[0].message.content
        for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_json(real: openai.OpenAI) -> None:
    animal = {"there": {"type": "boolean"}, "kind": {"enum": ["dog", "cat"]}}
    form = schema({"type": "object", "properties": animal, "required": [*animal], "additionalProperties": False})
    found = json.loads(ask(real, "What is this?", **form).choices[0].message.content)
    assert isinstance(found["there"], bool) and found["kind"] in ("dog", "cat") and len(found) == 2
    free = ask(real, "What is this?", response_format={"type": "json_object"}, max_tokens=60)
    assert free.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("tree", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"$ref": "https://example.org/x.json"}])
def test_a_schema_that_leads_nowhere(real: openai.OpenAI, tree: dict[str, Any]) -> None:
    error = refusal(real, **schema(tree))
    assert error.status_code == 400 and "schema" in error.message


def test_what_only_the_model_can_refuse(real: openai.OpenAI) -> None:
    assert "more than the context of 256" in refusal(real, "word " * 300).message
    assert "more than the context of 256" in refusal(real, shown(*[data_url(halves("red", "blue"))] * 16)).message
    assert "holds the placeholder <image>" in refusal(real, "What is <image>?", stream=True).message


SERVE = """
import faulthandler, sys, time
from pathlib import Path
faulthandler.dump_traceback_later(60, exit=True)  # instead of hanging it says where
from minipovid.common import local_http
from minipovid.inference import serve as serving
from minipovid.inference.llama_cpp import Runtime
step, pause, local_http.PATIENCE = Runtime._step, float(sys.argv[2]), 0.1
Runtime._step = lambda *given: (time.sleep(pause), step(*given))[1]
serving.serve(Path(sys.argv[1]), port=0, model_name="tiny", announce=lambda url: print(url, flush=True), n_ctx=256)
"""


@contextmanager
def program(run: Path, pause: float) -> Iterator[subprocess.Popen[str]]:
    """The server as a program of its own, `pause` seconds slower at each token. It is killed after 90 seconds."""
    command = [sys.executable, "-c", SERVE, str(run), str(pause)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = threading.Timer(90, started.kill)
    end.start()
    try:
        yield started
    finally:
        end.cancel()
        started.kill()
        started.communicate()


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None and started.stderr is not None
    return started.stdout.readline().strip() or started.stderr.read()


def test_the_whole_program(run: Path) -> None:
    """It prints where it listens, listens there alone, answers, and ends in peace."""
    with program(run, 0) as started:
        url = first_line(started)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
        assert ask(client(url), shown(data_url(halves("red", "blue"))), max_tokens=3).choices[0].message.content
        found = psutil.Process(started.pid).net_connections("inet")
        assert {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
        started.send_signal(signal.SIGINT)
        assert started.communicate(timeout=30) == ("", "") and started.returncode == 0


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_whole_program_ends_in_peace_in_the_middle_of_an_answer(run: Path, end: signal.Signals) -> None:
    with program(run, 0.5) as started:
        next(ask(client(first_line(started)), "What is this?", stream=True))
        started.send_signal(end)
        assert started.communicate(timeout=30) == ("", "") and started.returncode == 0


# --- bytes on the wire ---

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connected(url: str) -> socket.socket:
    host, port = url.split("/")[2].rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def let_in(line: socket.socket, length: int) -> None:
    """Send the head of a request and wait until its body is asked for."""
    line.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % length)
    assert line.recv(65536).startswith(b"HTTP/1.1 100 ")


def heard(line: socket.socket) -> bytes:
    """All that the server says until it is done."""
    found = b""
    while not _complete(found) and (piece := line.recv(65536)):
        found += piece
    return found


def sent_back(url: str, request: bytes) -> bytes:
    """All that the server says to these bytes."""
    with connected(url) as line:
        line.sendall(request)
        return heard(line)


def _complete(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and (len(body) >= int(length[1]) if length else body.endswith(b"0\r\n\r\n"))


def parsed(answer: bytes) -> tuple[int, Any]:
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


def raw(url: str, request: bytes) -> tuple[int, Any]:
    return parsed(sent_back(url, request))


def request(text: str) -> bytes:
    """A whole request for an answer to this text."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}]}).encode()
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def post(url: str, body: bytes, kind: str = "application/json", headers: bytes = b"") -> tuple[int, str]:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n".encode()
    answer = sent_back(url, head + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    return int(answer.split()[1]), answer.partition(b"\r\n\r\n")[2].decode()
