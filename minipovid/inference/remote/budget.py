"""What may still be spent, those requests included that are on their way.

A request is let go when it fits beside what was spent and what those in flight will take; it waits while it does not
fit and one of them may turn out smaller; with none in flight the work is over. What a request will take is the dearest
one seen so far, or, before the first answer, a bound. So the end lies less than one request below the limit, and above
it only by what a last request is dearer than all before.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import NamedTuple

from minipovid.inference.remote import Limits, Prices, Stopped, Usage


class Worth(NamedTuple):
    """Tokens and money of one request."""

    tokens: float = 0.0
    money: float = 0.0


@dataclass(frozen=True)
class Ticket:
    """Leave to send one request; handed back with what it took."""

    worth: Worth
    bound: bool  # `worth` was a bound: nothing had been seen


class Budget:
    """Thread-safe. `usage` is what was answered; lost requests, which may have been billed, only fill the limits."""

    def __init__(self, limits: Limits, prices: Prices | None) -> None:
        self.limits, self.prices = limits, prices
        self.usage = Usage()
        self.lost = 0  # requests that were sent and never answered
        self._tokens = self._money = 0.0
        self._flying: list[Worth] = []
        self._dearest: Worth | None = None
        self._changed = threading.Condition()
        self._over = ""
        self._mend = False

    def admit(self, bound: Usage) -> Ticket:
        """Wait for leave to send a request of at most about `bound`. Raises Stopped where there is none to come."""
        with self._changed:
            while True:
                if self._over:
                    raise Stopped(self._over, mend=self._mend)
                worth = self._dearest or self._worth(bound)
                why = self._refusal(worth)
                if not why:
                    break
                if not self._flying:
                    self._end(why)
                    continue
                self._changed.wait()
            self._flying.append(worth)
            self.usage += Usage(requests=1)
            return Ticket(worth, self._dearest is None)

    def settle(self, ticket: Ticket, usage: Usage) -> None:
        """The request was answered and took `usage`; its count of requests is ignored, admit counted it."""
        with self._changed:
            self._flying.remove(ticket.worth)
            took = self._worth(usage)
            self._add(took)
            before = self._dearest or Worth()
            self._dearest = Worth(max(before.tokens, took.tokens), max(before.money, took.money))
            self.usage += Usage(0, usage.prompt_tokens, usage.answer_tokens, usage.estimated)
            self._changed.notify_all()

    def free(self, ticket: Ticket) -> None:
        """The server refused the request before it did anything: it cost nothing but its place in the count."""
        with self._changed:
            self._flying.remove(ticket.worth)
            self._changed.notify_all()

    def lose(self, ticket: Ticket) -> None:
        """No answer came. It may have been billed, so it counts as dear as the dearest seen, if any was."""
        with self._changed:
            self._flying.remove(ticket.worth)
            self.lost += 1
            self._add(self._dearest or Worth())
            self._changed.notify_all()

    def end(self, why: str, *, mend: bool = False) -> None:
        """From now on nobody gets leave. The first reason stays."""
        with self._changed:
            self._end(why, mend)

    def _end(self, why: str, mend: bool = False) -> None:
        if not self._over:
            self._over, self._mend = why, mend
        self._changed.notify_all()

    def _worth(self, usage: Usage) -> Worth:
        return Worth(usage.tokens, self.prices.of(usage) if self.prices else 0.0)

    def _add(self, worth: Worth) -> None:
        self._tokens += worth.tokens
        self._money += worth.money

    def _refusal(self, worth: Worth) -> str:
        """Why a request of this worth may not go now; empty where it may."""
        limits, flying = self.limits, self._flying
        if limits.requests is not None and self.usage.requests >= limits.requests:
            return f"the limit of {limits.requests} requests is reached"
        if self._dearest is None and not flying and not self.lost:
            worth = Worth()  # the first goes, whatever the bound: how dear requests are shows only then
        tokens = self._tokens + sum(each.tokens for each in flying) + worth.tokens
        if limits.tokens is not None and (tokens > limits.tokens or self._tokens >= limits.tokens):
            return f"the next request does not fit below the limit of {limits.tokens} tokens"
        money = self._money + sum(each.money for each in flying) + worth.money
        if limits.money is not None and (money > limits.money or self._money >= limits.money):
            return f"the next request does not fit below the limit of {limits.money:g} for money"
        return ""
