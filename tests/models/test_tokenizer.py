"""A model's tokenizer: read from every file that holds one, and a sentence for those that do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llava

from minipovid.common.errors import MinipovidError
from minipovid.models import tokenizer
from minipovid.models.tokenizer import SpecialTokens


def test_tokenizer_model_alone_reads_as_with_tokenizer_json(tmp_path: Path) -> None:
    """The beginning of sequence is there: transformers' AutoTokenizer would leave it out."""
    folder = tiny_llava.build(tmp_path)
    text = "USER: <image>\nWhat is this? ASSISTANT: A red circle.</s>"
    wanted = tokenizer.load(folder)(text).input_ids
    (folder / "tokenizer.json").unlink()
    read = tokenizer.load(folder)
    assert read(text).input_ids == wanted and tokenizer.adds_begin(read)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", None])
def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, name: str | None) -> None:
    folder = tiny_llava.build(tmp_path)
    for each in ("tokenizer.json", "tokenizer.model"):
        (folder / each).unlink()
    if name is not None:
        (folder / name).write_bytes(b"{junk")
    with pytest.raises(MinipovidError, match="tokenizer in .* cannot be read .*; download tokenizer.json and"):
        tokenizer.load(folder)


def test_special_tokens_are_found_by_their_whole_text() -> None:
    special = SpecialTokens(("<|im|>", "<|im|>x", "<s>"), ("<|im|>",))
    assert [special.first(text) for text in ("a <|im|>x", "<|im|>y", "< s>", "")] == ["<|im|>x", "<|im|>", "", ""]
    assert SpecialTokens().first("<s>") == ""
    assert special.without_end("A. <|im|> ") == "A." and special.without_end("A. ") == "A. "
