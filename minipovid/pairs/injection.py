"""What an answer must be into which hallucinations were injected: checked before it becomes anybody's training text.

    rejected, spans = injection(chosen, reply)      # or NotInjected with the reason, worded for the teacher

The rules, each with what it is for:
- it differs from the good answer in more than case, spaces and punctuation;
- every span occurs in it, and holds or touches a word that the good answer has not at that place;
- LENGTH: between 0.6 and 1.6 times the good answer's characters, 40 to either side: length must not tell the two apart;
- LANGUAGE: most letters are of the same script, and of four words or more 40 % are kept, two at least: a translation
  keeps next to none (for scripts written without spaces, characters are counted in place of words);
- no refusal, no talk about the task, no markup of a chat, unless the good answer has the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import Any, NamedTuple

from minipovid.pairs.pair import Span

KINDS = ("object", "relation", "attribute", "reasoning")
LENGTH = (0.6, 1.6)
SLACK = 40  # characters
KEPT = 0.4  # of the words
FEW = 4  # words; an answer of fewer may change them all
MOST_SPANS = 8  # that a grammar lets through
SPAN_LENGTH = 120  # characters, likewise
_GRAMMAR_LENGTH = 1000  # characters; of more, grammars do not keep count

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
_START = (
    r"(?:i['’]?m|i am|we['’]?re|my apologies|apologies)\b.{0,20}\b(?:sorry|apologi[sz]e|unable|not able)",
    r"(?:sorry|apologies|unfortunately)[,.! ]",
    r"i (?:can ?not|can['’]t|won['’]t|must decline|do not feel|don['’]t feel)\b",
    r"as an? (?:ai|artificial|(?:large )?language|multimodal|assistant)",
    r"(?:sure|certainly|of course|okay|absolutely)[,!:]",
    r"(?:here|below)(?:['’]?s| is| are)\b.{0,40}\b(?:answer|rewrit|rewrote|version|response|description)",
    r"(?:the )?(?:rewritten|rejected|modified|altered|corrupted|incorrect|wrong)\b.{0,30}:",
    r"(?:rewritten|rejected|answer|response|assistant|output)\s*:",
)
_ANYWHERE = (
    r"hallucinat",
    r"\b(?:original|correct|rewritten|rejected|chosen) (?:answer|response|description)\b",
    r"\bas (?:you )?(?:requested|instructed)\b",
    r"\bas an ai\b",
    r"\b(?:cannot|can['’]t|unable to|won['’]t) (?:assist|help|comply|fulfil)",
    r"```",
)
MARKS = re.compile(r"<\|.{0,40}?\|>|</?s>|<image>|\[/?INST\]", re.IGNORECASE)  # of a chat's own format
_TALK = [re.compile(r"^\W*" + pattern, re.IGNORECASE) for pattern in _START]
_TALK += [re.compile(pattern, re.IGNORECASE) for pattern in _ANYWHERE]


def schema(chosen: str) -> dict[str, Any]:
    """The JSON schema of a reply. Its bounds keep a small model, held by a grammar, from never ending a text."""
    least, most = (int(each) for each in _bounds(chosen))
    length = {"minLength": max(1, least), "maxLength": most} if most <= _GRAMMAR_LENGTH else {}
    text = {"type": "string", "minLength": 1, "maxLength": min(SPAN_LENGTH, most)}
    span = _object({"text": text, "kind": {"type": "string", "enum": list(KINDS)}})
    spans = {"type": "array", "items": span, "minItems": 1, "maxItems": MOST_SPANS}
    return _object({"rejected": {"type": "string", **length}, "spans": spans})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _bounds(chosen: str) -> tuple[float, float]:
    """How few and how many characters the rewritten answer may have."""
    return LENGTH[0] * len(chosen) - SLACK, LENGTH[1] * len(chosen) + SLACK


class NotInjected(ValueError):
    """Why a reply is no injected answer; worded so that the teacher can mend it."""


class Injection(NamedTuple):
    rejected: str
    spans: tuple[Span, ...]


def injection(chosen: str, reply: dict[str, Any]) -> Injection:
    """The rejected answer of a reply as `schema` wants it, with its spans placed. Raises NotInjected."""
    rejected = _rejected(reply)
    _refuse(chosen, rejected)
    return Injection(rejected, _spans(chosen, rejected, reply.get("spans")))


def _rejected(reply: dict[str, Any]) -> str:
    rejected = reply.get("rejected")
    if not isinstance(rejected, str):
        raise NotInjected('the reply has no text under "rejected"')
    rejected = rejected.strip()
    if not rejected:
        raise NotInjected("the rewritten answer is empty")
    if any(unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t" for each in rejected):
        raise NotInjected("the rewritten answer holds control characters")
    return rejected


def talk(text: str) -> str:
    """The words by which a text gives itself away as a refusal or as talk about the task; empty where it has none."""
    match = next(filter(None, (pattern.search(text) for pattern in _TALK)), None)
    return match.group().strip() if match else ""


def _refuse(chosen: str, rejected: str) -> None:
    """The rules about the answer as a whole: talk, difference, length, language. Raises NotInjected."""
    for pattern in (*_TALK, MARKS):
        match = pattern.search(rejected)
        if match and not pattern.search(chosen):
            raise NotInjected(f"the rewritten answer refuses or talks about the task ({match.group().strip()!r})")
    before, after = words(chosen), words(rejected)
    if before == after:
        raise NotInjected("the rewritten answer says the same as the correct one")
    least, most = _bounds(chosen)
    if not least <= len(rejected) <= most:
        much = f"{'short' if len(rejected) < least else 'long'}: {len(rejected)} characters"
        raise NotInjected(f"the rewritten answer is too {much}, and the correct one has {len(chosen)}")
    mine, theirs = script(chosen), script(rejected)
    if mine and theirs and mine != theirs:
        raise NotInjected(f"the rewritten answer is in another script ({theirs} in place of {mine}); keep the language")
    common, fewer = (Counter(before) & Counter(after)).total(), min(len(before), len(after))
    if fewer >= FEW and common < max(2.0, KEPT * fewer):
        raise NotInjected("the rewritten answer keeps too few of the words; keep the language and the wording")


def words(text: str) -> list[str]:
    """The words, lower case; in scripts that are written without spaces, the characters."""
    units: list[str] = []
    for word in _WORD.findall(text.casefold()):
        units += word if _script_of(word[0]) in _UNSPACED else [word]
    return units


def script(text: str) -> str:
    """The script of most letters, by the first word of their Unicode names: LATIN, CYRILLIC, CJK...; empty for none.

    Japanese is written in three, which count as one.
    """
    letters = islice((each for each in text if each.isalpha()), 2000)
    counts = Counter("CJK" if kind in ("HIRAGANA", "KATAKANA") else kind for kind in map(_script_of, letters))
    return counts.most_common(1)[0][0] if counts else ""


def _script_of(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0]


def _spans(chosen: str, rejected: str, reply: Any) -> tuple[Span, ...]:
    """Where the teacher's spans stand, in order. Raises NotInjected."""
    if not isinstance(reply, list) or not reply:
        raise NotInjected('"spans" must list every injected piece of text, one at least')
    changes = changed_places(chosen, rejected)
    spans: list[Span] = []
    for each in reply:
        text, kind = (each.get("text"), each.get("kind")) if isinstance(each, dict) else (None, None)
        if not isinstance(text, str) or not text.strip() or kind not in KINDS:
            raise NotInjected(f'a span must have a "text" and a "kind" out of {", ".join(KINDS)}')
        spans.append(_place(rejected, text.strip(), kind, changes, spans))
    return tuple(sorted(spans))


