"""Data sets of pairs and of good answers, in every format and container; through pairs.formats and `pairs import`.

A data set is a few rows about known pictures. A spelling writes them in any dialect that docs/pairs.md and the data
sets' own pages allow; a damage changes a row or the bytes of the file. The oracle reads the file slowly, by the rules
of the documents: a text without its picture's placeholder, one question and two different answers about one picture.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from io import BytesIO
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import REFUSED, Case, harmed, words

Row = dict[str, Any]
FORMATS = ["csv", "jsonl", "llamafactory", "ms_swift", "povid", "rlaif_v", "rlhf_v", "trl", "vlfeedback"]
SEEDS = ["csv answers", "llava"]
DEEP = "@@deep@@"  # in a row: so many brackets that no parser wants them, once it is text
MARK = "<image>"


def _png(level: int) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (2, 3), (level, 40, 200)).save(file, "PNG")
    return file.getvalue()


PICTURES = {f"p{number}.png": _png(number * 50) for number in range(4)}


def case(dice: Random, folder: Path) -> Case:
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    form = dice.choice([*FORMATS, *SEEDS])
    container = dice.choice(
        ["csv", "tsv", "semicolons"] if form.startswith("csv") else ["lines", "list", "parquet", "lines"]
    )
    odd = (
        []
        if dice.random() < 0.7 or form.startswith("csv") or container == "parquet"
        else [dice.choice(["wrapped", "indented"])]
    )
    rows = [_row(dice, form, container, str(number)) for number in range(dice.randint(1, 4))]
    notes, is_damaged = odd[:], dice.random() < 0.5
    if is_damaged and dice.random() < 0.6:
        place = dice.randrange(len(rows))
        how, rows[place] = _hurt(dice, rows[place])
        notes.append(how)
    data = _written(dice, rows, odd[0] if odd else container, notes)
    if is_damaged and (not notes or dice.random() < 0.3):
        how, data = harmed(dice, data)
        notes.append(how)
    may_refuse = is_damaged or any(note != "utf-8-sig" for note in notes)
    suffix = {"parquet": ".parquet", "list": ".json", "lines": ".jsonl", "csv": ".csv", "tsv": ".tsv"}.get(
        container, ".csv"
    )
    path = folder / f"data{suffix}"
    path.write_bytes(data)
    imported = not is_damaged and form in FORMATS and dice.random() < 0.2

    def act() -> Any:
        return _imported(path, folder / "mine") if imported else _read(path, form, named=is_damaged)

    made = " ".join([form, *(["imported"] if imported else []), "as", container, *notes])
    return Case(made, data, act, lambda: _meant(path, data, form, imported), may_refuse, _differs(may_refuse))


def _read(path: Path, form: str, named: bool) -> list[tuple[Any, ...] | str]:
    """Each row as (picture, texts...), or why it is refused. Unless named, the format is recognised."""
    from minipovid.common.errors import MinipovidError
    from minipovid.pairs import formats
    from minipovid.pairs.pair import BadRow

    ability = "seeds" if form in SEEDS else "read"
    name = form.split()[0]
    if not named and formats.detect(path, ability) != name:
        raise AssertionError(f"recognised as {formats.detect(path, ability)}")
    items = list(formats.seeds(path, name) if form in SEEDS else formats.reader(name).read(path))
    ids = [item.id for item in items if not isinstance(item, BadRow)]
    assert len(set(ids)) == len(ids), "ids repeat"
    if ids or items and not any(type(item) is BadRow for item in items):
        return [item.why if isinstance(item, BadRow) else _plain(item) for item in items]
    raise MinipovidError(items[0].why if items else "no row")


def _plain(item: Any) -> tuple[Any, ...]:
    answers = (item.answer,) if hasattr(item, "answer") else (item.chosen, item.rejected)
    return _called(getattr(item.image, "data", str(item.image))), *(text.strip() for text in (item.prompt, *answers))


def _imported(path: Path, to: Path) -> list[tuple[Any, ...] | str]:
    from minipovid.common.errors import MinipovidError
    from minipovid.pairs.convert import import_pairs

    import_pairs(path, to)
    for bad in json.loads((to / "import.json").read_text(encoding="utf-8"))["bad_rows"]:
        raise MinipovidError(bad["why"])
    rows = [json.loads(line) for line in (to / "pairs.jsonl").read_text(encoding="utf-8").split("\n") if line]
    texts = ("prompt", "chosen", "rejected")
    return [(_called((to / row["image"]).read_bytes()), *(row[key].strip() for key in texts)) for row in rows]


def _differs(may_refuse: bool) -> Callable[[Any, Any], str]:
    def compare(got: list[Any], want: list[Any]) -> str:
        if len(got) != len(want):
            return f"{'more' if len(got) > len(want) else 'fewer'} rows"
        for read, meant in zip(got, want, strict=True):
            if isinstance(read, str):
                if meant is not None and not may_refuse:
                    return f"a sound row refused: {read}"
            elif meant is None:
                return "a bad row accepted"
            elif read != meant:
                return "another picture" if read[1:] == meant[1:] else "other texts"
        return ""

    return compare


def _called(picture: str | bytes) -> str | bytes:
    """The picture's name, where it is one of ours by path or content."""
    if isinstance(picture, str):
        return picture.removeprefix("./")
    return next((name for name, data in PICTURES.items() if data == picture), picture)


