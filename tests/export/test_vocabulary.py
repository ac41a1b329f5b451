"""llama.cpp reads texts as the tokenizers library does: both kinds of vocabulary, from all files that may hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from minipovid.common.errors import MinipovidError
from minipovid.export import vocabulary, writer
from minipovid.export.vocabulary import byte_level
from minipovid.export.vocabulary.parity import PROBES, Spacing
from minipovid.export.vocabulary.pieces import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED

LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
# Words that no tokenizer here was trained on, of letters, digits, signs and scripts in every order.
ODD_WORDS = ["".join(letters) for letters in product("rcd1'\n é猫", repeat=4)][::11]
PROMPT = "USER: <image>\nWhat is this? ASSISTANT:"


def tokenizer_of(text: str, change: Callable[[dict[str, Any]], None] = lambda content: None, **names: str) -> Any:
    """A tokenizer.json, changed, as transformers holds it."""
    content = json.loads(text)
    change(content)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), **names)
    return tokenizer


def sentencepiece(legacy: bool = True) -> Any:
    return tokenizer_of(tiny_llava.tokenizer_json(legacy), **LLAMA)


def byte_bpe(split: str = tiny_llava.QWEN2_SPLIT, bos: str | None = None, change: Any = lambda content: None) -> Any:
    return tokenizer_of(tiny_llava.bpe_tokenizer_json(split, bos), change, eos_token="<|im_end|>")


def keys(tokenizer: Any, folder: Path, size: int = tiny_llava.VOCABULARY, end: str = "") -> dict[str, Any]:
    return vocabulary.metadata(folder, tokenizer, size, vocabulary.spacing(tokenizer, "<image>"), end)


def check(tokenizer: Any, folder: Path, found: dict[str, Any], texts: list[str], prompt: str = PROMPT) -> None:
    path = folder / "vocabulary.gguf"
    writer.write(path, {"general.architecture": "llama", **found}, [])
    vocabulary.check(path, tokenizer, prompt, "<image>", vocabulary.spacing(tokenizer, "<image>"), texts)


# --- SentencePiece ---


@pytest.fixture
def with_model(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(tiny_llava.sentencepiece_model())
    return tmp_path


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_from_its_file(with_model: Path, legacy: bool) -> None:
    tokenizer = sentencepiece(legacy)
    check(tokenizer, with_model, keys(tokenizer, with_model), ODD_WORDS)


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_from_merges_alone(tmp_path: Path, legacy: bool) -> None:
    """transformers 5 saves no tokenizer.model: scores come from the ranks of the merges."""
    tokenizer = sentencepiece(legacy)
    found = keys(tokenizer, tmp_path)
    check(tokenizer, tmp_path, found, ODD_WORDS)
    kinds = found["tokenizer.ggml.token_type"]
    assert kinds[:4] == [UNKNOWN, CONTROL, CONTROL, BYTE]
    assert kinds[398:404] == [NORMAL, NORMAL, CONTROL, CONTROL, UNUSED, UNUSED]


def test_merges_give_the_scores_by_hand(tmp_path: Path) -> None:
    """Two merges make "abc", of ranks 1 and 3: it scores -1. What no merge makes scores below all that one makes."""
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "vocab": {"<unk>": 0, "<0x41>": 1, "a": 2, "b": 3, "c": 4, "ab": 5, "abc": 6, "bc": 7},
        "merges": [["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]],
        "unk_token": "<unk>",
    }
    table, found = vocabulary.sentencepiece.keys(tmp_path, model)
    assert [table[index].score for index in range(8)] == [-3, -3, -3, -3, -3, -0.0, -1, -2]
    assert [table[index].kind for index in range(3)] == [UNKNOWN, BYTE, NORMAL]
    assert found["tokenizer.ggml.model"] == "llama"
    old = {**model, "merges": ["a b", "ab c", "b c", "a bc"]}
    assert vocabulary.sentencepiece.keys(tmp_path, old)[0] == table


def test_flattened_scores_are_found_out(with_model: Path) -> None:
    """What llama.cpp's own converter writes without tokenizer.model: every token -1000."""
    tokenizer = sentencepiece()
    found = keys(tokenizer, with_model)
    found["tokenizer.ggml.scores"] = [-1000.0] * tiny_llava.VOCABULARY
    with pytest.raises(MinipovidError, match=r"llama.cpp tokenises '[^']+' as \[.*own tokenizer as \["):
        check(tokenizer, with_model, found, [])


