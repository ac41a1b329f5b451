"""POVID's way of making pairs (arXiv 2402.11411): a teacher rewrites the good answer so that it hallucinates.

POVID's own prompts were never published; those in prompts/ are ours, and a changed prompt gets a new name. One is for
descriptions (objects that habit would add, wrong relations, wrong attributes), one for answers that reason (a wrong
observation that leads to a wrong conclusion). What comes back is checked (injection.py), asked for again with the
reason, and given up after the third time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common.data_files import short
from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import ChatModel, Message, Reply, Unanswered, Usage, text_tokens, tokens
from minipovid.inference.remote.picture import Picture
from minipovid.inference.remote.structured import parsed
from minipovid.pairs.injection import NotInjected, injection, schema
from minipovid.pairs.make.makers import MakerInputs, Outcome
from minipovid.pairs.pair import Pair, Seed

PROMPTS = {"description": "description.v1", "reasoning": "reasoning.v1"}
TRIES = 3
_SPAN_TOKENS = 40  # of a reply, beside the answer itself

# A question that asks for looks, whatever the answer says; one that asks for a judgement; an answer that gives one.
_LOOKS = re.compile(
    r"\b(?:describe|description|caption|depict|what do you see|what can you see)\b"
    r"|\bwhat(?:['’]s| is| are)? (?:in|on|shown|visible|happening)\b",
    re.IGNORECASE,
)
_JUDGES = re.compile(
    r"^\W*(?:why|explain|how (?:can|could|do|does|did|is|are|might|may|should|would|will)"
    r"|is|are|was|were|do|does|did|can|could|would|should|will|has|have|might|may)\b"
    r"|\bwhat (?:might|may|could|would|should|can be)\b"
    r"|\b(?:reason|infer|conclude|suggest|imply|purpose|likely|advice|precautions?)",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"^\W*(?:yes|no)\b|\b(?:because|therefore|thus|hence|suggest(?:s|ing)?|indicat(?:e|es|ing)|impl(?:y|ies)|likely)\b",
    re.IGNORECASE,
)


class PromptFile(NamedTuple):
    """A file of prompts/: what the teacher is told, what it is asked, and how it is asked again."""

    version: str
    task: str
    user: str
    again: str


@cache
def prompt(version: str) -> PromptFile:
    """The prompt of that name. Its parts are parted by lines `=== user ===` and `=== again ===`."""
    whole = (files("minipovid.pairs.make") / "prompts" / f"{version}.md").read_text(encoding="utf-8")
    task, user, again = (part.strip() for part in re.split(r"^=== \w+ ===$", whole, flags=re.MULTILINE))
    return PromptFile(version, task, user, again)


def kind_of(question: str, answer: str) -> str:
    """Which prompt a seed gets: "reasoning" where the question asks for a judgement or the answer gives one, with
    reasons or a yes or no, unless it is looks that are asked for; else "description"."""
    if _LOOKS.search(question):
        return "description"
    return "reasoning" if _JUDGES.search(question) or _CONCLUDES.search(answer) else "description"


@dataclass(frozen=True)
class Options:
    kind: str = "auto"  # what the answers are: a key of PROMPTS, or as each looks
    picture: bool = True  # does the teacher see it? Some read and do not see


def maker(inputs: MakerInputs, options: Options) -> Injector:
    """Raises MinipovidError for an unknown kind of prompt, and what the teacher raises."""
    if options.kind != "auto" and options.kind not in PROMPTS:
        raise MinipovidError(f"There is no kind {options.kind!r} of prompt; known: auto, {', '.join(PROMPTS)}.")
    return Injector(inputs.teacher(), options)


@dataclass(frozen=True)
class Injector:
    """The maker."""

    teacher: ChatModel
    options: Options = Options()

    @property
    def workers(self) -> int:
        """Twice as many as requests may fly: requests land together, and then the next ones are ready to go."""
        return 2 * self.teacher.concurrency

    def identity(self) -> dict[str, Any]:
        asked = {"prompts": sorted(PROMPTS.values()), "kind": self.options.kind, "picture": self.options.picture}
        return {**self.teacher.identity(), "maker": "povid", **asked}

    def stop(self) -> None:
        self.teacher.stop()

    def spent(self) -> Usage:
        return self.teacher.spent()

    def cost(self, usage: Usage) -> float | None:
        return self.teacher.prices.of(usage) if self.teacher.prices else None

    def estimate(self, seed: Seed, picture: Path) -> Usage:
        messages = self._messages(self._prompt(seed), seed, picture)
        return Usage(1, tokens(messages), text_tokens(seed.answer) + _SPAN_TOKENS)

    def make(self, seed: Seed, picture: Path) -> Outcome:
        """Ask, check, and ask again with the reason. Raises remote.Stopped."""
        wording = self._prompt(seed)
        messages = self._messages(wording, seed, picture)
        usage, reasons = Usage(), list[str]()
        for _ in range(TRIES):
            try:
                reply = self.teacher.ask(messages, schema(seed.answer), wording.version)
            except Unanswered as error:
                return Outcome(None, (*reasons, str(error)), usage, heals=error.heals)
            except MinipovidError as error:  # the picture
                return Outcome(None, (*reasons, str(error)), usage, heals=True)
            usage += reply.usage
            try:
                return Outcome(self._pair(seed, wording, reply), tuple(reasons), usage)
            except NotInjected as error:
                reasons.append(str(error))
            text = reply.text.strip() or reply.refused or "(nothing)"  # some servers take no empty turn
            again = _fill(wording.again, {"reason": reasons[-1]})
            messages = [*messages, Message("assistant", text), Message("user", again)]
        return Outcome(None, tuple(reasons), usage)

    def _prompt(self, seed: Seed) -> PromptFile:
        kind = kind_of(seed.prompt, seed.answer) if self.options.kind == "auto" else self.options.kind
        return prompt(PROMPTS[kind])

    def _messages(self, wording: PromptFile, seed: Seed, picture: Path) -> list[Message]:
        question = _fill(wording.user, {"question": seed.prompt, "answer": seed.answer})
        attachment = Picture(picture) if self.options.picture else None
        return [Message("system", wording.task), Message("user", question, attachment)]

    def _pair(self, seed: Seed, wording: PromptFile, reply: Reply) -> Pair:
        """Raises NotInjected."""
        rejected, spans = injection(seed.answer, _object(reply))
        source = {"chosen": seed.source, "rejected": f"povid {wording.version}, {self.teacher.model}"}
        return Pair(str(seed.id), str(seed.image), seed.prompt, seed.answer, rejected, source, spans)


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of a reply. Raises NotInjected where it is a refusal, was cut off or holds none."""
    if reply.refused or reply.finish_reason == "content_filter":
        raise NotInjected(f"the teacher refused ({short(reply.refused or reply.text)})")
    if not reply.text.strip():
        raise NotInjected("the reply is empty")
    try:
        return parsed(reply.text)
    except ValueError as error:
        cut = " and was cut off at the limit of its length" if reply.finish_reason == "length" else ""
        raise NotInjected(f"{error}{cut}") from None


def _fill(template: str, words: Mapping[str, str]) -> str:
    """The template with each {name} replaced; braces within the words stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda name: words[name[1]], template)
