"""Do llama.cpp and the model's own tokenizer read texts alike? A GGUF that holds only the vocabulary is enough.

llama.cpp tokenises each stretch of text between special tokens and pictures by itself. Checkpoints differ in whether
every stretch begins with a space (LLaVA's on the Hub), only the first one, or none (byte-level BPE): it is measured,
not read from a setting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp.libraries import libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACES = ("▁", "Ġ")  # how SentencePiece and byte-level BPE write a space
# Between them they tell apart the ways of cutting text into words that llama.cpp knows.
PROBES = (
    "What is this?",
    "A red circle is left of the blue square.",
    "Is there a snowboard in the image?\nPlease answer yes or no.",
    "\nDescribe this image in detail.",
    "Two  spaces, a\ttab, three   more and a trailing one ",
    "  leading spaces\n\n\n  and lines\n \n\tof them \r\n\r\nend\n\n",
    "It's what we'll say, they've said: I'M, DON'T, you'd, 'tis; 'Re it’s",
    "1 22 333 4444 1234567890 3.14 1,000,000 2024-05-17 v2x10, 4 ½ m², Ⅷ",
    "naïve café: 猫と犬がいます。🐈‍⬛ Ω≈ç 한국어 Привет مرحبا",
    "In order:\n  1. one\n   2) two  3;\n- 4\n * 5x",
    "xqzzyvw SolidGoldMagikarp camelCase snake_case HTTPServer",
    'It\'s (a) "test"; [b] {c} <d> & e/f\\g_h-i+j=k%l#m@n ... !!! ??',
    "def f(x):\n    return x[0] ** 2  # ok\n\nprint(f([1]))\n",
)


class Spacing(NamedTuple):
    """Where spaces are added: `every` stretch of text gets one; `first` stands before the whole prompt."""

    every: bool
    first: str  # " " or ""

    def begin(self, text: str) -> str:
        """A prompt's beginning as llama.cpp must get it; a space that stands there already is not doubled."""
        return text if text.startswith(" ") else self.first + text


class Difference(NamedTuple):
    """A text that the two read differently."""

    text: str
    expected: list[int]
    found: list[int]


def spacing(tokenizer: PreTrainedTokenizerBase, image: str) -> Spacing:
    """Measure the tokenizer's habit. Raises MinipovidError for one that llama.cpp cannot follow."""
    start = tokenizer.convert_ids_to_tokens(tokenizer("xq", add_special_tokens=False).input_ids)
    behind = tokenizer.convert_ids_to_tokens(tokenizer(f"{image}xq", add_special_tokens=False).input_ids)[1:]
    first, every = start[0].startswith(SPACES), behind[0].startswith(SPACES)
    if every and (not first or start[0].startswith(SPACES[1])):
        raise MinipovidError("This tokenizer adds a space behind pictures where llama.cpp cannot; take another model.")
    return Spacing(every, " " if first and not every else "")


def check(
    vocabulary: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    image: str,
    spaces: Spacing,
    texts: Iterable[str] = (),
) -> None:
    """Read the probes and `texts`, as answers are read behind a prompt's last word, and `prompt` with llama.cpp and
    with the tokenizer. `prompt` holds `image` once; its parts are compared around the picture.

    Raises MinipovidError for the first text on which they differ.
    """
    own = f"Yes.{tokenizer.eos_token}USER: Why?"
    odd = first_difference(vocabulary, tokenizer, spaces, (*PROBES, own, *dict.fromkeys(texts)))
    odd = odd or _prompt_difference(vocabulary, tokenizer, spaces, prompt, image)
    if odd is not None:
        raise MinipovidError(
            f"llama.cpp tokenises {odd.text!r} as {odd.found}, but the model's own tokenizer as {odd.expected}; the "
            "exported model would answer worse. Take tokenizer.model and tokenizer.json from the same checkpoint."
        )


def first_difference(
    vocabulary: Path,
    tokenizer: PreTrainedTokenizerBase,
    spaces: Spacing,
    texts: Iterable[str],
    overrides: Mapping[str, str] | None = None,
) -> Difference | None:
    """The first text that the two read differently; `overrides` replace keys of the GGUF."""
    with _llama(vocabulary, overrides) as llama:
        for text in texts:
            expected = list(tokenizer(text, add_special_tokens=False).input_ids)
            tokens = llama.tokenize(spaces.begin(text).encode(), add_bos=False, special=True) if text else []
            if expected != tokens:
                return Difference(text, expected, tokens)
    return None


def _prompt_difference(
    vocabulary: Path, tokenizer: PreTrainedTokenizerBase, spaces: Spacing, prompt: str, image: str
) -> Difference | None:
    """With what a prompt begins with, and tokenised part by part around the picture, as the runtime does it."""
    before, after = prompt.split(image)
    with _llama(vocabulary) as llama:
        tokens = llama.tokenize(spaces.begin(before).encode(), add_bos=True, special=True)
        for part in (image, after):
            tokens += llama.tokenize(part.encode(), add_bos=False, special=True)
    expected = list(tokenizer(prompt).input_ids)
    return Difference(prompt, expected, tokens) if expected != tokens else None


@contextmanager
def _llama(vocabulary: Path, overrides: Mapping[str, str] | None = None) -> Iterator[Any]:
    from llama_cpp import Llama

    libraries()  # silent from here on
    llama = Llama(str(vocabulary), vocab_only=True, verbose=False, kv_overrides=dict(overrides) if overrides else None)
    try:
        yield llama
    finally:
        llama.close()
