"""Readers: good rows become pairs, bad rows a sentence each, and what is written reads back the same."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.pairs import formats
from minipovid.pairs.formats import jsonl, povid
from minipovid.pairs.pair import BadRow, Pair, Span


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def povid_row(**changes: Any) -> dict[str, Any]:
    """A good row with some keys changed; a key that becomes `...` goes."""
    row = {
        "id": "393212",
        "image": "train2014/COCO_train2014_000000393212.jpg",
        "conversations": turns("<image>\nWhat is on the water?", "A boat."),
        "rejected_conversations": turns("<image>\nWhat is on the water?", "A boat with fishing poles."),
    } | changes
    return {key: value for key, value in row.items() if value is not ...}


def jsonl_row(**changes: Any) -> dict[str, Any]:
    row = {"id": "17", "image": "17.png", "prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."} | changes
    return {key: value for key, value in row.items() if value is not ...}


def read_povid(folder: Path, rows: Any) -> list[Pair | BadRow]:
    path = folder / "pairs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return list(povid.read(path))


def read_jsonl(folder: Path, *lines: Any) -> list[Pair | BadRow]:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return list(jsonl.read(path))


# --- what every file on the shelf must keep ---

SHELF = "pairs.formats"
ABILITIES = ("read", "seeds", "claims")
EVERY_FORMAT = pytest.mark.parametrize("name", shelf.names(SHELF))


def abilities(name: str) -> dict[str, Any]:
    """What the format's own file defines of the contract."""
    module = shelf.load(SHELF, name)
    each = {ability: getattr(module, ability, None) for ability in ABILITIES}
    return {key: function for key, function in each.items() if getattr(function, "__module__", "") == module.__name__}


def readings(name: str, path: Path) -> Iterator[list[Any]]:
    """The file's rows, read as pairs and as seeds; a format that refuses it as a whole does so in one sentence."""
    for ability in ("read", "seeds"):
        if ability in abilities(name):
            try:
                rows = abilities(name)[ability](path)
                assert isinstance(rows, Iterator), "a file may be larger than memory"
                yield list(rows)
            except MinipovidError as error:
                assert str(path) in str(error) and "\n" not in str(error) and str(error).endswith("."), error


def test_the_shelf_holds_formats_and_nothing_else() -> None:
    names = shelf.names(SHELF)
    assert len(names) >= 11 and {"jsonl", "povid"} < set(names)
    assert all({"read", "seeds"} & abilities(name).keys() for name in names)
    assert formats.formats() == [name for name in names if "read" in abilities(name)]
    assert formats.formats("seeds") == [name for name in names if "seeds" in abilities(name)]


@EVERY_FORMAT
def test_a_format_takes_what_the_contract_says(name: str) -> None:
    for ability, function in abilities(name).items():
        (parameter,) = inspect.signature(function).parameters
        assert parameter == ("row" if ability == "claims" else "path"), ability


@EVERY_FORMAT
def test_a_format_claims_no_row_of_strangers(name: str) -> None:
    claims = abilities(name).get("claims", lambda row: 0)
    strangers: list[dict[str, Any]] = [{}, {"instruction": "x", "output": "y"}, {"text": "x"}, {"image": "a.png"}]
    assert [claims(row) for row in strangers] == [0] * len(strangers)


@EVERY_FORMAT
def test_a_file_without_rows_gives_none_and_one_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for file, content in (("empty", ""), ("white.json", " \n"), ("list.json", "[]"), ("lines.jsonl", "\n")):
        (tmp_path / file).write_text(content)
        assert all(rows == [] for rows in readings(name, tmp_path / file)), file
    for path in (tmp_path / "absent.json", tmp_path / "folder"):
        assert all(rows == [] for rows in readings(name, path)), path
    assert not list(readings(name, tmp_path / "absent.json"))
    for path in (tmp_path / "empty", tmp_path / "list.json", tmp_path / "folder"):
        with pytest.raises(MinipovidError, match=re.escape(str(path))):
            formats.detect(path)


