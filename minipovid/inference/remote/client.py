"""The official openai client, asked for one chat completion at a time; all patience is ours (`max_retries=0`)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai

from minipovid.common.errors import MinipovidError
from minipovid.inference import remote
from minipovid.inference.remote import reading, unsupported
from minipovid.inference.remote.budget import Budget
from minipovid.inference.remote.cache import Cache, key_of
from minipovid.inference.remote.retry import PATIENCE, QUOTA, Pause, Trouble, retry_after
from minipovid.inference.remote.server import Server
from minipovid.inference.remote.structured import response_format
from minipovid.inference.thoughts import spoken

SCHEMA_NAME = "answer"
PATIENT = 64  # requests in a row that end without an answer; then the server is taken for dead
_SHOWN = 300  # characters of a server's own words
_NOBODY = "nobody"
_MEND = {
    401: "does not accept the key; set the right one in the environment",
    402: "wants to be paid first",
    403: "does not let this key use the model; set another key, or name another model",
    404: "does not know the model or the address; check both",
}


class Teacher:
    """Thread-safe: at most `concurrency` requests are on their way, whoever asks."""

    def __init__(
        self,
        model: str,
        server: Server | None = None,
        *,
        cache: Path | None = None,
        concurrency: int = 8,
        limits: remote.Limits | None = None,
        prices: remote.Prices | None = None,
        timeout_s: float = 120.0,
        attempts: int = 6,
        temperature: float = 0.7,
        max_tokens: int = 1024,
        pause: Pause | None = None,
        who: str = "teacher",
    ) -> None:
        """`server` is the environment's unless given; without `cache` nothing is kept; `who` it is called in sentences:
        teacher, judge, or the model that is examined. Raises MinipovidError.

        `timeout_s` is how long the server may send nothing; `attempts` how often one request is sent at most.
        """
        if limits is not None and limits.money is not None and prices is None:
            raise MinipovidError("A limit of money needs the prices of a million tokens, of prompts and of answers.")
        self.model, self.concurrency, self.attempts = model, concurrency, attempts
        self.temperature, self.max_tokens, self.prices = temperature, max_tokens, prices
        self.server, self.who = server or Server.from_environment(who=who), who
        self._cache = Cache(cache)
        self._budget = Budget(limits or remote.Limits(), prices)
        self._pause = pause or Pause()
        self._places = threading.BoundedSemaphore(concurrency)
        self._dropped = self._cache.dropped(self._place)
        self._schema_taken = self._answered = False
        self._silent = 0  # requests in a row without an answer
        self._client = openai.OpenAI(
            base_url=self.server.base_url,
            api_key=self.server.key,
            timeout=timeout_s,
            max_retries=0,
            # A server on this machine is asked directly, whatever proxy the environment names.
            http_client=openai.DefaultHttpxClient(trust_env=False) if self.server.is_local else None,
        )

    def __repr__(self) -> str:
        return f"Teacher({self._place})"

    @property
    def _place(self) -> str:
        return f"{self.model} at {self.server.name}"

    def identity(self) -> dict[str, Any]:
        """What decides an answer, beside the messages, the schema and the prompt's version."""
        return {
            "server": self.server.name,
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }

    def spent(self) -> remote.Usage:
        return self._budget.usage

    def stop(self, why: str = "interrupted", *, mend: bool = False) -> None:
        """Nobody asks again; who waits wakes and gets Stopped. Requests on their way come home."""
        self._budget.end(why, mend=mend)
        self._pause.stopped.set()

    def close(self) -> None:
        self._client.close()
        self._cache.close()

    def ask(
        self,
        messages: Sequence[remote.Message],
        schema: Mapping[str, Any] | None,
        version: str,
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> remote.Reply:
        """The answer to a conversation, from the cache if it was ever given.

        `schema` is the JSON schema that the answer should follow; who reads it must check, for not every server does.
        None asks for free text. `temperature` and `max_tokens` are the teacher's own unless given. Raises Unanswered
        where this request got none, Stopped where no more may be sent, MinipovidError for a picture that cannot be
        read.
        """
        decoding = {
            "temperature": self.temperature if temperature is None else temperature,
            "max_tokens": self.max_tokens if max_tokens is None else max_tokens,
        }
        content = {"version": version, "schema": schema, "messages": _named(messages)}
        key = key_of({**self.identity(), **decoding, **content})
        with self._cache.alone(key):
            reply = self._cache.get(key)
            if reply is None:
                request = {"model": self.model, "messages": [_message(each) for each in messages], **decoding}
                if schema is not None:
                    request["response_format"] = response_format(SCHEMA_NAME, schema)
                reply = self._answer(request, remote.tokens(messages), key)
        said = spoken(reply.text)
        return replace(reply, text=said, mute=reply.mute or bool(reply.text and not said))

    def _answer(self, request: dict[str, Any], prompt_tokens: int, key: bytes) -> remote.Reply:
        """Ask until there is an answer, as long as what went wrong can heal. It is in the cache then."""
        dropped, certain, failures = self._dropped, frozenset[str](), 0
        while True:
            spelt = unsupported.spelt(request, dropped)
            try:
                reply = self._send(spelt, prompt_tokens, request["max_tokens"], key)
            except Trouble as trouble:
                self._stop_where_hopeless(trouble)
                named = unsupported.named(trouble, dropped)
                other = named or unsupported.guessed(trouble, spelt, self._schema_taken)
                if other:
                    dropped, certain = dropped | other, certain | named
                    continue
                failures += 1
                self._bear(trouble, failures)
            else:
                self._learn(dropped, certain, schema_sent="response_format" in spelt)
                return reply

    def _send(self, request: dict[str, Any], prompt_tokens: int, max_tokens: int, key: bytes) -> remote.Reply:
        """One request, one answer. Raises Trouble, and Stopped where it may not go."""
        with self._places:
            self._pause.gate()
            # A prompt may take half more than the rule of thumb says.
            ticket = self._budget.admit(remote.Usage(1, prompt_tokens * 3 // 2, max_tokens))
            try:
                # Not chat.completions.create: it walks through the messages against their types, for 3 ms a request.
                body = self._client.post("/chat/completions", cast_to=str, body=request)
                reply = reading.reply(self.server.hush(body), prompt_tokens)
            except openai.APIStatusError as error:
                self._budget.free(ticket)
                wait = retry_after(error.response.headers)
                raise self._told(reading.trouble(error.status_code, error.body, wait)) from None
            except Trouble as trouble:
                if trouble.status:
                    self._budget.free(ticket)
                else:
                    self._budget.lose(ticket)
                raise self._told(trouble) from None
            except openai.APIConnectionError as error:
                self._budget.lose(ticket)
                raise Trouble(self._words(str(error)), code=_NOBODY if _nobody(error) else "") from None
            self._budget.settle(ticket, reply.usage)
            if not reply.mute:
                self._cache.put(key, reply)  # before the place is free: a kill costs `concurrency` answers at the most
            return reply

    def _told(self, trouble: Trouble) -> Trouble:
        return Trouble(self._words(str(trouble)), status=trouble.status, code=trouble.code, wait=trouble.wait)

    def _words(self, text: str) -> str:
        """What a server said, on one line, short, and without the key."""
        line = " ".join(self.server.hush(text).split())
        return line if len(line) <= _SHOWN else line[: _SHOWN - 3] + "..."

    def _stop_where_hopeless(self, trouble: Trouble) -> None:
        """Raise Stopped where the next request would fare no better: the same for every row."""
        why = _MEND.get(trouble.status, "")
        if trouble.status == 404 and self._answered:
            why = ""  # the model is there; it is this request that was not liked
        if trouble.code == QUOTA:
            why = "says that the quota is used up"
        if trouble.heals and (trouble.wait or 0) > PATIENCE:
            why = f"asks to wait {trouble.wait:.0f} seconds; run again then"
        if trouble.code == _NOBODY and not self._answered:
            why = "is not there; start the server, or check its address"
        if self._silent >= PATIENT:
            why = f"left {self._silent} requests in a row unanswered"
        if why:
            sentence = f"The {self.who} {self._place} {why} ({trouble})."
            self.stop(sentence, mend=True)
            raise remote.Stopped(sentence, mend=True) from None

    def _bear(self, trouble: Trouble, failures: int) -> None:
        """Wait before the next try. Raises Unanswered where there is none."""
        if not trouble.heals:
            raise remote.Unanswered(str(trouble), heals=False) from None
        if failures >= self.attempts:
            self._silent += 1
            raise remote.Unanswered(f"no answer in {failures} attempts; the last: {trouble}", heals=True) from None
        wait = self._pause.backoff(failures, trouble.wait)
        if trouble.wait is not None:
            self._pause.hold(trouble.wait)
        self._pause.wait(wait)

    def _learn(self, dropped: frozenset[str], certain: frozenset[str], *, schema_sent: bool) -> None:
        """What an answer says of the server's dialect. Only what it named itself is kept beyond this run."""
        self._answered, self._silent = True, 0
        self._schema_taken = self._schema_taken or schema_sent
        self._dropped |= dropped
        if certain:
            self._cache.drop(self._place, self._cache.dropped(self._place) | certain)


def _nobody(error: BaseException | None) -> bool:
    """Whether it was that nobody listens at the address, or that there is no such name."""
    while error is not None:
        if isinstance(error, (ConnectionRefusedError, socket.gaierror)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _named(messages: Sequence[remote.Message]) -> list[list[str]]:
    """The conversation as the cache knows it: a picture by its digest."""
    return [[each.role, each.text, each.picture.name if each.picture else ""] for each in messages]


def _message(message: remote.Message) -> dict[str, Any]:
    text = remote.clean(message.text)
    if message.picture is None:
        return {"role": message.role, "content": text}
    picture = {"type": "image_url", "image_url": {"url": message.picture.url()}}
    return {"role": message.role, "content": [picture, {"type": "text", "text": text}]}