def _place(rejected: str, text: str, kind: str, changes: Sequence[tuple[int, int]], others: Iterable[Span]) -> Span:
    """The first place of `text` that holds a change and meets no other span. Raises NotInjected."""
    pattern = r"\s+".join(map(re.escape, text.split()))
    # Whole words where there are any: "cat" is first looked for outside of "scatter".
    places = _places(rf"(?<!\w){pattern}(?!\w)", rejected) or _places(pattern, rejected)
    if not places:
        raise NotInjected(f"the span {text!r} does not occur in the rewritten answer")
    new = [(start, end) for start, end in places if any(start < last and first < end for first, last in changes)]
    if not new:
        raise NotInjected(f"the span {text!r} marks what the correct answer says too")
    free = [(start, end) for start, end in new if not any(start < each.end and each.start < end for each in others)]
    if not free:
        raise NotInjected(f"the span {text!r} overlaps another span")
    return Span(*free[0], kind)


def _places(pattern: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def changed_places(chosen: str, rejected: str) -> list[tuple[int, int]]:
    """Where `rejected` says something else, word by word: [start, end) of its characters.

    Where words are only missing, it is the gap, from the word before to the word behind.
    """
    old = _WORD.findall(chosen.casefold())
    matches = list(_WORD.finditer(rejected))
    new = [match.group().casefold() for match in matches]
    ends = [(0, 0), *(match.span() for match in matches), (len(rejected), len(rejected))]
    places = []
    for operation, _, _, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if operation == "delete":
            places.append((ends[first][0], ends[first + 1][1]))
        elif operation != "equal":
            places.append((ends[first + 1][0], ends[last][1]))
    return places