# --- spellings ---


def _row(dice: Random, form: str, container: str, number: str) -> Row:
    prompt, chosen, rejected = words(dice) + "?", words(dice) + ".", words(dice, 6) + " !"
    human, gpt = dice.choice([("human", "gpt"), ("user", "assistant")])
    marked = dice.choice([f"{MARK}\n{prompt}", f"{MARK}{prompt}", f"{prompt}\n{MARK}", prompt])
    ids = [number, f"{number:0>12}", int(number), *([float(number), None] if form not in ("jsonl", "povid") else [])]

    def turn(who: str, text: str) -> Row:
        return {"from": who, "value": text} if human == "human" else {"role": who, "content": text}

    def parts(text: str, picture: bool) -> list[Row]:
        return [*([{"type": "image"}] if picture else []), {"type": "text", "text": text}]

    if form.startswith("csv"):
        row = {"image": _cell(dice, "csv"), "prompt": prompt}
        row |= {"answer": chosen} if form == "csv answers" else {"chosen": chosen, "rejected": rejected}
    elif form == "jsonl":
        row = {
            "id": dice.choice(ids),
            "image": dice.choice(_paths()),
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
        }
        if dice.random() < 0.3:
            row |= {"source": {"chosen": "person"}, "spans": [{"start": 0, "end": 1, "kind": "object"}]}
    elif form == "llamafactory":
        row = {"conversations": [turn(human, marked)], "chosen": turn(gpt, chosen), "rejected": turn(gpt, rejected)}
        row["images"] = [_cell(dice, container)]
    elif form == "ms_swift":
        asked, (human, gpt) = marked, ("user", "assistant")
        row = {"messages": [turn(human, asked), turn(gpt, chosen)], "images": [_cell(dice, container)]}
        lost = {"rejected_messages": [turn(human, asked), turn(gpt, rejected)]}
        row |= dice.choice([{"rejected_response": rejected}, lost])
    elif form == "povid":
        row = {"id": dice.choice(ids), "image": dice.choice(_paths())}
        for key, text in {"conversations": chosen, "rejected_conversations": rejected}.items():
            row[key] = [{"from": "human", "value": marked}, {"from": "gpt", "value": text}]
    elif form in ("rlaif_v", "rlhf_v"):
        texts = {"question": prompt, "chosen": chosen, "rejected": rejected}
        row = {
            "ds_name": form,
            "image": _cell(dice, container),
            "idx": dice.choice([number, int(number)]),
            "image_path": None,
        }
        row |= texts if form == "rlaif_v" else {"text": json.dumps(texts), "origin_dataset": "x"}
    elif form == "trl":
        row = dice.choice([{"images": [_cell(dice, container)]}, {"image": _cell(dice, container)}])
        asked = [{"role": "user", "content": dice.choice([prompt, marked, parts(prompt, True)])}]
        won, lost = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
        row |= dice.choice([
            {"prompt": asked, "chosen": won, "rejected": lost},
            {"prompt": marked, "chosen": chosen, "rejected": rejected},
            {"chosen": [*asked, *won], "rejected": [*asked, *lost]},
        ])  # fmt: skip
        row |= dice.choice([{}, {"rejected_images": None}])
    elif form == "vlfeedback":
        kinds = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")

        def rated(model: int) -> Row:
            notes = {kind: {"Rating": dice.choice(["1", "3", "5", "4", "N/A"]), "Rationale": "so"} for kind in kinds}
            return {"model": f"m{model}", "response": words(dice, 6) + f" {model}", "annotations": notes}

        row = {"id": number, "prompt": prompt, "models": ["m0"], "completions": [rated(model) for model in range(4)]}
        row |= {"img_path": f"some/where/{dice.choice(list(PICTURES))}"}
    else:
        more = [turn(human, "and?"), turn(gpt, "so")] if dice.random() < 0.3 else []
        row = {
            "id": dice.choice(ids),
            "image": dice.choice(_paths()),
            "conversations": [turn(human, marked), turn(gpt, chosen), *more],
        }
    if form in ("csv", "trl", "llamafactory", "ms_swift") and dice.random() < 0.5:
        row["id"] = number if container == "parquet" else dice.choice(ids)
    if form != "jsonl" and dice.random() < 0.3:
        row |= {"split": "train", "note": None}
    items = list(row.items())
    dice.shuffle(items)
    return dict(items)


