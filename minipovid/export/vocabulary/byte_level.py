"""A byte-level BPE vocabulary, as of GPT-2, Llama 3 and Qwen2.

Beside tokens and merges llama.cpp must know how a text is cut into words before they are merged. It has names for the
ways it knows (`tokenizer.ggml.pre`); the one that cuts the probe texts as the tokenizer does is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from minipovid.common.errors import MinipovidError
from minipovid.export import writer
from minipovid.export.vocabulary.parity import PROBES, Difference, Spacing, first_difference
from minipovid.export.vocabulary.pieces import NORMAL, Pieces, VocabPiece
from minipovid.export.vocabulary.sentencepiece import pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# llama.cpp's names of different ways, the commoner ones first (src/llama-vocab.cpp); True: it takes a word that is a
# token as it is, tokenizer.json's `ignore_merges`.
WAYS = {
    "qwen2": False,
    "llama-bpe": True,
    "gpt-2": False,
    "smaug-bpe": False,  # cuts like llama-bpe
    "tekken": True,
    "gpt-4o": False,
    "smollm": False,  # cuts like starcoder
    "qwen35": False,
    "deepseek-llm": False,
    "deepseek-coder": False,
    "deepseek-v3": False,
    "falcon": False,
    "glm4": True,  # cuts like llama-bpe
    "default": False,
}


def keys(folder: Path, model: Mapping[str, Any]) -> tuple[Pieces, dict[str, Any]]:
    """(the model's own tokens, GGUF keys besides their list); `model` is tokenizer.json's, the folder is not read."""
    table = {index: VocabPiece(text, 0.0, NORMAL) for text, index in model["vocab"].items()}
    merges = [f"{left} {right}" for left, right in pairs(model["merges"])]
    return table, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.merges": merges}


def pre(keys: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, spaces: Spacing, model: Mapping[str, Any]) -> str:
    """llama.cpp's name for how this tokenizer cuts texts. `keys` are all others of the vocabulary.

    Raises MinipovidError, naming the first text that differs, where it has none.
    """
    ignores = bool(model.get("ignore_merges"))
    best: tuple[int, str, Difference] | None = None
    with TemporaryDirectory(prefix="minipovid-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        writer.write(path, {"general.architecture": "llama", "tokenizer.ggml.pre": "default", **keys}, [])
        for name in sorted(WAYS, key=lambda name: WAYS[name] != ignores):  # stable: the others after these
            odd = first_difference(path, tokenizer, spaces, PROBES, {"tokenizer.ggml.pre": name})
            if odd is None:
                return name
            agreed = PROBES.index(odd.text)
            best = max(best or (-1, name, odd), (agreed, name, odd), key=lambda each: each[0])
    assert best is not None
    raise MinipovidError(
        f"llama.cpp knows no way of cutting texts as this tokenizer does; the nearest, {best[1]}, reads "
        f"{best[2].text!r} as {best[2].found} instead of {best[2].expected}."
    )
