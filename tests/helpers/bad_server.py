"""An OpenAI-compatible teacher on loopback that behaves badly on purpose, and counts what it is asked.

    with BadServer({"3": ["429", "500"], "7": ["refusal"] * 3}) as server:      # row 3 fails twice, then is answered
        ... MINIPOVID_TEACHER_BASE_URL=server.url ...
    server.asked("3")                                                           # how often row 3 was asked

A request belongs to the row whose number its first question holds ("row 3"). Each of its requests gets the next
behaviour of the row's list, and a good answer when the list is over: a sentence about a kite behind the correct answer.
"say Rating: 4" is a behaviour as well: a judge's words.

    python tests/helpers/bad_server.py --seconds 0.2    # good but slow: prints its URL; GET /counts tells what it saw
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KITE = "A grey kite lies beside it."


class Seen(NamedTuple):
    """One request."""

    row: str
    behaviour: str
    content: str  # of the messages, pictures left out: two requests of one content are one question asked twice
    body: dict[str, Any]
    key: str
    when: float  # seconds of the monotonic clock


class BadServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Mapping[str, Sequence[str]] | None = None, *, seconds: float = 0.0, keep: bool = True):
        """`script` is behaviours by row, "*" for every row without its own; `seconds` what each answer takes."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.seconds, self.keep = dict(script or {}), seconds, keep
        self.seen: list[Seen] = []
        self.answered: list[tuple[float, str]] = []  # when a good answer was written, and to which content
        self.flying = self.most_flying = 0
        self.over = threading.Event()
        self.lock = threading.Lock()
        self._turns: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def asked(self, row: str) -> int:
        return sum(each.row == row for each in self.seen)

    def next(self, row: str) -> str:
        behaviours = self.script.get(row, self.script.get("*", []))
        turn, self._turns[row] = self._turns[row], self._turns[row] + 1
        return behaviours[turn] if turn < len(behaviours) else "good"

    def __enter__(self) -> BadServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some of the behaviours are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: BadServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.lock:
            contents = [[each.row, each.content] for each in self.server.seen]
            answered = [[when, content] for when, content in self.server.answered]
            told = {"seen": contents, "answered": answered, "most_flying": self.server.most_flying}
        self._send(200, told)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        texts = [_text(message["content"]) for message in body["messages"]]
        texts = texts[1:] or texts  # without the instructions, where they are a message of their own
        found = re.search(r"row (\w+)", texts[0])
        row = found.group(1) if found else "?"
        with self.server.lock:
            behaviour = self.server.next(row)
            kept = body if self.server.keep else {}
            key, when = self.headers.get("Authorization", ""), time.monotonic()
            self.server.seen.append(Seen(row, behaviour, repr(texts), kept, key, when))
            self.server.flying += 1
            self.server.most_flying = max(self.server.most_flying, self.server.flying)
        try:
            self.server.over.wait(self.server.seconds)
            chosen = texts[0].rpartition("Correct answer:\n")[2]
            getattr(self, f"_{behaviour}", self._said)(behaviour, chosen, body)
        finally:
            with self.server.lock:
                self.server.flying -= 1
                self.server.answered.append((time.time(), repr(texts)))

    # --- behaviours of the connection ---

    def _429(self, *_: Any) -> None:
        self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.2"})

    def _429ms(self, *_: Any) -> None:
        self._send(429, {"error": {"message": "slow down"}}, {"Retry-After-Ms": "30"})

    def _tomorrow(self, *_: Any) -> None:
        self._send(429, {"error": {"message": "come back tomorrow"}}, {"Retry-After": "86400"})

    def _quota(self, *_: Any) -> None:
        self._send(429, {"error": {"message": "no money left", "code": "insufficient_quota"}})

    def _500(self, *_: Any) -> None:
        self._send(500, {"error": {"message": "out of order"}})

    def _503(self, *_: Any) -> None:
        self._send(503, "busy")

    def _401(self, *_: Any) -> None:
        self._send(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})

    def _404(self, *_: Any) -> None:
        self._send(404, {"error": {"message": "no such model"}})

    def _400(self, *_: Any) -> None:
        self._send(400, {"error": {"message": f"content policy, said {self.headers['Authorization']}"}})

    def _hang(self, *_: Any) -> None:
        self.server.over.wait(5)
        self.close_connection = True

    def _cut(self, *_: Any) -> None:
        self.close_connection = True

    def _half(self, *_: Any) -> None:
        self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"choices"')
        self.close_connection = True

    def _html(self, *_: Any) -> None:
        self._send(200, "<html>gateway</html>", {"Content-Type": "text/html"})

    def _no_choices(self, *_: Any) -> None:
        self._send(200, {"choices": []})

    def _no_schema(self, _: str, chosen: str, body: dict[str, Any]) -> None:
        """A server that knows no structured output, and answers as such models do."""
        if "response_format" in body:
            self._send(400, {"error": {"message": "response_format of type json_schema is not supported"}})
        else:
            self._say(f"Here you are:\n```json\n{_good(chosen)}\n```\nGood luck!")

    def _mute_400(self, _: str, chosen: str, body: dict[str, Any]) -> None:
        """The same, from a server that does not say why."""
        if "response_format" in body:
            self._send(400, "Bad Request")
        else:
            self._say(_good(chosen))

    def _no_bounds(self, _: str, chosen: str, body: dict[str, Any]) -> None:
        """A server whose structured output knows no lengths."""
        if "maxLength" in json.dumps(body.get("response_format", "")):
            said = "Invalid schema for response_format 'answer': 'maxLength' is not permitted."
            self._send(400, {"error": {"message": said, "param": "response_format"}})
        else:
            self._say(_good(chosen))

    def _new_model(self, _: str, chosen: str, body: dict[str, Any]) -> None:
        """As newer OpenAI models are: another name for max_tokens, no temperature."""
        if "max_tokens" in body:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            self._send(400, {"error": {"message": said, "param": "max_tokens"}})
        elif "temperature" in body:
            self._send(400, {"error": {"message": "Unsupported value: 'temperature' does not support 0.7."}})
        else:
            self._say(_good(chosen))

    def _no_usage(self, _: str, chosen: str, body: dict[str, Any]) -> None:
        self._say(_good(chosen), usage=None)

    # --- behaviours of the model ---

    def _said(self, behaviour: str, chosen: str, body: dict[str, Any]) -> None:
        if told := re.fullmatch(r"(\d{3}) (.*)", behaviour):  # a status and a body, as they are
            self._send(int(told[1]), told[2])
            return
        ends = {"cut_off": "length", "cut_off_empty": "length", "filtered": "content_filter"}
        reason = ends.get(behaviour, "stop")
        refusal = "I won't." if behaviour == "refusal_field" else None
        self._say(_words(behaviour, chosen), finish_reason=reason, refusal=refusal)

    def _say(
        self,
        text: str | None,
        finish_reason: str = "stop",
        refusal: str | None = None,
        usage: dict[str, int] | None = {"prompt_tokens": 100, "completion_tokens": 10},  # noqa: B006
    ) -> None:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        choice = {"index": 0, "message": message, "finish_reason": finish_reason}
        told = {"id": "x", "object": "chat.completion", "created": 0, "model": "bad", "choices": [choice]}
        self._send(200, told if usage is None else {**told, "usage": usage})

    def _send(self, status: int, content: Any, headers: Mapping[str, str] | None = None) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        # One write: headers and body apart would wait for the client's delayed acknowledgement.
        self._headers_buffer.append(b"\r\n")
        self._headers_buffer.append(data)
        self.flush_headers()


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _good(chosen: str) -> str:
    return json.dumps({"rejected": f"{chosen} {KITE}", "spans": [{"text": KITE, "kind": "object"}]})


