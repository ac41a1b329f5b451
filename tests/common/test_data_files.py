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


ROWS = [{"id": str(n), "text": "é 😀 \u2028", "parts": [{"a": [n]}]} for n in range(3)]


def indented(row: Any) -> str:
    return json.dumps(row, indent=1, ensure_ascii=False)


CONTAINERS = {
    "one per line": "".join(json.dumps(row) + "\n" for row in ROWS),
    "one per line, from Windows, blank lines between": "\r\n\r\n".join(json.dumps(row) for row in ROWS),
    "joined files, each with its mark": "\n\ufeff".join(json.dumps(row) for row in ROWS),
    "a list": json.dumps(ROWS),
    "an indented list": indented(ROWS),
    "one after another": "\n".join(map(indented, ROWS)),
    "wrapped": json.dumps({"data": ROWS}),
    "wrapped and indented": indented({"data": ROWS}),
    "wrapped among other things": indented({"version": 1, "info": {"a": [{}]}, "rows": ROWS, "test": []}),
    "wrapped, a row per line": '{"annotations": [\n' + ",\n".join(map(json.dumps, ROWS)) + "\n]}",
    "wrapped, the first row in the first line": '{"train": [' + ",\n".join(map(json.dumps, ROWS)) + "]}",
    "all that is there, whatever its name": json.dumps({"my_rows": ROWS}),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("chunk", [100, 1 << 20])  # 100: less than a line of all rows
@pytest.mark.parametrize("container", CONTAINERS)
def test_rows_are_the_same_in_every_container(
    container: str, chunk: int, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_files, "CHUNK", chunk)
    (tmp_path / "a.json").write_bytes(CONTAINERS[container].encode(encoding))
    assert [row for _, row in rows(tmp_path / "a.json", LETTERS)] == ROWS


@pytest.mark.parametrize("row", [ROWS[0], {"messages": [{"role": "user"}], "image": "a.png"}, {"data": [], "id": 1}])
def test_one_object_is_one_row(row: dict[str, Any], tmp_path: Path) -> None:
    for text in (json.dumps(row), indented(row)):
        assert list(values(text, tmp_path)) == [row]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("cut.jsonl", '{"a": 1,\n{"a": 2}\n{"a": 3}\n', [None, {"a": 2}, {"a": 3}]),
        ("end.jsonl", '{"a": 1}\n{"a": 2,\n', [{"a": 1}, None]),
        ("only.jsonl", '{"a": 1', [None]),
        ("deep.jsonl", '{"a":' * 50_000 + '\n{"a": 2}', [None, {"a": 2}]),
    ],
)
def test_a_broken_line_costs_no_other(name: str, text: str, found: list[Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    read = [None if isinstance(row, data_files.Bad) else row for _, row in rows(tmp_path / name, LETTERS)]
    assert read == found


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", '{"train": [{"a": 1}], "test": [{"a": 2}]}', "a.json holds rows under train and under test; save"),
        (
            "a.json",
            '{\n"data": [{"a": 1}]}\n{"b": 1}',
            "a.json is not JSON: there is more behind the end of",
        ),
        ("a.json", '{\n"a":' * 50_000, "a.json is not JSON: maximum recursion depth"),
        ("a.json", '{"1": {"a": 1}, "2": {"a": 1}}', "a.json is one object of objects and no list of rows; save it as"),
        ("a.json", "", "a.json is empty; name the file of letters"),
        ("a.jsonl", "\ufeff \r\n\n", "a.jsonl is empty; name the file of letters"),
        ("a.csv", "\n" * 9000, "a.csv is empty; name the file of letters"),
        ("a.csv", "id,a, a\n1,2,3\n", "a.csv has two columns a; give each a name of its own"),
        ("a.jsonl", "version https://git-lfs.github.com/spec/v1", "a.jsonl cannot be read: it is a git-LFS pointer"),
        ("a.parquet", "<html>", "a.parquet cannot be read: it is a web page"),
    ],
)
def test_what_holds_no_rows_is_refused_by_name(name: str, text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(MinipovidError, match=why):
        list(rows(tmp_path / name, LETTERS))


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("sep=;\r\na;b\r\n1;x,y\r\n", ("2", {"a": "1", "b": "x,y"})),
        ('"sep=;"\na;b\n;\n\n1;2\n', ("4", {"a": "1", "b": "2"})),
        ('a\n\n""\n1\n', ("3", {"a": ""})),  # an empty answer, and no blank line
        ("sep=\t\na,b\tc\n1\t2\n", ("2", {"a,b": "1", "c": "2"})),
        ("\n\na,b\n1,2\n", ("2", {"a": "1", "b": "2"})),
        ('"a\nb",c\n1,2\n', ("2", {"a\nb": "1", "c": "2"})),
    ],
)
def test_a_table_is_what_the_spreadsheet_meant(text: str, first: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        assert next(rows(tmp_path / "t.csv", LETTERS)) == first


@pytest.mark.parametrize("chunk", [7, 1 << 20])
@pytest.mark.parametrize("container", ["lines", "a list", "one after another", "wrapped"])
def test_a_key_with_two_values_costs_its_row_alone(
    container: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any depth; a key that says the same twice says it."""
    monkeypatch.setattr(data_files, "CHUNK", chunk)
    told = ['{"a": 1}', '{"a": 1, "b": [{"c": "x", "c": "y"}]}', '{"a": 2, "a": 2}', '{"a": 1, "a": true}', '{"a": 3}']
    between = {"lines": "\n", "one after another": "\n"}.get(container, ", ")
    text = between.join(told)
    if container == "one after another":
        text = text.replace("{", "{\n")
    text = {"a list": f"[{text}]", "wrapped": f'{{"data": [{text}]}}'}.get(container, text)
    read = [str(row) if isinstance(row, data_files.Bad) else row for row in values(text, tmp_path)]
    sentence = "{} stands there twice, with {} and {}; keep one of them"
    assert read == [
        {"a": 1},
        sentence.format("c", "'x'", "'y'"),
        {"a": 2},
        sentence.format("a", "1", "True"),
        {"a": 3},
    ]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{\n"a": 1, "a": 2\n}', '{\n"b": {"a": 1, "a": 2}}'])
def test_a_key_with_two_values_in_the_only_object(text: str, tmp_path: Path) -> None:
    (row,) = values(text, tmp_path)
    assert isinstance(row, data_files.Bad) and str(row) == "a stands there twice, with 1 and 2; keep one of them"


def test_a_key_with_two_values_in_a_list_of_one_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"info": {}, "annotations": [{"id": 1}, {"id": 2, "id": 3}]}')
    with pytest.raises(MinipovidError, match="a JSON object: id stands there twice, with 2 and 3; keep one of them"):
        list(within(tmp_path / "a.json", LETTERS, "annotations"))


def test_quotes_that_are_no_csv_cost_their_row(tmp_path: Path) -> None:
    """By RFC 4180 a quote within quotes is written twice; in a cell without quotes it stands for itself."""
    (tmp_path / "t.csv").write_text('a,b\n1,"x"y "" z\n2,"x ""y"" z"\n3,a 5" disc\n4,"x"y\n5,"z"\n')
    read = list(rows(tmp_path / "t.csv", LETTERS))
    assert [number for number, _ in read] == ["2", "3", "4", "5", "6"]
    bad = [str(row) for _, row in read if isinstance(row, data_files.Bad)]
    assert len(bad) == 2 and all(why.endswith("; a quote within a cell in quotes is written twice") for why in bad)
    assert [row for _, row in read if isinstance(row, dict)] == [
        {"a": "2", "b": 'x "y" z'},
        {"a": "3", "b": 'a 5" disc'},
        {"a": "5", "b": "z"},
    ]


@pytest.mark.parametrize(
    "text",
    ['a,b\n1,"x\n2,y\n3,z\n', 'a,b\n1,"x\n2,"y"\n3,z\n', 'a,b\n1,x\n2,"y', 'a,b\n1,"x\n2,"",y\n3,"z"\n'],
    ids=["to the end", "to the next", "in the last row", "over empty quotes"],
)
def test_a_quote_that_is_never_closed_swallows_nothing_in_silence(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(MinipovidError, match=r"^The letters .*t.csv cannot be read: .* is written twice\.$"):
        list(rows(tmp_path / "t.csv", LETTERS))


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