@EVERY_FORMAT
def test_what_is_no_row_of_the_format_is_a_bad_row(name: str, tmp_path: Path) -> None:
    """Each with its place and one clause; bytes that are no text are refused as a whole or row by row."""
    odd: list[Any] = [5, "x", None, [], {}, {"id": 1}, {"image": "a.png"}, {"id": "ü", "prompt": {"a": [[]]}}]
    (tmp_path / "a.json").write_text(json.dumps(odd))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in odd))
    (tmp_path / "a.csv").write_text("image,note\na.png,x\nb.png\n")
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    for file in ("a.json", "a.jsonl", "a.csv", "a.bin"):
        for rows in readings(name, tmp_path / file):
            assert len(rows) == len(odd) if file in ("a.json", "a.jsonl") else rows
            for row in rows:
                assert isinstance(row, BadRow) and row.where.startswith("row ")
                assert row.why and "\n" not in row.why and not row.why.endswith(".")


def test_a_povid_row_becomes_a_pair(tmp_path: Path) -> None:
    (pair,) = read_povid(tmp_path, [povid_row()])
    assert pair == Pair(
        id="393212",
        image="train2014/COCO_train2014_000000393212.jpg",
        prompt="What is on the water?",
        chosen="A boat.",
        rejected="A boat with fishing poles.",
        source={"chosen": "ground truth", "rejected": "GPT-4V (POVID)"},
    )


@pytest.mark.parametrize("question", ["<image>\nWhy?", "Why?\n<image>", "<image> Why?", "Why?", "  Why?\n"])
def test_the_placeholder_goes_from_either_end(tmp_path: Path, question: str) -> None:
    (pair,) = read_povid(
        tmp_path, [povid_row(conversations=turns(question, "A."), rejected_conversations=turns("<image>\nWhy?", "B."))]
    )
    assert isinstance(pair, Pair) and pair.prompt == "Why?"


TWO_TURNS = turns("<image>\nOne?", "A.") + turns("Two?", "B.")


@pytest.mark.parametrize(
    ("row", "where", "why"),
    [
        (povid_row(image=...), "row 1 (id 393212)", "image is missing; a preference about a picture needs one"),
        (povid_row(image=None), "row 1 (id 393212)", "image is missing; a preference about a picture needs one"),
        (povid_row(image=7), "row 1 (id 393212)", "image is 7, but it must be text in quotes"),
        (povid_row(conversations=...), "row 1 (id 393212)", "conversations is missing"),
        (
            povid_row(rejected_conversations="No."),
            "row 1 (id 393212)",
            "rejected_conversations is 'No.', but it must be a list of turns",
        ),
        (
            povid_row(conversations=TWO_TURNS),
            "row 1 (id 393212)",
            "conversations holds 2 exchanges; split it into rows of one question each",
        ),
        (
            povid_row(conversations=turns("Q?", "A.")[::-1]),
            "row 1 (id 393212)",
            "conversations must be one turn from 'human' and one from 'gpt'; its turns are from ['gpt', 'human']",
        ),
        (
            povid_row(conversations=[]),
            "row 1 (id 393212)",
            "conversations must be one turn from 'human' and one from 'gpt'; its turns are from []",
        ),
        (
            povid_row(conversations=[{"from": "human", "value": "Q?"}, {"from": "gpt"}]),
            "row 1 (id 393212)",
            "value is missing",
        ),
        (
            povid_row(conversations=turns("Look at <image> now.", "A.")),
            "row 1 (id 393212)",
            "conversations has <image> in the middle of a text; it may only open or close the question",
        ),
        (
            povid_row(rejected_conversations=turns("<image>\nWhat flies?", "B.")),
            "row 1 (id 393212)",
            "the two conversations ask different questions: 'What is on the water?' and 'What flies?'",
        ),
        (
            povid_row(conversations=turns("<image>\nWhat is on the water?", " ")),
            "row 1 (id 393212)",
            "the chosen answer is empty",
        ),
        (
            povid_row(rejected_conversations=turns("<image>\nWhat is on the water?", "A boat. ")),
            "row 1 (id 393212)",
            "the chosen and the rejected answer are equal, so there is nothing to prefer",
        ),
        (
            povid_row(conversations=turns("<image>", "A."), rejected_conversations=turns("<image>", "B.")),
            "row 1 (id 393212)",
            "the question is empty",
        ),
        ("a row", "row 1", "the row is 'a row', not an object in braces"),
        (
            povid_row(image="\ud800.jpg"),
            "row 1 (id 393212)",
            "image holds half of a surrogate pair, which is no character; write the character itself",
        ),
    ],
)
def test_a_bad_povid_row_gets_its_sentence(tmp_path: Path, row: Any, where: str, why: str) -> None:
    assert read_povid(tmp_path, [row]) == [BadRow(where, why)]