def _words(behaviour: str, chosen: str) -> str | None:
    """What the model says; a behaviour that is not known is a mistake in a test."""

    def reply(rejected: str, *spans: str) -> str:
        return json.dumps({"rejected": rejected, "spans": [{"text": span, "kind": "object"} for span in spans]})

    if behaviour.startswith("say "):
        return behaviour[4:]
    canned = "There is a dog with a ball on the green grass of this picture."
    return {
        "good": _good(chosen),
        "malformed": _good(chosen).replace(":", "="),
        "comma": _good(chosen).replace("}]}", "},]}"),
        "prose": "The boat is not red.",
        "cut_off": _good(chosen)[:-20],
        "cut_off_empty": None,
        "filtered": "",
        "refusal": "I'm sorry, but I can't help with that request.",
        "refusal_in_json": reply("I'm sorry, but I can't write false statements.", "I'm sorry"),
        "refusal_field": None,
        "meta": reply(f"Here is the rewritten answer: {chosen} {KITE}", KITE),
        "empty": "",
        "null": None,
        "empty_rejected": reply("  ", "x"),
        "same": reply(chosen.upper(), chosen.upper()),
        "french": reply("Il y a un bateau bleu et trois grands chiens noirs sur la plage.", "trois grands chiens"),
        "russian": reply("На картинке синяя лодка и три больших собаки.", "три больших собаки"),
        "no_span": reply(f"{chosen} {KITE}", "an elephant"),
        "old_span": reply(f"{chosen} {KITE}", chosen.split()[1]),
        "long": reply(f"{chosen} {KITE}" * 20, KITE),
        "duplicate": reply(canned, "dog"),
        "surrogate": '{"rejected": "' + chosen + ' \\ud800 kite", "spans": [{"text": "kite", "kind": "object"}]}',
        "list": "[1, 2]",
        "wrong_type": '{"rejected": 7, "spans": "none"}',
    }[behaviour]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.2, help="what an answer takes")
    server = BadServer(seconds=parser.parse_args().seconds, keep=False)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
