"""The tokenizer as llama.cpp needs it, from the checkpoint's SentencePiece file, and the proof that both agree.

llama.cpp tokenises each stretch of text between special tokens and pictures by itself. Checkpoints differ in whether
every stretch begins with a space (LLaVA's on the Hub) or only the first one: it is measured, not read from a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minipovid.errors import MinipovidError
from minipovid.export.quants import hush

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "▁"  # how SentencePiece writes a space
PROBES = [
    "What is this?",
    "A red circle is left of the blue square.",
    "Is there a snowboard in the image?\nPlease answer yes or no.",
    "\nDescribe this image in detail.",
    "Two  spaces, a\ttab and a trailing one ",
    "naïve café: 猫と犬 🐈‍⬛ Ω≈ç",
    "xqzzyvw SolidGoldMagikarp 1234567890",
    "Yes.</s>USER: Why?",
    'It\'s (a) "test"; [b] {c} <d> & e/f\\g_h-i+j=k%l#m@n',
]


class Piece(NamedTuple):
    """One token of the vocabulary."""

    text: str
    score: float
    kind: int


class Spacing(NamedTuple):
    """Where spaces are added: `every` stretch of text gets one; `first` stands before the whole prompt."""

    every: bool
    first: str  # " " or ""


def load(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that training used."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def spacing(tokenizer: PreTrainedTokenizerBase, image: str) -> Spacing:
    """Measure the tokenizer's habit. Raises MinipovidError for one that llama.cpp cannot follow."""
    start = tokenizer.convert_ids_to_tokens(tokenizer("xq", add_special_tokens=False).input_ids)
    behind = tokenizer.convert_ids_to_tokens(tokenizer(f"{image}xq", add_special_tokens=False).input_ids)[1:]
    first, every = start[0].startswith(SPACE), behind[0].startswith(SPACE)
    if every and not first:
        raise MinipovidError("This tokenizer adds a space behind pictures but not to the first word; llama.cpp cannot.")
    return Spacing(every, " " if first and not every else "")


def metadata(folder: Path, tokenizer: PreTrainedTokenizerBase, size: int, spaces: Spacing) -> dict[str, Any]:
    """GGUF keys of a SentencePiece vocabulary of `size` tokens.

    Raises MinipovidError where tokenizer.model is missing or does not fit the model.
    """
    pieces = _pieces(folder)
    for index, added in sorted(tokenizer.added_tokens_decoder.items()):
        if index >= len(pieces):  # <unk>, <s> and </s>, below, are known to the SentencePiece file
            pieces += _padding(len(pieces), index)
            pieces.append(Piece(added.content, -1000.0, CONTROL if added.special else USER_DEFINED))
    if len(pieces) > size:
        raise MinipovidError(f"The tokenizer of {folder} has {len(pieces)} tokens, but the model only {size}.")
    pieces += _padding(len(pieces), size)
    begins = tokenizer("xq").input_ids[0] == tokenizer.bos_token_id
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unknown": tokenizer.unk_token_id,
        "padding": tokenizer.pad_token_id,
    }
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [piece.text for piece in pieces],
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        **{f"tokenizer.ggml.{name}_token_id": value for name, value in ids.items() if value is not None},
        "tokenizer.ggml.add_bos_token": begins,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": spaces.every,
    }


def _pieces(folder: Path) -> list[Piece]:
    from sentencepiece import SentencePieceProcessor

    path = folder / "tokenizer.model"
    if not path.is_file():
        raise MinipovidError(
            f"The model folder {folder} has no tokenizer.model, which llama.cpp needs; copy it from the original model."
        )
    model = SentencePieceProcessor(model_file=str(path))
    ids = range(model.get_piece_size())
    return [Piece(model.id_to_piece(i), model.get_score(i), _type(model, i)) for i in ids]


def _type(model: Any, index: int) -> int:
    flags = [(model.is_unknown, UNKNOWN), (model.is_control, CONTROL), (model.is_unused, UNUSED), (model.is_byte, BYTE)]
    return next((kind for is_kind, kind in flags if is_kind(index)), NORMAL)


def _padding(start: int, stop: int) -> list[Piece]:
    """Rows of the embedding that no text uses. Names must be unique, or llama.cpp aborts the whole process."""
    return [Piece(f"[PAD{index}]", -10000.0, UNUSED) for index in range(start, stop)]


def check(vocabulary: Path, tokenizer: PreTrainedTokenizerBase, prompt: str, image: str, spaces: Spacing) -> None:
    """Tokenise probe texts with llama.cpp, reading a GGUF that need hold no weights, and with the tokenizer.

    `prompt` holds `image` once; its parts are also compared around the picture. Raises MinipovidError for the first
    text on which they differ.
    """
    from llama_cpp import Llama

    hush()
    llama = Llama(str(vocabulary), vocab_only=True, verbose=False)
    before, after = prompt.split(image)
    for text in PROBES:
        found = llama.tokenize((spaces.first + text).encode(), add_bos=False, special=True)
        _compare(text, tokenizer(text, add_special_tokens=False).input_ids, found)
    parts = [spaces.first + before, image, after]
    pieces = [llama.tokenize(part.encode(), add_bos=part is parts[0], special=True) for part in parts]
    _compare(prompt, tokenizer(prompt).input_ids, [token for piece in pieces for token in piece])


def _compare(text: str, expected: Sequence[int], found: Sequence[int]) -> None:
    if list(expected) != list(found):
        raise MinipovidError(
            f"llama.cpp tokenises {text!r} as {list(found)}, but the model's own tokenizer as {list(expected)}; "
            "the exported model would answer worse. Take tokenizer.model and tokenizer.json from the same checkpoint."
        )