def test_a_bad_row_does_not_stop_the_next(tmp_path: Path) -> None:
    rows = read_povid(tmp_path, [povid_row(), povid_row(image=7), povid_row(id=5), "x", povid_row(id="6")])
    assert [type(row) for row in rows] == [Pair, BadRow, Pair, BadRow, Pair]


def test_a_list_without_a_bottom_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(MinipovidError, match=r"pairs\.json is not a JSON list: "):
        list(povid.read(path))


@pytest.mark.parametrize(("reader", "content"), [(povid, b'[{"id": "caf\xe9"}]'), (jsonl, b'{"id": "caf\xe9"}')])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, reader: Any, content: bytes) -> None:
    with pytest.raises(MinipovidError, match="There is no file .*; data.path must name the pairs"):
        list(reader.read(tmp_path / "absent"))
    (tmp_path / "latin").write_bytes(content)
    with pytest.raises(MinipovidError, match="cannot be read: it is not UTF-8 text; save it as UTF-8"):
        list(reader.read(tmp_path / "latin"))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps([povid_row()]), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\ufeff" + json.dumps(jsonl_row()), encoding="utf-8")
    assert isinstance(next(povid.read(tmp_path / "a.json")), Pair)
    assert isinstance(next(jsonl.read(tmp_path / "a.jsonl")), Pair)


def test_what_jsonl_writes_it_reads_back(tmp_path: Path) -> None:
    """Line separators that only some readers know, quotes and other alphabets included."""
    pairs = [
        Pair(
            "1",
            "a/b.png",
            "Q?",
            "A.\u2028B\x85\r\n\n",
            'The "red" one.',
            {"rejected": "rule"},
            (Span(4, 9, "attribute"),),
        ),
        Pair("2", "ü.png", "何?", "猫", "犬"),
    ]
    jsonl.write(tmp_path / "p.jsonl", pairs)
    assert list(jsonl.read(tmp_path / "p.jsonl")) == pairs
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    jsonl.write(tmp_path / "p.jsonl", [Pair("1", "a.png", "Q?", "A.", "B.")])
    before = (tmp_path / "p.jsonl").read_bytes()

    def failing() -> Any:
        yield Pair("2", "a.png", "Q?", "A.", "B.")
        raise RuntimeError("the teacher went home")

    with pytest.raises(RuntimeError):
        jsonl.write(tmp_path / "p.jsonl", failing())
    assert (tmp_path / "p.jsonl").read_bytes() == before


