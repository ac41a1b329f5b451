"""The rows of a data file: as json.loads reads them, in flat memory, and what cannot be read in a sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from minipovid.common import data_files
from minipovid.common.data_files import Purpose, lists, rows, within
from minipovid.common.errors import MinipovidError

LETTERS = Purpose("letters", "name the file of letters")


def values(text: str, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "v.json").write_text(text, encoding="utf-8")
    return (value for _, value in rows(tmp_path / "v.json", LETTERS))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
def test_a_json_list_is_read_the_same_in_chunks_of_any_size(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """json.loads, which holds all of it, is the oracle."""
    monkeypatch.setattr(data_files, "CHUNK", chunk)
    dice = random.Random(chunk)
    awkward = [
        1.5e-10,
        -17,
        True,
        None,
        "",
        '😀 \\" ]},',
        {"a": [{}, []], "é": "\u2028"},
        123456789,
        "x" * 99,
    ]
    for indent in (None, 1):
        for _ in range(20):
            content = dice.choices(awkward, k=dice.randrange(9))
            text = json.dumps(content, indent=indent, ensure_ascii=bool(dice.randrange(2)))
            assert list(values(text, tmp_path)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "count", "why"),
    [
        ('[{"a": 1}, {"a": ]', 1, "is not a JSON list: Expecting value, before "),
        ('[{"a": 1} {"a": 2}]', 1, "is not a JSON list: ',' was expected and '{' stands there"),
        ('[{"a": 1}, ', 1, "is not a JSON list: Expecting value"),
        ('[{"a": "no end', 0, "is not a JSON list: Unterminated string starting at"),
        ("[1] 2", 1, "is not a JSON list: there is more behind the end of the list, before '2'"),
        ("[" * 100_000, 0, "is not a JSON list: "),
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_a_broken_list_gives_its_rows_and_then_a_sentence(
    text: str, count: int, why: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "CHUNK", chunk)
    seen = []
    with pytest.raises(MinipovidError, match=why.replace("[", r"\[")):
        for value in values(text, tmp_path):
            seen.append(value)
    assert len(seen) == count


def test_a_mistake_early_in_a_large_file_is_found_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that more text cannot heal must not make the reader swallow the rest."""
    monkeypatch.setattr(data_files, "CHUNK", 1000)
    text = '[{"a": nonsense}, ' + " " * 1_000_000 + "]"
    monkeypatch.setattr(data_files, "LONGEST", 5000)
    with pytest.raises(MinipovidError, match="Expecting value"):
        list(values(text, tmp_path))


def test_a_value_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "CHUNK", 1000)
    monkeypatch.setattr(data_files, "LONGEST", 20_000)
    with pytest.raises(MinipovidError, match="a value is longer than 20,000 characters"):
        list(values('["' + "x" * 1_000_000 + '"]', tmp_path))


def test_what_the_file_was_wanted_for_stands_in_every_sentence(tmp_path: Path) -> None:
    """One that is not there, no text, cut short; a folder of two kinds."""
    pyarrow.parquet.write_table(pyarrow.table({"a": ["x" * 99] * 99}), tmp_path / "d.parquet")
    whole = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "latin.json").write_bytes(b'["caf\xe9"]')
    (tmp_path / "object.json").write_bytes(b'{"a": ["caf\xe9"]}')
    with pytest.raises(MinipovidError, match=r"^There is no file .*none\.json; name the file of letters\.$"):
        list(rows(tmp_path / "none.json", LETTERS))
    for name in ("d.parquet", "latin.json"):
        with pytest.raises(MinipovidError, match=rf"^The letters .*{name} cannot be read: .*\.$"):
            list(rows(tmp_path / name, LETTERS))
    for read in (
        lambda: within(tmp_path / "object.json", LETTERS, "a"),
        lambda: lists(tmp_path / "none", LETTERS, "a"),
    ):
        with pytest.raises(MinipovidError, match="^The letters .* cannot be read: "):
            list(read())
    with pytest.raises(
        MinipovidError, match=r"holds \.json and \.parquet files; name the one that holds the letters\.$"
    ):
        list(rows(tmp_path, LETTERS))


def test_a_cell_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "LONGEST", 1000)
    (tmp_path / "t.csv").write_text('a,b\n1,"' + "x" * 3000)
    with pytest.raises(MinipovidError, match="^The letters .*t.csv cannot be read: field larger than field limit"):
        list(rows(tmp_path / "t.csv", LETTERS))
