"""Data sets of pairs and of good answers, in every format and container; through pairs.formats and `pairs import`.

A data set is a few rows about known pictures. A spelling writes them in any dialect that docs/pairs.md and the data
sets' own pages allow; a damage changes a row or the bytes of the file. What it then means, rows_oracle.py
says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.case import Case, harmed, parquet, words
from fuzzing.rows_oracle import MARK, PICTURES, Row, called, meant

FORMATS = ["csv", "jsonl", "llamafactory", "ms_swift", "povid", "rlaif_v", "rlhf_v", "trl", "vlfeedback"]
SEEDS = ["csv answers", "llava"]
TABLES = {"csv": ",", "tsv": "\t", "semicolons": ";"}  # what stands between their cells
SUFFIXES = {
    "parquet": ".parquet",
    "list": ".json",
    "lines": ".jsonl",
    "csv": ".csv",
    "tsv": ".tsv",
    "semicolons": ".csv",
}
PATHS = [*PICTURES, "./p1.png"]
TWICE = "@@twice@@"  # before a key: the key itself again, once it is text
DEEP = "@@deep@@"  # in a row: so many brackets that no parser wants them, once it is text


def case(dice: Random, folder: Path) -> Case:
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)
    form = dice.choice([*FORMATS, *SEEDS])
    container = dice.choice(list(TABLES) if form.startswith("csv") else ["lines", "lines", "list", "parquet"])
    is_odd = container in ("lines", "list") and dice.random() < 0.3
    odd = [dice.choice(["wrapped", "indented"])] if is_odd else []
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
    path = folder / f"data{SUFFIXES[container]}"
    path.write_bytes(data)
    imported = not is_damaged and form in FORMATS and dice.random() < 0.2

    def act() -> Any:
        return _imported(path, folder / "mine") if imported else _read(path, form, named=is_damaged)

    made = " ".join([form, *(["imported"] if imported else []), "as", container, *notes])
    return Case(made, data, act, lambda: meant(path, data, form, imported), may_refuse, _differs(may_refuse))


def _read(path: Path, form: str, named: bool) -> list[tuple[Any, ...] | str]:
    """Each row as (picture, texts...), or why it is refused. Unless named, the format is recognised."""
    from minipovid.common.errors import MinipovidError
    from minipovid.pairs import formats
    from minipovid.pairs.pair import BadRow

    ability = "seeds" if form in SEEDS else "read"
    name = form.split()[0] if named else formats.detect(path, ability)
    items = list(formats.seeds(path, name) if form in SEEDS else formats.reader(name).read(path))
    ids = [item.id for item in items if not isinstance(item, BadRow)]
    assert len(set(ids)) == len(ids), "ids repeat"
    if ids or items and not any(type(item) is BadRow for item in items):
        return [item.why if isinstance(item, BadRow) else _plain(item) for item in items]
    raise MinipovidError(items[0].why if items else "no row")


def _plain(item: Any) -> tuple[Any, ...]:
    answers = (item.answer,) if hasattr(item, "answer") else (item.chosen, item.rejected)
    return called(getattr(item.image, "data", str(item.image))), *(text.strip() for text in (item.prompt, *answers))


def _imported(path: Path, to: Path) -> list[tuple[Any, ...] | str]:
    from minipovid.common.errors import MinipovidError
    from minipovid.pairs.convert import import_pairs

    import_pairs(path, to)
    for bad in json.loads((to / "import.json").read_text(encoding="utf-8"))["bad_rows"]:
        raise MinipovidError(bad["why"])
    rows = [json.loads(line) for line in (to / "pairs.jsonl").read_text(encoding="utf-8").split("\n") if line]
    texts = ("prompt", "chosen", "rejected")
    return [(called((to / row["image"]).read_bytes()), *(row[key].strip() for key in texts)) for row in rows]


def _differs(may_refuse: bool) -> Callable[[Any, Any], str]:
    def compare(got: list[Any], want: list[Any]) -> str:
        if len(got) != len(want):
            return f"{'more' if len(got) > len(want) else 'fewer'} rows"
        for read, sound in zip(got, want, strict=True):
            if isinstance(read[0], str) and isinstance(read, tuple) and read[0] not in PICTURES:
                read = "a path that names no picture, which whoever opens it refuses"
            if isinstance(read, str):
                if sound is not None and not may_refuse:
                    return f"a sound row refused: {read}"
            elif sound is None:
                return "a bad row accepted"
            elif read != sound:
                return "another picture" if read[1:] == sound[1:] else "other texts"
        return ""

    return compare


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
        row = {"id": dice.choice(ids), "image": dice.choice(PATHS)}
        row |= {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if dice.random() < 0.3:
            row |= {"source": {"chosen": "person"}, "spans": [{"start": 0, "end": 1, "kind": "object"}]}
    elif form == "llamafactory":
        row = {"conversations": [turn(human, marked)], "chosen": turn(gpt, chosen), "rejected": turn(gpt, rejected)}
        row["images"] = [_cell(dice, container)]
    elif form == "ms_swift":
        asked, human, gpt = marked, "user", "assistant"
        row = {"messages": [turn(human, asked), turn(gpt, chosen)], "images": [_cell(dice, container)]}
        lost = {"rejected_messages": [turn(human, asked), turn(gpt, rejected)]}
        row |= dice.choice([{"rejected_response": rejected}, {"rejected_response": [turn(gpt, rejected)]}, lost])
        if dice.random() < 0.2:
            row = {"query": asked, "response": chosen, "rejected_response": rejected, "images": row["images"]}
    elif form == "povid":
        row = {"id": dice.choice(ids), "image": dice.choice(PATHS)}
        for key, text in {"conversations": chosen, "rejected_conversations": rejected}.items():
            row[key] = [{"from": "human", "value": marked}, {"from": "gpt", "value": text}]
    elif form in ("rlaif_v", "rlhf_v"):
        texts = {"question": prompt, "chosen": chosen, "rejected": rejected}
        row = {"ds_name": form, "image": _cell(dice, container), "idx": dice.choice(ids[::2]), "image_path": None}
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
        row = {"id": dice.choice(ids), "image": dice.choice(PATHS)}
        row["conversations"] = [turn(human, marked), turn(gpt, chosen), *more]
    if form in ("csv", "trl", "llamafactory", "ms_swift") and dice.random() < 0.5:
        row["id"] = number if container == "parquet" else dice.choice(ids)
    if form != "jsonl" and dice.random() < 0.3:
        row |= {"split": "train", "note": None}
    items = list(row.items())
    dice.shuffle(items)
    return dict(items)


def _cell(dice: Random, container: str) -> Any:
    """A picture as a cell may hold it."""
    name, data = dice.choice(list(PICTURES.items()))
    plain = base64.b64encode(data).decode()
    if container == "parquet":  # one type per column
        return {"bytes": data, "path": name}
    url = f"data:image/png;base64,{dice.choice([plain, plain.rstrip('='), base64.encodebytes(data).decode()])}"
    cells: list[Any] = [name, f"./{name}", url, plain, plain.rstrip("="), base64.encodebytes(data).decode()]
    objects = [{"bytes": plain, "path": name}, {"bytes": None, "path": name}]
    return dice.choice(cells if container == "csv" else cells + objects)


def _written(dice: Random, rows: list[Row], container: str, notes: list[str]) -> bytes:
    """The file's bytes; what no document promises is noted."""
    if container == "parquet":
        data, is_changed = parquet(rows)
        notes += ["a column of text"] * is_changed
        return data
    ascii_ = dice.random() < 0.5
    if container in TABLES:
        text = _table(dice, rows, TABLES[container])
    elif container == "lines":
        lines = [json.dumps(row, ensure_ascii=ascii_) for row in rows]
        text = dice.choice(["\n", "\r\n", "\n\n"]).join(lines) + dice.choice(["\n", ""])
    elif container == "indented":
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_, indent=2) for row in rows)
    else:
        tree = {"data": rows} if container == "wrapped" else rows
        text = json.dumps(tree, ensure_ascii=ascii_, indent=dice.choice([None, 1, "\t"]))
    text = text.replace(TWICE, "").replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000)
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
    how = dice.choice(["dropped", "renamed", "retyped", "retyped", "within", "within", "text", "twice", "contradicted"])
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
    elif how == "twice":
        row[TWICE + key] = dice.choice([row[key], words(dice)])
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