# --- byte-level BPE ---


def _digits(content: dict[str, Any]) -> None:
    """StarCoder's: digits apart, then GPT-2's own expression."""
    steps = [{"type": "Digits", "individual_digits": True}, {**_GPT2, "add_prefix_space": False}]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}


def _gpt2(content: dict[str, Any]) -> None:
    content["pre_tokenizer"] = {**_GPT2, "add_prefix_space": False}


def _ignores_merges(content: dict[str, Any]) -> None:
    """As Llama 3's: a word that is a token is taken whole, even one that no merges lead to."""
    content["model"]["ignore_merges"] = True
    content["model"]["merges"] = content["model"]["merges"][:-20]


_GPT2 = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    ("split", "change", "name"),
    [
        (tiny_llava.QWEN2_SPLIT, None, "qwen2"),
        (tiny_llava.LLAMA3_SPLIT, _ignores_merges, "llama-bpe"),
        (tiny_llava.LLAMA3_SPLIT, None, "smaug-bpe"),
        (tiny_llava.LLAMA3_SPLIT, _gpt2, "gpt-2"),
        (tiny_llava.LLAMA3_SPLIT, _digits, "smollm"),
    ],
)
def test_the_way_of_cutting_is_found_out(tmp_path: Path, split: str, change: Any, name: str) -> None:
    tokenizer = byte_bpe(split, change=change or (lambda content: None))
    found = keys(tokenizer, tmp_path)
    assert found["tokenizer.ggml.pre"] == name
    check(tokenizer, tmp_path, found, ODD_WORDS)


def test_other_ways_of_cutting_are_refused(tmp_path: Path) -> None:
    """The same vocabulary under every name: what the check lets pass reads all odd words alike, too."""
    tokenizer = byte_bpe(tiny_llava.LLAMA3_SPLIT)
    found, passed = keys(tokenizer, tmp_path), set()
    for name in byte_level.WAYS:
        try:
            check(tokenizer, tmp_path, {**found, "tokenizer.ggml.pre": name}, [])
        except MinipovidError:
            continue
        check(tokenizer, tmp_path, {**found, "tokenizer.ggml.pre": name}, ODD_WORDS)
        passed.add(name)
    # The first three use one expression, and no token here needs its merges ignored or goes through a change of case.
    assert passed == {"smaug-bpe", "llama-bpe", "glm4", "gpt-4o"}


def test_an_unknown_way_of_cutting_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_bpe(r"\p{N}{2}|\s+|\S+")
    with pytest.raises(
        MinipovidError, match=r"no way of cutting texts .*; the nearest, .*, reads 'A red .* instead of"
    ):
        keys(tokenizer, tmp_path)


def test_byte_level_keys(tmp_path: Path) -> None:
    found = keys(byte_bpe(), tmp_path, end="<|endoftext|>\n")
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert len(set(found["tokenizer.ggml.tokens"])) == tiny_llava.VOCABULARY
    assert found["tokenizer.ggml.tokens"][384:389] == [*tiny_llava.CHATML, "[PAD388]"]
    assert found["tokenizer.ggml.token_type"][383:389] == [NORMAL, CONTROL, CONTROL, CONTROL, CONTROL, UNUSED]
    assert len(found["tokenizer.ggml.merges"]) == tiny_llava.BPE_PIECES - 256
    assert found["tokenizer.ggml.eos_token_id"] == 386
    assert found["tokenizer.ggml.eot_token_id"] == 384  # what ends an answer, where that is not the tokenizer's own end
    assert "tokenizer.ggml.bos_token_id" not in found
    assert "tokenizer.ggml.eot_token_id" not in keys(byte_bpe(), tmp_path, end="<|im_end|>")
    assert not found["tokenizer.ggml.add_bos_token"]
    assert not found["tokenizer.ggml.add_space_prefix"]


