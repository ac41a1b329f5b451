"""The teacher: what is retried and how long is waited, what is spent and remembered, and that the key stays hidden."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
import threading
import time
from collections import Counter
from datetime import datetime, timezone
from email.utils import format_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer
from PIL import Image

from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import Limits, Message, Prices, Reply, Stopped, Unanswered, Usage, tokens
from minipovid.inference.remote.budget import Budget
from minipovid.inference.remote.cache import Cache, key_of
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.picture import Picture
from minipovid.inference.remote.retry import Pause, heals, retry_after
from minipovid.inference.remote.server import Server
from minipovid.inference.remote.structured import parsed

KEY = "sk-very-secret-0123456789"
SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "string", "maxLength": 9}, "minItems": 1}


def teacher(server: BadServer, **settings: Any) -> Teacher:
    settings = {"timeout_s": 30, "concurrency": 4, "pause": Pause(first=0.02, cap=0.05)} | settings
    return Teacher("bad", Server(server.url, KEY), **settings)


def question(row: object, picture: Picture | None = None) -> list[Message]:
    user = f"Question:\nrow {row}?\n\nCorrect answer:\nA red boat."
    return [Message("system", "Be wrong."), Message("user", user, picture)]


def ask(asked: Teacher, row: object, picture: Picture | None = None) -> Reply:
    return asked.ask(question(row, picture), SCHEMA, "v1")


def body(content: Any, finish_reason: str = "stop", status: int = 200, **beside: Any) -> str:
    """A chat completion as a behaviour of the server; `beside` stands in the message."""
    choice = {"message": {"role": "assistant", "content": content, **beside}, "finish_reason": finish_reason}
    return f"{status} {json.dumps({'choices': [choice]})}"


# --- what a reply says ---


@pytest.mark.parametrize(
    ("behaviour", "text", "why"),
    [
        (body(None), "", "the reply holds no answer"),
        (body(""), "", ""),
        (body("", reasoning_content="Is it a dog?"), "", "the reply holds no answer"),
        (body(None, "length", reasoning="Is it a dog?"), "", "nothing was said within max_tokens; raise it"),
        (body("Yes", reasoning_content="No."), "Yes", ""),
        (body([{"type": "text", "text": "Yes, "}, {"type": "text", "text": "it is."}]), "Yes, it is.", ""),
        (body([{"type": "thinking", "thinking": "No."}, {"type": "text", "text": "Yes"}]), "Yes", ""),
        (body([{"type": "reasoning", "text": "No."}, "Yes"]), "Yes", ""),
        (body([{"type": "refusal", "refusal": "I won't."}]), "", "the server refused: I won't."),
        (body(None, refusal="I won't."), "", "the server refused: I won't."),
        (body("<think>No dog. No.</think>\n\nYes"), "Yes", ""),
        (body("<thinking>No.</thinking> Yes"), "Yes", ""),
        (body("No dog? No.</think> Yes"), "Yes", ""),
        (body("<THINK>one</THINK>Yes<think>or not"), "Yes", ""),
        (body("<think>No dog", "length"), "", "nothing was said within max_tokens; raise it"),
        (body("<think>No dog"), "", "the reply holds no answer"),
        (body("<think>No</think>"), "", "the reply holds no answer"),
        (body("1 < 2 and 3 > 2"), "1 < 2 and 3 > 2", ""),
    ],
)
def test_what_is_said_is_neither_thought_nor_nothing(behaviour: str, text: str, why: str, tmp_path: Path) -> None:
    """What holds no answer is not kept: the same question is asked again."""
    with BadServer({"0": [behaviour] * 2}) as server:
        asked = teacher(server, cache=tmp_path / "a.sqlite")
        replies = [ask(asked, 0) for _ in range(2)]
    assert [(reply.text, reply.why_none) for reply in replies] == [(text, why)] * 2
    is_mute = '"content": null' in behaviour or "reasoning_content" in behaviour and not text
    assert server.asked("0") == (2 if is_mute else 1)


def test_thoughts_that_were_kept_before_are_taken_off(tmp_path: Path) -> None:
    asked = Teacher("m", Server("http://127.0.0.1:1/v1"), cache=tmp_path / "a.sqlite")
    content = {"version": "v1", "schema": None, "messages": [["user", "Well?", ""]]}
    asked._cache.put(key_of({**asked.identity(), **content}), Reply("<think>No.</think>Yes", "stop", "", Usage()))
    assert asked.ask([Message("user", "Well?")], None, "v1").text == "Yes"


@pytest.mark.parametrize(
    ("behaviour", "sentence", "times"),
    [
        (
            '422 {"detail": [{"loc": ["body", "messages", 0, "content"], "msg": "Input should be a text"}, '
            '{"loc": ["body", "n"], "msg": "Too many"}]}',
            "HTTP 422: messages.0.content: Input should be a text; n: Too many",
            1,
        ),
        ('422 {"detail": "Not this"}', "HTTP 422: Not this", 1),
        (
            '400 {"error": {"message": "Too long", "param": "messages", "code": null}}',
            "HTTP 400: messages: Too long",
            1,
        ),
        ('400 {"object": "error", "message": "Too long", "code": 400}', "HTTP 400: Too long", 1),
        ('200 {"error": {"message": "Bad picture", "code": 400}}', "HTTP 200, error 400: Bad picture", 1),
        (
            '200 {"choices": [{"error": {"message": "Bad picture", "code": 400}}]}',
            "HTTP 200, error 400: Bad picture",
            1,
        ),
        (
            '200 {"error": {"message": "Overloaded", "code": 502}}',
            "no answer in 2 attempts; the last: HTTP 200, error 502: Overloaded",
            2,
        ),
        ('200 {"error": "model is loading"}', "no answer in 2 attempts; the last: HTTP 200: model is loading", 2),
        (
            '200 {"choices": []}',
            "no answer in 2 attempts; the last: the server's answer is no chat completion: '{\"choices\": []}'",
            2,
        ),
        ("500 out of order", "no answer in 2 attempts; the last: HTTP 500: out of order", 2),
    ],
)
def test_an_error_is_a_sentence_and_heals_or_not(behaviour: str, sentence: str, times: int) -> None:
    with BadServer({"0": [behaviour] * 3}) as server, pytest.raises(Unanswered) as caught:
        teacher(server, attempts=2).ask(question(0), None, "v1")
    assert str(caught.value) == sentence and server.asked("0") == times


@pytest.mark.parametrize("who", ["teacher", "judge", "model"])
@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        (
            '429 {"error": {"message": "Pay", "type": "insufficient_quota", "code": "x"}}',
            "says that the quota is used up",
        ),
        ('200 {"error": {"message": "No such key", "code": 401}}', "does not accept the key; set the right one"),
        ("403 no", "does not let this key use the model"),
    ],
)
def test_who_is_asked_is_called_what_it_is(behaviour: str, sentence: str, who: str) -> None:
    with BadServer({"0": [behaviour] * 3}) as server, pytest.raises(Stopped, match=f"^The {who} bad at .* {sentence}"):
        ask(teacher(server, who=who), 0)
    assert server.asked("0") == 1


# --- what heals, and how long is waited ---


@pytest.mark.parametrize(
    ("status", "healing"),
    [(429, True), (500, True), (502, True), (503, True), (529, True), (408, True)]
    + [(400, False), (401, False), (404, False), (413, False), (422, False), (501, False)],
)
def test_only_what_can_heal_is_retried(status: int, healing: bool) -> None:
    assert heals(status) is healing


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": format_datetime(datetime.fromtimestamp(1060, timezone.utc), usegmt=True)}, 60.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(940, timezone.utc), usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
    ],
)
def test_retry_after_is_read_in_every_spelling(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, now=1000.0) == seconds


def test_backoff_doubles_up_to_the_cap_and_is_drawn_between_nothing_and_that() -> None:
    """With first 1 and cap 60: at most 1, 2, ..., 32, 60, 60; Retry-After is the least, and a second more the most."""
    most = Pause(draw=lambda low, high: high)
    assert [most.backoff(failures, None) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert Pause(draw=lambda low, high: low).backoff(5, None) == 0
    assert (most.backoff(3, 7.0), Pause(draw=lambda low, high: low).backoff(3, 7.0)) == (8.0, 7.0)
    drawn = [Pause().backoff(4, None) for _ in range(200)]
    assert 0 <= min(drawn) < 2 and 6 < max(drawn) <= 8


def test_nobody_sends_before_the_server_wants_to_be_asked_again() -> None:
    """One 429 with 200 ms holds the other requests back too; every other trouble only its own."""
    with BadServer({"0": ["429"]}) as server:
        asked = teacher(server)
        threads = [threading.Thread(target=ask, args=(asked, row)) for row in range(3)]
        threads[0].start()
        while not server.seen:
            time.sleep(0.001)
        time.sleep(0.05)  # its refusal has arrived
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
        first, *others = server.seen
        assert first.row == "0" and len(others) == 3
        assert min(each.when for each in others) - first.when >= 0.2


def test_a_server_that_wants_a_day_is_not_waited_for() -> None:
    with BadServer({"0": ["tomorrow"]}) as server, pytest.raises(Stopped, match="asks to wait 86400 seconds") as caught:
        ask(teacher(server), 0)
    assert caught.value.mend


def test_attempts_are_bounded() -> None:
    with BadServer({"0": ["500"] * 9}) as server:
        with pytest.raises(Unanswered, match="no answer in 3 attempts; the last: HTTP 500: .*out of order") as caught:
            ask(teacher(server, attempts=3), 0)
        assert caught.value.heals and server.asked("0") == 3


@pytest.mark.parametrize(
    ("behaviour", "sentence"),
    [
        ("401", "does not accept the key; set the right one in the environment"),
        ("404", "does not know the model or the address; check both"),
        ("quota", "says that the quota is used up"),
    ],
)
def test_what_is_the_same_for_every_row_ends_the_work(behaviour: str, sentence: str) -> None:
    with BadServer({"0": [behaviour]}) as server:
        asked = teacher(server)
        with pytest.raises(Stopped, match=sentence) as caught:
            ask(asked, 0)
        with pytest.raises(Stopped, match=sentence):
            ask(asked, 1)
        assert caught.value.mend and len(server.seen) == 1
        assert KEY not in str(caught.value)


def test_a_404_of_one_request_is_its_own() -> None:
    with BadServer({"1": ["404"]}) as server:
        asked = teacher(server)
        ask(asked, 0)
        with pytest.raises(Unanswered, match="HTTP 404"):
            ask(asked, 1)
        ask(asked, 2)


def test_a_server_that_is_not_there_is_said_at_once() -> None:
    with BadServer() as server:
        url = server.url
    with pytest.raises(Stopped, match="is not there; start the server, or check its address"):
        ask(Teacher("bad", Server(url), attempts=9), 0)


def test_a_server_that_falls_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minipovid.inference.remote.client.PATIENT", 3)
    with BadServer({"*": ["500"] * 9}) as server:
        asked = teacher(server, attempts=1)
        for row in range(3):
            with pytest.raises(Unanswered):
                ask(asked, row)
        with pytest.raises(Stopped, match="left 3 requests in a row unanswered"):
            ask(asked, 3)
        assert len(server.seen) == 4


def test_who_waits_wakes_when_the_work_is_stopped() -> None:
    with BadServer({"0": ["503"] * 9}) as server:
        asked = teacher(server, pause=Pause(first=60, draw=lambda low, high: high))
        threading.Timer(0.2, asked.stop).start()
        began = time.monotonic()
        with pytest.raises(Stopped, match="interrupted"):
            ask(asked, 0)
        assert time.monotonic() - began < 5 and len(server.seen) == 1


# --- what is sent ---


def test_a_picture_travels_small_and_without_its_metadata(tmp_path: Path) -> None:
    """1600 x 400 pixels, shown upright: 192 x 768 (the tag says a quarter turn); no place, no camera."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "SecretCamera"
    Image.new("RGB", (1600, 400), (200, 10, 10)).save(tmp_path / "a.jpg", exif=exif)
    with BadServer() as server:
        ask(teacher(server), 0, Picture(tmp_path / "a.jpg"))
        content = server.seen[0].body["messages"][1]["content"]
    assert [part["type"] for part in content] == ["image_url", "text"]
    head, data = content[0]["image_url"]["url"].split(",")
    assert head == "data:image/jpeg;base64"
    raw = base64.b64decode(data)
    with Image.open(BytesIO(raw)) as seen:
        assert seen.size == (192, 768) and not seen.getexif()
    assert b"SecretCamera" not in raw