def test_jsonl_rows_are_numbered_by_line(tmp_path: Path) -> None:
    rows = read_jsonl(tmp_path, jsonl_row(), "", "{no", jsonl_row(id="17"))
    assert isinstance(rows[0], Pair)
    assert rows[1] == BadRow(
        "row 3", "the line is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    )
    assert rows[2] == BadRow("row 4 (id 17)", "the id '17' stands in an earlier row; give every row an id of its own")


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (jsonl_row(chosen=...), "chosen is missing"),
        (jsonl_row(prompt=3), "prompt is 3, but it must be text in quotes"),
        (jsonl_row(rejected="\n"), "the rejected answer is empty"),
        (jsonl_row(rejected="A cat."), "the chosen and the rejected answer are equal, so there is nothing to prefer"),
        (
            jsonl_row(images=["17.png"]),
            "images is not a key of a pair; known: id, image, prompt, chosen, rejected, source, spans",
        ),
        (jsonl_row(source="rule"), "source is 'rule', but it must be an object that says who made each half"),
        (jsonl_row(source={"chosen": 1}), "chosen is 1, but it must be text in quotes"),
        (jsonl_row(spans={}), "spans is {}, but it must be a list"),
        (
            jsonl_row(spans=[[0, 2, "object"]]),
            "a span is [0, 2, 'object'], but it must be an object with start, end and kind",
        ),
        (
            jsonl_row(spans=[{"start": 2, "end": 7, "kind": "object"}]),
            "a span is {'start': 2, 'end': 7, 'kind': 'object'}, "
            "which lies outside the 6 characters of the rejected answer",
        ),
        (
            jsonl_row(spans=[{"start": 2, "end": 2, "kind": "object"}]),
            "a span is {'start': 2, 'end': 2, 'kind': 'object'}, "
            "which lies outside the 6 characters of the rejected answer",
        ),
    ],
)
def test_a_bad_jsonl_row_gets_its_sentence(tmp_path: Path, row: Any, why: str) -> None:
    assert read_jsonl(tmp_path, row) == [BadRow("row 1 (id 17)", why)]


@pytest.mark.parametrize(
    ("id", "why"),
    [
        (..., "id is missing"),
        (None, "id is None, but it must be text in quotes"),
        (float("nan"), "id is nan, but it must be text in quotes"),
        (True, "id is True, but it must be text in quotes"),
        ([1], "id is [1], but it must be text in quotes"),
    ],
)
def test_a_row_of_ours_needs_an_id(tmp_path: Path, id: Any, why: str) -> None:
    (row,) = read_jsonl(tmp_path, jsonl_row(id=id))
    assert isinstance(row, BadRow) and row.why == why


def test_a_number_is_as_good_an_id_as_its_text(tmp_path: Path) -> None:
    """1, 1.0 (what pandas makes of it) and "1" are one id, and may come once."""
    rows = read_jsonl(
        tmp_path, jsonl_row(id=2), jsonl_row(id=3.0), jsonl_row(id=1), jsonl_row(id=1.0), jsonl_row(id="1")
    )
    assert [row.id if isinstance(row, Pair) else row.where for row in rows] == [
        *("2", "3", "1"),
        *("row 4 (id 1)", "row 5 (id 1)"),
    ]
    assert formats.detect(tmp_path / "pairs.jsonl") == "jsonl"


OURS = [jsonl_row(), jsonl_row(id="18", source={"chosen": "person"}, spans=[])]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", json.dumps(OURS)),
        ("wrapped.json", json.dumps({"data": OURS}, indent=2)),
        ("in_one_line.json", json.dumps({"version": 1, "train": OURS, "test": []})),
        ("indented.jsonl", "\n".join(json.dumps(row, indent=1) for row in OURS)),
        ("null.jsonl", "\n".join(json.dumps({"source": None, "spans": None} | row) for row in OURS)),
    ],
)
def test_rows_of_ours_are_read_in_any_container(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert formats.detect(tmp_path / name) == "jsonl"
    first, second = jsonl.read(tmp_path / name)
    assert first == Pair("17", "17.png", "What is this?", "A cat.", "A dog.")
    assert second == Pair("18", "17.png", "What is this?", "A cat.", "A dog.", {"chosen": "person"})
