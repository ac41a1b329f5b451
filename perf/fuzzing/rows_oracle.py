"""What a data set of pairs or good answers means, read slowly and by the documents alone.

A row is one question and two different answers (or one good answer) about one picture, the texts without the picture's
placeholder and without white space at their ends. What says two things, or more than a pair can hold, is bad.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any

from fuzzing.case import REFUSED

Row = dict[str, Any]
MARK = "<image>"


def _png(level: int) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (2, 3), (level, 40, 200)).save(file, "PNG")
    return file.getvalue()


PICTURES = {f"p{number}.png": _png(number * 50) for number in range(4)}


def called(picture: str | bytes) -> str | bytes:
    """The picture's name, where it is one of ours by path or content."""
    if isinstance(picture, str):
        return picture.removeprefix("./")
    return next((name for name, data in PICTURES.items() if data == picture), picture)


class _No(Exception):
    """A row or a file that means nothing."""


def meant(path: Path, data: bytes, form: str, imported: bool) -> Any:
    """What `rows` must read in the file: each row as (picture, texts...), None where it is bad; or REFUSED."""
    try:
        rows = _parsed(path, data, form)
        items, seen = [], set()
        for row in rows:
            found = [None]
            if isinstance(row, dict):
                try:
                    found = _items(row, form)
                    own = str(row.get("id"))
                    if form == "jsonl" and own in seen:  # its ids are the rows' own names
                        found = [None]
                    seen.add(own)
                except _No:
                    pass
            items += found
        if imported:  # which leaves out what makes no pair, and is no import without any
            items = [item for item in items if item is not None]
        return items or REFUSED
    except _No:
        return REFUSED