def test_the_estimate_of_a_picture_counts_its_tiles(tmp_path: Path) -> None:
    """640 x 480: 2 x 1 tiles, 85 + 2 * 170. 3000 x 1500 becomes 768 x 384: the same. Text: 4 + 20 // 4 for its turn."""
    for name, size in (("a", (640, 480)), ("b", (3000, 1500)), ("c", (100, 100))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    assert [Picture(tmp_path / f"{name}.png").tokens() for name in "abc"] == [425, 425, 255]
    assert tokens([Message("user", "x" * 20), Message("user", "", Picture(tmp_path / "a.png"))]) == 9 + 4 + 425


def test_a_request_holds_the_schema_and_the_parameters() -> None:
    with BadServer() as server:
        ask(teacher(server, max_tokens=77, temperature=0.3), 0)
        body = server.seen[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("bad", 77, 0.3)
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
    }


@pytest.mark.parametrize(
    ("behaviour", "refusals", "gone"),
    [
        ("no_schema", 1, {"response_format"}),
        ("new_model", 2, {"max_tokens", "temperature"}),
        ("no_bounds", 1, {"maxLength", "minItems"}),
    ],
)
def test_what_a_server_does_not_take_is_found_out_once(
    tmp_path: Path, behaviour: str, refusals: int, gone: set[str]
) -> None:
    """By its 400s, in this program and, because the cache remembers it, in the next."""
    with BadServer({"*": [behaviour] * 9}) as server:
        for number, row in enumerate([0, 1, 2]):
            asked = teacher(server, cache=tmp_path / "a.sqlite")
            assert parsed(ask(asked, row).text)["spans"]
            assert len(server.seen) == refusals + 1 + number
            assert not [each for each in gone if f'"{each}":' in json.dumps(server.seen[-1].body)]
            asked.close()
        assert ("response_format" in server.seen[-1].body) == ("response_format" not in gone)
        if "max_tokens" in gone:
            assert server.seen[-1].body["max_completion_tokens"] == 1024


def test_a_refusal_that_names_nothing_is_remembered_for_this_run_only(tmp_path: Path) -> None:
    """It may have been this one request that was not liked."""
    with BadServer({"*": ["mute_400"] * 9}) as server:
        for run in "ab":
            asked = teacher(server, cache=tmp_path / "a.sqlite")
            for row in (f"{run}1", f"{run}2"):
                assert parsed(ask(asked, row).text)["spans"]
            asked.close()
        assert Counter(each.row for each in server.seen) == {"a1": 2, "a2": 1, "b1": 2, "b2": 1}


def test_a_400_of_a_server_that_took_a_schema_is_no_question_of_dialect() -> None:
    with BadServer({"1": ["400"]}) as server:
        asked = teacher(server)
        ask(asked, 0)
        with pytest.raises(Unanswered, match="HTTP 400: .*content policy") as caught:
            ask(asked, 1)
        assert not caught.value.heals and server.asked("1") == 1


def test_no_more_requests_fly_than_allowed() -> None:
    with BadServer(seconds=0.05) as server:
        asked = teacher(server, concurrency=3)
        threads = [threading.Thread(target=ask, args=(asked, row)) for row in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.most_flying == 3


# --- what is remembered ---


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """Not by another program either; but where anything that decides the answer is another, it is."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "b.png")
    a, b = Picture(tmp_path / "a.png"), Picture(tmp_path / "b.png")
    with BadServer() as server:
        first = teacher(server, cache=tmp_path / "c.sqlite")
        said = ask(first, 0, a)
        again = teacher(server, cache=tmp_path / "c.sqlite")
        held = ask(again, 0, a)
        assert (held.text, held.usage, held.cached) == (said.text, said.usage, True)
        assert len(server.seen) == 1 and again.spent() == Usage()
        ask(again, 0, b)
        ask(again, 0)
        again.ask(question(0, a), SCHEMA, "v2")
        again.ask(question(0, a), {"type": "string"}, "v1")
        ask(teacher(server, cache=tmp_path / "c.sqlite", temperature=0.1), 0, a)
        assert len(server.seen) == 6


def test_the_same_question_at_the_same_time_is_asked_once() -> None:
    with BadServer(seconds=0.1) as server:
        asked = teacher(server)
        threads = [threading.Thread(target=ask, args=(asked, 0)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.seen) == 1 and not asked._cache._locks


def test_an_answer_with_half_a_character_can_be_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "a.sqlite")
    reply = Reply("\ud800 \x00 é", "stop", "", Usage(1, 2, 3))
    cache.put(key_of(["a"]), reply)
    found = Cache(tmp_path / "a.sqlite").get(key_of(["a"]))
    assert found is not None and (found.text, found.usage) == (reply.text, reply.usage)


def test_a_file_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("hello " * 1000)
    with pytest.raises(MinipovidError, match="cannot be kept .* move the file away"):
        Cache(tmp_path / "a.sqlite")


def test_an_answer_that_cannot_be_kept_ends_the_work(tmp_path: Path) -> None:
    with BadServer() as server:
        asked = teacher(server, cache=tmp_path / "a.sqlite")
        with sqlite3.connect(tmp_path / "a.sqlite") as other:
            other.execute("DROP TABLE answers")
        with pytest.raises(Stopped, match="cannot be kept") as caught:
            ask(asked, 0)
        assert caught.value.mend


def test_free_text_is_asked_without_a_schema() -> None:
    """At its own temperature and length; a 400 that names nothing is then no question of dialect."""
    with BadServer({"1": ["mute_400", "400"]}) as server:
        asked = teacher(server, max_tokens=77, temperature=0.3)
        asked.ask(question(0), None, "v1", temperature=0.0, max_tokens=3)
        body = server.seen[0].body
        assert (body["max_tokens"], body["temperature"]) == (3, 0.0) and "response_format" not in body
        asked.ask(question(1), None, "v1")
        assert (server.seen[1].body["max_tokens"], server.seen[1].body["temperature"]) == (77, 0.3)
        with pytest.raises(Unanswered, match="HTTP 400"):
            asked.ask(question(1), None, "v2")
        assert server.asked("1") == 2


def test_free_text_says_nothing_of_what_a_server_takes() -> None:
    """After it, a first 400 to a schema may still mean the schema."""
    with BadServer({"1": ["mute_400"] * 2}) as server:
        asked = teacher(server)
        asked.ask(question(0), None, "v1")
        assert parsed(ask(asked, 1).text)["spans"] and server.asked("1") == 2


def test_the_cache_tells_decodings_apart_and_still_knows_old_entries(tmp_path: Path) -> None:
    """A row as versions before wrote it: its key has the teacher's own parameters, and its reply no model."""
    with BadServer() as server:
        asked = teacher(server, cache=tmp_path / "c.sqlite")
        parameters = {"server": asked.server.name, "model": "bad", "temperature": 0.7, "max_tokens": 1024}
        messages = [[each.role, each.text, ""] for each in question(0)]
        key = key_of({**parameters, "version": "v1", "schema": SCHEMA, "messages": messages})
        old = {"text": "old", "finish_reason": "stop", "refused": "", "cached": False}
        usage = {"requests": 1, "prompt_tokens": 2, "answer_tokens": 3, "estimated": 0}
        with sqlite3.connect(tmp_path / "c.sqlite") as file:
            file.execute("INSERT INTO answers VALUES (?, ?)", (key, json.dumps({**old, "usage": usage})))
        assert ask(asked, 0) == Reply("old", "stop", "", Usage(1, 2, 3), cached=True) and not server.seen
        for temperature, max_tokens, requests in (
            (0.0, None, 1),
            (None, 3, 2),
            (0.0, 3, 3),
            (0.7, 1024, 3),
            (0.0, 3, 3),
        ):
            asked.ask(question(0), SCHEMA, "v1", temperature=temperature, max_tokens=max_tokens)
            assert len(server.seen) == requests
        asked.ask(question(0), None, "v1")
        assert len(server.seen) == 4


def test_a_reply_says_who_gave_it(tmp_path: Path) -> None:
    with BadServer() as server:
        asked = teacher(server, cache=tmp_path / "c.sqlite")
        assert [ask(asked, 0).model, ask(asked, 0).model] == ["bad", "bad"] and len(server.seen) == 1


# --- budgets ---


def spend(limits: Limits, prices: Prices | None = None, **settings: Any) -> tuple[Teacher, BadServer, str]:
    """Forty rows by eight threads; each answer takes 100 + 10 tokens."""
    with BadServer(settings.pop("script", {}), seconds=0.005) as server:
        asked = teacher(server, limits=limits, prices=prices, concurrency=8, **settings)
        rows, said = iter(range(40)), Counter[str]()
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    row = next(rows, None)
                if row is None:
                    return
                try:
                    ask(asked, row)
                except Stopped as stopped:
                    said[str(stopped)] += 1
                except Unanswered:
                    pass

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (why,) = said or {"": 0}
    return asked, server, why


def test_requests_stop_at_the_limit() -> None:
    asked, server, why = spend(Limits(requests=13))
    assert len(server.seen) == asked.spent().requests == 13
    assert why == "the limit of 13 requests is reached"


@pytest.mark.parametrize("limit", [330, 1000, 1099, 1100, 1101, 2500])
def test_tokens_stop_less_than_a_request_below_the_limit(limit: int) -> None:
    """Of 110 tokens each, whatever the bound before the first answer was."""
    asked, server, why = spend(Limits(tokens=limit))
    assert asked.spent().tokens == 110 * len(server.seen) == limit // 110 * 110
    assert why == f"the next request does not fit below the limit of {limit} tokens"


def test_money_stops_less_than_a_request_below_the_limit() -> None:
    """100 tokens at 2 and 10 tokens at 30 per million: 0.0005 a request; 0.0052 pays for ten."""
    asked, server, why = spend(Limits(money=0.0052), Prices(2, 30))
    assert len(server.seen) == 10
    assert asked.prices is not None and asked.prices.of(asked.spent()) == pytest.approx(0.005)
    assert why == "the next request does not fit below the limit of 0.0052 for money"


def test_failed_attempts_count_as_requests() -> None:
    _, server, _ = spend(Limits(requests=13), script={"*": ["500"]})
    assert len(server.seen) == 13


def test_lost_answers_may_have_been_billed() -> None:
    """Row 0 answers, row 1 is cut off: it counts as dear as row 0, so of 340 tokens one more request fits."""
    with BadServer({"1": ["cut"]}) as server:
        asked = teacher(server, limits=Limits(tokens=340), attempts=1)
        ask(asked, 0)
        with pytest.raises(Unanswered):
            ask(asked, 1)
        ask(asked, 2)
        with pytest.raises(Stopped):
            ask(asked, 3)
        assert asked.spent() == Usage(3, 200, 20)


def test_the_first_request_goes_alone_where_its_bound_is_beyond_the_limit() -> None:
    """Two want to go: the second waits for what the first takes, and then does not fit."""
    budget = Budget(Limits(tokens=150), None)
    ticket = budget.admit(Usage(1, 5000, 5000))
    said: list[str] = []

    def second() -> None:
        try:
            budget.admit(Usage(1, 5000, 5000))
        except Stopped as stopped:
            said.append(str(stopped))

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.05)
    assert not said
    budget.settle(ticket, Usage(1, 100, 10))
    thread.join(5)
    assert said == ["the next request does not fit below the limit of 150 tokens"]


def test_a_limit_of_money_needs_prices() -> None:
    with pytest.raises(MinipovidError, match="needs the prices"):
        Teacher("m", Server("http://127.0.0.1:1/v1"), limits=Limits(money=1))


def test_what_a_server_does_not_count_is_estimated() -> None:
    with BadServer({"0": ["no_usage"]}) as server:
        asked = teacher(server)
        reply = ask(asked, 0)
    assert reply.usage == Usage(1, tokens(question(0)), len(reply.text) // 4 + 1, estimated=1) == asked.spent()


# --- the key ---


@pytest.mark.parametrize(
    ("environment", "url", "key"),
    [
        ({"OPENAI_API_KEY": KEY}, "https://api.openai.com/v1", KEY),
        ({"OPENAI_API_KEY": KEY + "\n", "OPENAI_BASE_URL": "http://a/v1"}, "http://a/v1", KEY),
        ({"MINIPOVID_TEACHER_BASE_URL": "http://b:1/v1"}, "http://b:1/v1", "none"),
        ({"MINIPOVID_TEACHER_BASE_URL": "http://b/v1", "OPENAI_API_KEY": KEY}, "http://b/v1", "none"),
        ({"MINIPOVID_TEACHER_BASE_URL": "http://b/v1", "MINIPOVID_TEACHER_API_KEY": "k"}, "http://b/v1", "k"),
        ({"OPENAI_BASE_URL": "http://a/v1"}, "http://a/v1", "none"),
    ],
)
def test_a_key_goes_only_to_the_address_it_stands_beside(environment: dict[str, str], url: str, key: str) -> None:
    server = Server.from_environment(environment)
    assert (server.base_url, server.key) == (url, key)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "No teacher is named: export OPENAI_API_KEY, or for a local server MINIPOVID_TEACHER_BASE_URL"),
        ({"OPENAI_BASE_URL": "localhost:8080"}, "OPENAI_BASE_URL is no web address"),
        ({"MINIPOVID_TEACHER_BASE_URL": "ftp://a/"}, "MINIPOVID_TEACHER_BASE_URL is no web address"),
        ({"OPENAI_API_KEY": "sk-geheim-ä"}, "OPENAI_API_KEY holds a character that no key has"),
        ({"OPENAI_API_KEY": "Bearer sk-1"}, "OPENAI_API_KEY holds a character that no key has"),
    ],
)
def test_a_wrong_environment_is_one_sentence(environment: dict[str, str], sentence: str) -> None:
    with pytest.raises(MinipovidError, match=sentence) as caught:
        Server.from_environment(environment)
    assert "sk-" not in str(caught.value)


