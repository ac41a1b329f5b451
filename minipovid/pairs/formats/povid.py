"""POVID (arXiv 2402.11411): its own format, and its way of making pairs.

The format: one JSON list, as published by YiyangAiLab/POVID_preference_data_for_VLLMs (CC-BY-4.0).

    [{"id": "000000393212", "image": "000000393212.jpg",
      "conversations":          [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour at dusk."}],
      "rejected_conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                                 {"from": "gpt", "value": "A harbour with fishing poles."}]}, ...]

A Pair holds one question, so a row with several exchanges is a bad row and is named (the official code scores every
turn of it). The official loader never compares the two questions; here a pair whose questions differ is a bad row too.

The maker: a teacher rewrites the good answer so that it hallucinates. POVID's own prompts were never published; those
in prompts/ are ours, and a changed prompt gets a new name. One is for descriptions (objects that habit would add, wrong
relations, wrong attributes), one for answers that reason (a wrong observation that leads to a wrong conclusion). What
comes back is checked (injection.py), asked for again with the reason, and given up after the third time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common.data_files import looks_like, of_text
from minipovid.common.errors import MinipovidError
from minipovid.inference.remote import Asked, Message, Reply, Unanswered, Usage, text_tokens, tokens
from minipovid.inference.remote.picture import Picture
from minipovid.inference.remote.structured import parsed
from minipovid.pairs.formats import Bad, Seed, checked, known, short, text
from minipovid.pairs.injection import NotInjected, injected, schema
from minipovid.pairs.make.makers import Outcome, Workshop
from minipovid.pairs.pair import BadRow, Pair

PLACEHOLDER = "<image>"
SOURCE = {"chosen": "ground truth", "rejected": "GPT-4V (POVID)"}

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


def read(path: Path) -> Iterator[Pair | BadRow]:
    """Every row of the file, in order. Raises MinipovidError where the file as a whole is not a JSON list."""
    yield from checked(_rows(path), _pair)


def claims(row: Mapping[str, Any]) -> int:
    return known(row, ("image", "conversations", "rejected_conversations"), ("id",))


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if looks_like(path) != "list":
        raise _no_list(path)
    return of_text(path, "list")


def _no_list(path: Path) -> MinipovidError:
    """What the file is instead."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        return MinipovidError(f"The pairs {path} cannot be read: {error}.")
    except (ValueError, RecursionError) as error:
        return MinipovidError(
            f"{path} is not JSON ({error}); data.format povid is one JSON list, jsonl one object per line."
        )
    return MinipovidError(f"{path} holds {short(found)}, but data.format povid is one JSON list of rows.")


def _pair(row: dict[str, Any]) -> Pair:
    """One row as a Pair; `image` stays as it is written. Raises Bad."""
    if row.get("image") is None:
        raise Bad("image is missing; a preference about a picture needs one")
    name = row.get("id")
    identity = str(name) if isinstance(name, int) and not isinstance(name, bool) else text(row, "id")
    prompt, chosen = _exchange(row, "conversations")
    rejected_prompt, rejected = _exchange(row, "rejected_conversations")
    if prompt != rejected_prompt:
        raise Bad(f"the two conversations ask different questions: {short(prompt)} and {short(rejected_prompt)}")
    return Pair(identity, text(row, "image"), prompt, chosen, rejected, SOURCE)