def _parsed(path: Path, data: bytes, form: str) -> list[Any]:
    """The rows; None for what is none. Raises _No for a file that means nothing at all."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_table(BytesIO(data)).to_pylist()
        except Exception as error:  # whatever pyarrow makes of broken bytes
            raise _No from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _No from error
    return _cells(text) if form.startswith("csv") else _values(text)


def _values(text: str) -> list[Any]:
    """JSON in any container: lines, a list, a list under a key, values one behind another."""
    try:
        tree = _json(text)
        if isinstance(tree, dict):
            lists = [rows for rows in tree.values() if isinstance(rows, list) and all(map(_may_be_row, rows))]
            return lists[0] if len(tree) == 1 and lists else [tree]
        if isinstance(tree, list):
            return tree
        raise _No
    except ValueError:
        if text.lstrip()[:1] == "[":
            raise _No from None  # a list that is no whole list
    values, wrong = [], False
    for line in (line for line in text.split("\n") if line.strip()):
        try:
            values.append(_json(line))
        except ValueError:
            values.append(None)
            wrong = True
    behind = _one_behind_another(text) if wrong else None
    return values if behind is None else behind


def _may_be_row(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _one_behind_another(text: str) -> list[Any] | None:
    values, at, decoder = [], 0, json.JSONDecoder(object_pairs_hook=_once)
    try:
        while text[at:].strip():
            at += len(text[at:]) - len(text[at:].lstrip())
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except (ValueError, RecursionError):
        return None
    return values


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError from None


def _once(pairs: list[tuple[str, Any]]) -> Row | None:
    """An object; None where it says two things under one key."""
    row = dict(pairs)
    return row if all(repr(row[key]) == repr(value) for key, value in pairs) else None


def _cells(text: str) -> list[Any]:
    """A table by RFC 4180, character for character, with whichever sign parts the header into known columns."""
    for between in ",;\t":
        table = _split(text, between)
        header = [name.strip() for name in table[0]] if table and table[0] else []
        names = [name if name.lower() in header else name.lower() for name in header]
        if "image" in names and "prompt" in names:
            break
    else:
        raise _No
    if len(set(names)) < len(names):
        raise _No
    rows = [row for row in table[1:] if row != [""]]
    return [None if row is None or len(row) != len(names) else dict(zip(names, row, strict=True)) for row in rows]


def _split(text: str, between: str) -> list[Any]:
    """Lines of cells; None for a line whose quotes are not closed, or do not stand round the whole cell."""
    lines: list[Any] = []
    cells, cell, state, wrong = [], "", "start", False
    for sign in [*text.replace("\r\n", "\n"), "end"]:
        sign = "\n" if sign == "\r" and state != "quoted" else sign
        if state == "quoted" and sign != "end":
            state, cell = ("closing", cell) if sign == '"' else ("quoted", cell + sign)
        elif state == "closing" and sign == '"':
            state, cell = "quoted", cell + '"'
        elif sign in (between, "\n", "end"):
            wrong = wrong or state == "quoted"
            cells, cell, state = [*cells, cell], "", "start"
            if sign != between:
                if sign == "\n" or cells != [""]:
                    lines.append(None if wrong else cells)
                cells, wrong = [], False
        elif sign == '"' and state == "start":
            state = "quoted"
        else:  # a quote in a cell that has none round it stands for itself, as every reader takes it
            wrong = wrong or state == "closing"
            state, cell = "bare" if state == "start" else state, cell + sign
    return lines


def _items(row: Row, form: str) -> list[Any]:
    """(picture, texts...) of each pair in a row; one None where it makes none. Raises _No for a bad row."""
    if form == "vlfeedback":
        return _rated(row) or [None]
    if form == "jsonl" and (isinstance(row.get("id"), bool) or not isinstance(row.get("id"), (str, int, float))):
        raise _No
    picture = _text(row.get("image")) if form in ("jsonl", "povid") else _picture(row)
    texts = _texts(row, form)
    if not all(text.strip() for text in texts) or len(texts) == 3 and texts[1].strip() == texts[2].strip():
        raise _No
    if form != "jsonl" and (MARK in "".join(texts)):
        raise _No
    return [(called(picture), *(text.strip() for text in texts))]


def _texts(row: Row, form: str) -> tuple[str, ...]:
    """(question, chosen, rejected) or (question, answer)."""
    if form == "jsonl":
        if set(row) - {"id", "image", "prompt", "chosen", "rejected", "source", "spans"}:
            raise _No
        spans = [] if row.get("spans") is None else row["spans"]
        if not isinstance(spans, list):
            raise _No
        for span in spans:
            if not isinstance(span, dict) or span.keys() != {"start", "end", "kind"}:
                raise _No
            if {type(span["start"]), type(span["end"])} != {int}:
                raise _No
            if not 0 <= span["start"] < span["end"] <= len(_text(row.get("rejected"))):
                raise _No
        return _text(row.get("prompt")), _text(row.get("chosen")), _text(row.get("rejected"))
    if form == "csv answers":
        return _bare(_text(row.get("prompt"))), _text(row.get("answer"))
    if form == "csv":
        return _bare(_text(row.get("prompt"))), _text(row.get("chosen")), _text(row.get("rejected"))
    if form in ("rlaif_v", "rlhf_v"):
        source = row
        if form == "rlhf_v" and not isinstance(row.get("text"), dict):
            try:
                source = _json(_text(row.get("text")))
            except ValueError as error:
                raise _No from error
        if not isinstance(source, dict):
            raise _No
        return _bare(_text(source.get("question"))), _text(source.get("chosen")), _text(source.get("rejected"))
    if form == "llava":
        question, answer = _exchange([turn for turn in _turns(row.get("conversations")) if turn != ("system", "")][:2])
        return question, answer
    if form == "povid":
        ours, theirs = _exchange(_turns(row.get("conversations"))), _exchange(_turns(row.get("rejected_conversations")))
    elif form == "ms_swift":
        said = row.get("messages")
        if said is None:
            said = [{"from": "user", "value": row.get("query")}, {"from": "assistant", "value": row.get("response")}]
        ours = _exchange(_turns(said))
        _same_picture(row)
        if row.get("rejected_messages") is None:
            return *ours, _exchange([("user", "?"), *_said(row.get("rejected_response"))])[1]
        theirs = _exchange(_turns(row["rejected_messages"]))
    elif form == "llamafactory":
        if row.get("system") and str(row["system"]).strip():
            raise _No
        asked = _turns(row.get("conversations"))
        ours, theirs = (_exchange([*asked, *_turns(row.get(side))]) for side in ("chosen", "rejected"))
    else:
        _same_picture(row)
        ours, theirs = (
            _exchange([*_asked(row.get("prompt")), *_said(row.get(side))]) for side in ("chosen", "rejected")
        )
    if ours[0] != theirs[0]:
        raise _No
    return *ours, theirs[1]


def _same_picture(row: Row) -> None:
    other = row.get("rejected_images")
    if other not in (None, [], row.get("images")) and _picture({"images": other}) != _picture(row):
        raise _No


def _asked(prompt: Any) -> list[tuple[str, str]]:
    return [] if prompt is None else [("user", prompt)] if isinstance(prompt, str) else _turns(prompt)


def _said(answer: Any) -> list[tuple[str, str]]:
    return [("assistant", _text(answer))] if isinstance(answer, str) else _turns(answer)


_TURN = (("from", "role"), ("value", "content"))  # parquet keeps both dialects' keys once two rows differ


def _turns(cell: Any) -> list[tuple[str, str]]:
    """(role, text) of each turn, an image part as its placeholder."""
    roles = {
        "human": "user",
        "gpt": "assistant",
        "model": "assistant",
        "user": "user",
        "assistant": "assistant",
        "system": "system",
    }
    turns = []
    for turn in [cell] if isinstance(cell, dict) else cell if isinstance(cell, list) else [None]:
        if not isinstance(turn, dict):
            raise _No
        who, said = (next((turn[key] for key in keys if turn.get(key) is not None), None) for keys in _TURN)
        if not isinstance(who, str) or who not in roles:
            raise _No
        if isinstance(said, list):
            parts = [MARK if isinstance(part, dict) and part.get("type") == "image" else _part(part) for part in said]
            said = "".join(parts)
        turns.append((roles[who], _text(said)))
    return turns


def _part(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise _No
    return _text(part.get("text"))


def _exchange(turns: list[tuple[str, str]]) -> tuple[str, str]:
    """One question, one answer; an empty system turn before them says nothing."""
    if turns and turns[0][0] == "system" and not turns[0][1].strip():
        turns = turns[1:]
    if [role for role, _ in turns] != ["user", "assistant"]:
        raise _No
    return _bare(turns[0][1]), turns[1][1].strip()


def _bare(question: str) -> str:
    """Without the picture's placeholder, which opens or closes it."""
    question = question.strip()
    if question.startswith(MARK):
        return question[len(MARK) :].strip()
    return question[: -len(MARK)].strip() if question.endswith(MARK) else question