def _paths() -> list[str]:
    return [*PICTURES, "./p1.png"]


def _cell(dice: Random, container: str) -> Any:
    """A picture as a cell may hold it."""
    name, data = dice.choice(list(PICTURES.items()))
    plain = base64.b64encode(data).decode()
    if container == "parquet":  # one type per column
        return {"bytes": data, "path": name}
    url = f"data:image/png;base64,{dice.choice([plain, plain.rstrip('='), base64.encodebytes(data).decode()])}"
    cells: list[Any] = [name, f"./{name}", url, plain, plain.rstrip("="), base64.encodebytes(data).decode()]
    return dice.choice(
        cells if container == "csv" else [*cells, {"bytes": plain, "path": name}, {"bytes": None, "path": name}]
    )


def _written(dice: Random, rows: list[Row], container: str, notes: list[str]) -> bytes:
    """The file's bytes; what no document promises is noted."""
    if container == "parquet":
        import pyarrow
        import pyarrow.parquet

        file = BytesIO()
        keys = dict.fromkeys(key for row in rows for key in row)
        try:
            table = pyarrow.table({key: [row.get(key) for row in rows] for key in keys})
        except (pyarrow.ArrowException, OverflowError, UnicodeError, ValueError):  # a column of several types
            table = pyarrow.table({key: [json.dumps(row.get(key), default=str) for row in rows] for key in keys})
            notes.append("all of it text")
        pyarrow.parquet.write_table(table, file)
        return file.getvalue()
    ascii_ = dice.random() < 0.5
    if container in ("csv", "tsv", "semicolons"):
        text = _table(dice, rows, {"csv": ",", "tsv": "\t", "semicolons": ";"}[container])
    elif container == "lines":
        text = dice.choice(["\n", "\r\n", "\n\n"]).join(
            json.dumps(row, ensure_ascii=ascii_) for row in rows
        ) + dice.choice(["\n", ""])
    elif container == "indented":
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_, indent=2) for row in rows)
    else:
        tree = {"data": rows} if container == "wrapped" else rows
        text = json.dumps(tree, ensure_ascii=ascii_, indent=dice.choice([None, 1, "\t"]))
    text = text.replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)
    encoding = dice.choice(["utf-8"] * 12 + ["utf-8-sig"] * 2 + ["utf-16", "cp1252"])
    notes += [encoding] * (encoding != "utf-8")
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _table(dice: Random, rows: list[Row], between: str) -> str:
    def cell(value: Any) -> str:
        text = "" if value is None else value if isinstance(value, str) else str(value)
        quotes = dice.random() < 0.3 or any(sign in text for sign in '",;\t\r\n')
        return '"' + text.replace('"', '""') + '"' if quotes else text

    names = list(dict.fromkeys(key for row in rows for key in row))
    lines = [names, *([row.get(name) for name in names] for row in rows)]
    return "".join(between.join(map(cell, line)) + dice.choice(["\n", "\r\n"]) for line in lines)


# --- damages ---


