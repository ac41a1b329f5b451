"""What a model's words say, read sensibly: yes or no, one letter of several, a reply without its decoration.

This is the robust reading of the benchmarks; what the official scripts read stands in each benchmark's own file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from minipovid.inference.thoughts import spoken

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BY_LETTER = "\nAnswer with the option's letter from the given choices directly."  # LLaVA-1.5's suffix
_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])[).:](?=\s))")
_NAMED = re.compile(
    r"\b(?:answer|option|choice)\b\W*(?:is\b)?\W*([A-Za-z])\b(?![’'])(?=\W*(?:$|[).,:;!\n]))", re.IGNORECASE
)
_LETTER = re.compile(r"(?<![\w’'])([A-Z])(?![\w’'])")
_ARTICLE = re.compile(r" (?!or\b|and\b|is\b|because\b|since\b|as\b)[a-z]")
_MARKDOWN = re.compile(r"[*_`#]+")
_WORD = re.compile(r"[\w’']+")
_NEGATIVE = frozenset(("no", "not", "cannot", "nope", "none", "neither"))


def plain(reply: str) -> str:
    """A judge's reply without its thoughts and Markdown's signs."""
    return _MARKDOWN.sub("", spoken(reply))


def says_yes(answer: str) -> bool | None:
    """The robust reading of an answer to a yes/no question: None where it is neither.

    A leading yes or no decides; else a negation in the first sentence; else a yes anywhere.
    """
    words: list[str] = [word.strip("'’").replace("’", "'") for word in _WORD.findall(answer.casefold())]
    if words and words[0] in ("yes", "no"):
        return words[0] == "yes"
    first = _WORD.findall(re.split(r"[.!?\n]", answer.casefold().strip(" .!?\n"), maxsplit=1)[0])
    if any(word in _NEGATIVE or word.replace("’", "'").endswith("n't") for word in first):
        return False
    return True if "yes" in words else None


def lettered(options: Mapping[str, str]) -> str:
    """The options of a question, one a line, as LLaVA writes them."""
    return "".join(f"\n{letter}. {text}" for letter, text in options.items())


def chosen(answer: str, options: Mapping[str, str]) -> str | None:
    """The robust reading of an answer to a multiple-choice question: one of the options' letters, or None.

    A letter that is all of the answer, or begins it with a bracket or dot, decides; else the one that it calls the
    answer; else the only capital that stands alone; else, where no letter does, the only option whose text it holds.
    """
    text = plain(answer).strip()
    for match in (_ALONE.fullmatch(text), _LEADING.match(text)):
        letter = str(match[match.lastindex or 1]).upper() if match else ""
        if letter in options:
            return letter
    capitals = _capitals(text, options)
    for letters in ({str(each).upper() for each in _NAMED.findall(text)} & options.keys(), capitals & options.keys()):
        if len(letters) == 1:
            return letters.pop()
    return None if capitals else _by_text(text, options)


def _capitals(text: str, options: Mapping[str, str]) -> set[str]:
    """Capitals that stand alone, and are neither the article A nor the pronoun I."""
    words = {"I"} - options.keys()
    capitals = (each for each in _LETTER.finditer(text) if each[1] != "A" or not _ARTICLE.match(text, each.end()))
    return {str(each[1]) for each in capitals} - words


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """The one option that the text holds as whole words; one within another counts only by itself: red, red car."""
    whole = {letter: " ".join(_WORD.findall(each.casefold())) for letter, each in options.items()}
    words = f" {' '.join(_WORD.findall(text.casefold()))} "
    those = [letter for letter, each in whole.items() if each and f" {each} " in words]
    longest = [one for one in those if not any(one != two and f" {whole[one]} " in f" {whole[two]} " for two in those)]
    return longest[0] if len(longest) == 1 else None