def test_the_key_shows_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in what is printed of any object, not in errors that quote it, not in answers, logs or files."""
    caplog.set_level(logging.DEBUG)
    server = Server(f"http://user:{KEY}@host:1/v1", KEY)
    assert KEY not in repr(Server("http://host/v1", KEY)) + server.name + server.hush(f"bad key {KEY}!")
    shown = []
    with BadServer({"0": ["400"] * 2, "1": ["401"]}) as bad:
        asked = teacher(bad, cache=tmp_path / "a.sqlite")
        shown += [repr(asked), json.dumps(asked.identity())]
        for row in (0, 1):
            with pytest.raises((Unanswered, Stopped)) as caught:
                ask(asked, row)
            shown += [repr(caught.value), *map(repr, caught.value.args)]
            assert "***" in shown[-1]
        assert bad.seen[0].key == f"Bearer {KEY}"
        asked.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert KEY not in "".join(shown) + caplog.text and KEY.encode() not in files


def test_a_placeholder_is_no_secret() -> None:
    """A local server's "none" is a word of answers."""
    assert Server("http://host/v1", "none").hush("There is none.") == "There is none."


def test_a_local_server_is_asked_past_any_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with BadServer() as server:
        ask(teacher(server), 0)
    local = ("http://localhost/v1", "http://127.0.0.1:80/v1", "http://[::1]:8080/v1")
    assert all(Server(url).is_local for url in local) and not Server("http://10.0.0.1/v1").is_local


# --- replies ---


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1}',
        ' \n{"a": 1} and more',
        'Sure!\n```json\n{"a": 1}\n```\nDone {now}.',
        '```\n{"a": 1,}\n```',
        '{"a": 1, }',
        '<think>{"a": 2} or {not}</think>{"a": 1}',
    ],
)
def test_a_reply_is_understood_in_every_wrapping(text: str) -> None:
    assert parsed(text) == {"a": 1}


def test_a_raw_newline_within_a_text_is_read_as_one() -> None:
    assert parsed('{"a": "x\ny, }"}') == {"a": "x\ny, }"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no JSON object"),
        ("[1]", "holds no JSON object"),
        ('{"a": ', "the reply is not JSON: "),
        ("{" * 100_000, "the reply is not JSON: "),
        ('{"a":' * 100_000, "the reply is not JSON: "),
    ],
)
def test_a_reply_that_is_no_object_says_why(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parsed(text)