def _hurt(dice: Random, row: Row) -> tuple[str, Row]:
    """(how, the row with something wrong in it, at any depth)."""
    row = json.loads(json.dumps(row, default=lambda data: base64.b64encode(data).decode()))
    key = dice.choice(list(row))
    how = dice.choice(["dropped", "renamed", "retyped", "retyped", "within", "within", "text", "contradicted"])
    if how == "dropped":
        del row[key]
    elif how == "renamed":
        row[dice.choice(["Image", "picture", key.upper(), f" {key} ", "text"])] = row.pop(key)
    elif how == "retyped":
        row[key] = dice.choice(
            [None, 7, 1e400, float("nan"), 10**400, True, [], {}, [[]], "", " ", [row[key], row[key]], DEEP]
        )
    elif how == "within":
        row[key] = _within(dice, row[key])
    elif how == "text":
        row[key] = dice.choice(
            ["\ud800", "http://x.y/a.png", "../p0.png", "a\0b", f"{MARK} x {MARK} y", "data:image/png;base64,AAAA"]
        )
    else:
        row |= {"rejected_images": ["p3.png"], "system": "Be brief."}
    return how, row


def _within(dice: Random, value: Any) -> Any:
    """One leaf, or one branch, of a tree changed."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        return {**value, key: _within(dice, value[key])}
    if isinstance(value, list) and value:
        place = dice.randrange(len(value))
        if dice.random() < 0.3:
            return dice.choice([value + [value[place]], value[:place] + value[place + 1 :], value[::-1]])
        return [*value[:place], _within(dice, value[place]), *value[place + 1 :]]
    strange = [None, 3, {}, [], "", MARK, "system", "\udfff", float("inf")]
    return dice.choice(strange + ([f"{value}{MARK}", f" {value}\n", value * 2] if isinstance(value, str) else []))


# --- the oracle ---


class _No(Exception):
    """A row or a file that means nothing."""


def _meant(path: Path, data: bytes, form: str, imported: bool) -> Any:
    """What `_read` must give of the file."""
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
            lists = [
                value for value in tree.values() if isinstance(value, list) and all(isinstance(x, dict) for x in value)
            ]
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
        names = [name.strip() for name in table[0]] if table and table[0] else []
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
        else:
            wrong = wrong or state == "closing" or sign == '"'
            state, cell = "bare" if state == "start" else state, cell + sign
    return lines


def _items(row: Row, form: str) -> list[Any]:
    """(picture, texts...) of each pair in a row; one None where it makes none. Raises _No for a bad row."""
    if form == "vlfeedback":
        return _rated(row) or [None]
    if form in ("jsonl", "povid"):
        if (
            isinstance(row.get("id"), bool)
            or not isinstance(row.get("id"), (str, int, float))
            or row["id"] != row["id"]
        ):
            raise _No
        picture = _text(row.get("image"))
    else:
        picture = _picture(row)
    texts = _texts(row, form)
    if not all(text.strip() for text in texts) or len(texts) == 3 and texts[1].strip() == texts[2].strip():
        raise _No
    if form != "jsonl" and (MARK in "".join(texts)):
        raise _No
    return [(_called(picture), *(text.strip() for text in texts))]


def _texts(row: Row, form: str) -> tuple[str, ...]:
    """(question, chosen, rejected) or (question, answer)."""
    if form == "jsonl":
        if set(row) - {"id", "image", "prompt", "chosen", "rejected", "source", "spans"}:
            raise _No
        for span in row.get("spans") or []:
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
        ours = _exchange(_turns(row.get("messages")))
        _same_picture(row)
        if row.get("rejected_messages") is None:
            return *ours, _text(row.get("rejected_response"))
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
        head, _, content = text.partition(",")
        if not head.endswith(";base64"):
            raise _No
        return _from_base64(content)
    if "://" in text:
        raise _No
    return _from_base64(text) if text.startswith(base64.b64encode(b"\x89PNG\r\n").decode()) else text


def _from_base64(text: str) -> bytes:
    signs = re.sub(r"[\r\n\t ]", "", text).rstrip("=")
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
            sound = prompt and MARK not in prompt and mine and yours and mine != yours
            pairs.append((_called(picture), prompt, *texts) if sound else None)
    return pairs