def _exchange(row: dict[str, Any], key: str) -> tuple[str, str]:
    """(question, answer) of a conversation of one exchange, the picture's placeholder taken off. Raises Bad."""
    turns = row.get(key)
    if turns is None:
        raise Bad(f"{key} is missing")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Bad(f"{key} is {short(turns)}, but it must be a list of turns")
    speakers = [turn.get("from") for turn in turns]
    if len(speakers) > 2 and speakers == ["human", "gpt"] * (len(speakers) // 2):
        raise Bad(f"{key} holds {len(speakers) // 2} exchanges; split it into rows of one question each")
    if speakers != ["human", "gpt"]:
        raise Bad(f"{key} must be one turn from 'human' and one from 'gpt'; its turns are from {short(speakers)}")
    question, answer = (text(turn, "value") for turn in turns)
    # The family's template places the picture, so the placeholder before or after the question goes.
    question = question.strip().removeprefix(PLACEHOLDER).removesuffix(PLACEHOLDER).strip()
    if PLACEHOLDER in question + answer:
        raise Bad(f"{key} has {PLACEHOLDER} in the middle of a text; it may only open or close the question")
    return question, answer.strip()


class Prompt(NamedTuple):
    """A file of prompts/: what the teacher is told, what it is asked, and how it is asked again."""

    version: str
    task: str
    user: str
    again: str


@cache
def prompt(version: str) -> Prompt:
    """The prompt of that name. Its parts are parted by lines `=== user ===` and `=== again ===`."""
    whole = (files("minipovid.pairs.make") / "prompts" / f"{version}.md").read_text(encoding="utf-8")
    task, user, again = (part.strip() for part in re.split(r"^=== \w+ ===$", whole, flags=re.MULTILINE))
    return Prompt(version, task, user, again)


def kind_of(question: str, answer: str) -> str:
    """Which prompt a seed gets: "reasoning" where the question asks for a judgement or the answer gives one, with
    reasons or a yes or no, unless it is looks that are asked for; else "description"."""
    if _LOOKS.search(question):
        return "description"
    return "reasoning" if _JUDGES.search(question) or _CONCLUDES.search(answer) else "description"


def maker(shop: Workshop) -> Injector:
    """Raises MinipovidError for an unknown kind of prompt, and what the teacher raises."""
    if shop.kind != "auto" and shop.kind not in PROMPTS:
        raise MinipovidError(f"There is no kind {shop.kind!r} of prompt; known: auto, {', '.join(PROMPTS)}.")
    return Injector(shop.teacher(), shop.kind, shop.picture)


@dataclass(frozen=True)
class Injector:
    """The maker. `with_picture` False is for teachers that read and do not see."""

    teacher: Asked
    kind: str = "auto"
    with_picture: bool = True

    @property
    def workers(self) -> int:
        """Twice as many as requests may fly: requests land together, and then the next ones are ready to go."""
        return 2 * self.teacher.concurrency

    def identity(self) -> dict[str, Any]:
        return {
            **self.teacher.identity(),
            "maker": "povid",
            "prompts": sorted(PROMPTS.values()),
            "kind": self.kind,
            "picture": self.with_picture,
        }

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
        """Ask, check, and ask again with the reason. Raises teacher.Stopped."""
        told = self._prompt(seed)
        messages = self._messages(told, seed, picture)
        usage, reasons = Usage(), list[str]()
        for _ in range(TRIES):
            try:
                reply = self.teacher.ask(messages, schema(seed.answer), told.version)
            except Unanswered as error:
                return Outcome(None, (*reasons, str(error)), usage, heals=error.heals)
            except MinipovidError as error:  # the picture
                return Outcome(None, (*reasons, str(error)), usage, heals=True)
            usage += reply.usage
            try:
                return Outcome(self._pair(seed, told, reply), tuple(reasons), usage)
            except NotInjected as error:
                reasons.append(str(error))
            messages = [*messages, *_again(told, reply, reasons[-1])]
        return Outcome(None, tuple(reasons), usage)

    def _prompt(self, seed: Seed) -> Prompt:
        kind = kind_of(seed.prompt, seed.answer) if self.kind == "auto" else self.kind
        return prompt(PROMPTS[kind])

    def _messages(self, told: Prompt, seed: Seed, picture: Path) -> list[Message]:
        asked = _filled(told.user, {"question": seed.prompt, "answer": seed.answer})
        seen = Picture(picture) if self.with_picture else None
        return [Message("system", told.task), Message("user", asked, seen)]

    def _pair(self, seed: Seed, told: Prompt, reply: Reply) -> Pair:
        """Raises NotInjected."""
        rejected, spans = injected(seed.answer, _object(reply))
        source = {"chosen": seed.source, "rejected": f"povid {told.version}, {self.teacher.model}"}
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


def _again(told: Prompt, reply: Reply, reason: str) -> Sequence[Message]:
    # Some servers take no empty turn.
    said = reply.text.strip() or reply.refused or "(nothing)"
    return Message("assistant", said), Message("user", _filled(told.again, {"reason": reason}))


def _filled(template: str, words: Mapping[str, str]) -> str:
    """The template with each {name} replaced; braces within the words stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda found: words[found[1]], template)