def _text(value: Any) -> str:
    if not isinstance(value, str) or re.search("[\ud800-\udfff]", value):
        raise _No
    return value


def _picture(row: Row) -> Any:
    """The bytes, or the path, of the row's one picture."""
    cells = [row[key] for key in ("images", "image", "image_path") if row.get(key) not in (None, "", [])]
    if not cells:
        raise _No
    cell = cells[0]
    while isinstance(cell, list):
        if len(cell) != 1:
            raise _No
        cell = cell[0]
    if isinstance(cell, Mapping):
        content = cell.get("bytes")
        if isinstance(content, str):
            return _from_base64(_text(content))
        cell = content if content is not None else cell.get("path", cell.get("url"))
    if isinstance(cell, bytes):
        return _png_only(cell)
    text = _text(cell)
    if text.lower().startswith("data:"):
        return _from_base64(text.partition(",")[2])
    if "://" in text:
        raise _No
    return _from_base64(text) if text.lstrip().startswith(base64.b64encode(b"\x89PNG\r\n").decode()) else text


def _from_base64(text: str) -> bytes:
    signs = re.sub(r"\s", "", text).rstrip("=")
    if re.search("[^A-Za-z0-9+/]", signs) or len(signs) % 4 == 1:
        raise _No
    return _png_only(base64.b64decode(signs + "=" * (-len(signs) % 4)))


def _png_only(data: bytes) -> bytes:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise _No
    return data


def _rated(row: Row) -> list[Any]:
    """Each two answers whose mean ratings differ, the better one first."""
    prompt, path = _bare(_text(row.get("prompt"))), row.get("img_path")
    if MARK in prompt:
        raise _No
    picture = (
        _picture(row)
        if row.get("image") is not None
        else f"{_text(row.get('id'))}.jpg"
        if path is None
        else _text(path).split("/")[-1]
    )
    cell, rated = row.get("completions"), []
    if isinstance(cell, dict):
        columns = list(cell.values())
        if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) > 1:
            raise _No
        cell = [dict(zip(cell, values, strict=True)) for values in zip(*columns, strict=True)]
    for each in cell if isinstance(cell, list) else [None]:
        if not isinstance(each, dict) or not isinstance(each.get("annotations"), dict) or not each["annotations"]:
            raise _No
        _text(each.get("model"))
        answer = _text(each.get("response")).strip()
        if MARK in answer:
            raise _No
        try:
            ratings = [float(aspect["Rating"]) for aspect in each["annotations"].values()]
            rated.append((sum(ratings) / len(ratings), answer))
        except (ValueError, TypeError, KeyError):
            rated.append((None, answer))
    pairs: list[Any] = []
    for (one, mine), (other, yours) in combinations(rated, 2):
        if one is not None and other is not None and one != other:
            texts = (mine, yours) if one > other else (yours, mine)
            sound = prompt and mine and yours and mine != yours
            pairs.append((called(picture), prompt, *texts) if sound else None)
    return pairs