def test_what_texts_begin_with_is_measured(tmp_path: Path) -> None:
    """As Llama 3's, a post-processor puts a token before every text; llama.cpp must, too."""
    bos = "<|endoftext|>"
    tokenizer = byte_bpe(bos=bos)
    tokenizer.bos_token = bos
    found = keys(tokenizer, tmp_path)
    assert found["tokenizer.ggml.add_bos_token"]
    check(tokenizer, tmp_path, found, [], "<|im_start|>user <image>\nHello<|im_end|>")


def test_added_tokens_in_front_of_all_others(tmp_path: Path) -> None:
    """As StarCoder's: ids of special tokens that tokenizer.json lists apart need not follow the vocabulary."""

    def swap(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        content["model"]["vocab"] = {"<|zero|>": 0, **{text: index + 1 for text, index in vocab.items()}}
        flags = {**tiny_llava.FLAGS, "special": False}
        moved = [{**token, "id": token["id"] + 1} for token in content["added_tokens"]]
        content["added_tokens"] = [{"id": 0, "content": "<|zero|>", **flags}, *moved]

    tokenizer = byte_bpe(change=swap)
    found = keys(tokenizer, tmp_path)
    assert found["tokenizer.ggml.tokens"][0] == "<|zero|>"
    check(tokenizer, tmp_path, found, ["a <|zero|> b"])


# --- what is compared ---


def test_the_callers_own_texts_are_compared(tmp_path: Path) -> None:
    """Qwen2's tokenizer composes letters and accents, llama.cpp does not: the text that shows it is named."""
    tokenizer, apart = byte_bpe(), "cafe\u0301"
    found = keys(tokenizer, tmp_path)
    check(tokenizer, tmp_path, found, ["café"])
    with pytest.raises(MinipovidError, match=f"llama.cpp tokenises '{apart}' as"):
        check(tokenizer, tmp_path, found, ["café", apart])


def test_the_prompt_is_compared_around_its_picture(with_model: Path) -> None:
    """What transformers joins, a word's end and the picture, llama.cpp gets apart."""
    tokenizer = sentencepiece()
    added = tokenizer.backend_tokenizer
    added.add_special_tokens([AddedToken("<image>", special=True, lstrip=True, normalized=False)])
    found = keys(tokenizer, with_model)
    check(tokenizer, with_model, found, [], "USER:<image>\nx")
    with pytest.raises(MinipovidError, match="llama.cpp tokenises 'USER: <image>.nx' as"):
        check(tokenizer, with_model, found, [], "USER: <image>\nx")


def test_spacing(with_model: Path) -> None:
    assert vocabulary.spacing(sentencepiece(True), "<image>") == Spacing(True, "")
    assert vocabulary.spacing(sentencepiece(False), "<image>") == Spacing(False, " ")
    assert vocabulary.spacing(byte_bpe(), "<image>") == Spacing(False, "")
    assert Spacing(False, " ").begin("x") == " x"
    assert Spacing(False, " ").begin(" x") == " x"  # transformers, too, adds none where one stands
    assert Spacing(True, "").begin("x") == "x"


def test_probes_hold_what_cuts_texts_apart() -> None:
    everything = "".join(PROBES)
    for needed in ["\n\n\n", "\r\n", "\t", "  ", "'", "’", "1234567890", "½", "猫", "🐈", "é", "!!!", "_", "{"]:
        assert needed in everything
    assert any(text.startswith(" ") for text in PROBES)
    assert any(text.endswith(" ") for text in PROBES)


# --- what is refused ---


def test_vocabularies_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="has 388 tokens, but the model only 300"):
        keys(byte_bpe(), tmp_path, 300)

    def doubled(content: dict[str, Any]) -> None:
        content["model"]["vocab"]["[PAD399]"] = 390

    with pytest.raises(MinipovidError, match="two tokens of the same text"):
        keys(byte_bpe(change=doubled), tmp_path)


def test_other_kinds_of_tokenizer(tmp_path: Path) -> None:
    content = {"model": {"type": "WordLevel", "vocab": {"xq": 0, "<image>": 1}, "unk_token": "xq"}}
    plain = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None}
    steps = {"pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None}
    tokenizer = tokenizer_of(json.dumps({**plain, **steps, **content}), eos_token="xq")
    with pytest.raises(MinipovidError, match="is a WordLevel model; export knows SentencePiece BPE and byte-level BPE"):
        keys(tokenizer, tmp_path)
