"""Answers of other programs, in the layouts of published scripts; through the predictions backend, as eval uses it.

The oracle holds each row against each question. A row is about a question that nothing in it contradicts: its id, its
picture, the question's own text. A column that repeats the questions is the question; what is left must be one column
of answers. Rows that name nothing stand in the order of the questions. All else must be refused: two columns of
answers, a question that is answered twice or never, an answer that is null or no text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from fuzzing.case import REFUSED, Case, harmed, parquet

Row = dict[str, Any]
TEXTS = ("model_prediction", "prediction", "model_answer", "response", "output", "caption", "text", "answer")
IDS = ("question_id", "id", "image_id", "index", "questionId")
PICTURES = ("image", "image_id", "image_path", "image_file", "img_path", "filename", "file_name")
WORDS = ("prompt", "question", "query", "text")
NAMES = {*IDS, *PICTURES, *WORDS}
OBJECTS = ["car", "dog", "cup", "cat", "fork"]


class Asked(NamedTuple):
    """A question as the benchmark's file has it."""

    id: str
    image: str
    text: str
    label: str = ""  # the right answer, where it is one word


def case(dice: Random, folder: Path) -> Case:
    spec, asked = dice.choice([_pope, _chair, _amber])(dice, folder)
    words = (
        ["Yes", "No", "Yes, it is.", "no"] if spec.startswith("pope") else ["A dog.", "Two cups.", "Nothing", "Größe"]
    )
    layout = dice.choice(list(_LAYOUTS))
    rows = [_LAYOUTS[layout](dice, question, f"{dice.choice(words)} {number}") for number, question in enumerate(asked)]
    notes = []
    if dice.random() < 0.5 and _orderless(layout, asked):
        dice.shuffle(rows)
        notes.append("shuffled")
    if dice.random() < 0.2 and layout != "mapping":
        kind = dice.choice(["floats", "extra"])
        rows = [_float_ids(row) if kind == "floats" else {**row, "seconds": 0.5, "note": None} for row in rows]
        notes.append(kind)
    is_damaged = dice.random() < 0.5
    if is_damaged and dice.random() < 0.8:
        how, rows = _hurt(dice, rows, asked)
        notes.append(how)
    container = "mapping" if layout == "mapping" else dice.choice(["lines", "list", "csv", "tsv", "parquet", "wrapped"])
    path = folder / f"answers{_SUFFIX[container]}"
    data = _written(dice, rows, container)
    if is_damaged and (not notes or dice.random() < 0.2):
        how, data = harmed(dice, data)
        notes.append(how)
    path.write_bytes(data)
    sure = layout not in ("lmms-eval", "VLMEvalKit") and container != "wrapped"
    if layout in ("image", "POPE"):  # which picture, or which question, may not say which of several it is
        sure = len({each.image if layout == "image" else each.text for each in asked}) == len(asked)
    made = " ".join([spec.split("=")[0], layout, "as", container, *notes])
    return Case(
        made, data, lambda: _answers(spec, path), lambda: _meant(data, container, asked), is_damaged or not sure
    )


def _answers(spec: str, path: Path) -> list[str | None]:
    """The answer to each question, in the order of the benchmark's file."""
    from minipovid.evaluate import find
    from minipovid.evaluate.selection import parts
    from minipovid.inference import backends

    questions = find([spec], {"amber": {"part": "generative", "mode": "robust"}} if spec.startswith("amber") else {})[
        0
    ].exam.questions
    answers: dict[int, str | None] = {}
    with backends.opened("predictions", path.parent / "run", {"predictions": str(path)}) as backend:
        backend.check(questions)
        for places in parts(questions):
            answers |= zip(places, backend.answers([questions[place] for place in places], None), strict=True)
    return [answers[place] for place in range(len(questions))]


# --- the benchmarks' files ---


def _pope(dice: Random, folder: Path) -> tuple[str, list[Asked]]:
    asked, few = [], dice.choice([2, 5])  # of two objects, many pictures are asked the same
    for number in range(dice.randint(2, 5) * 2):
        text = f"Is there a {OBJECTS[number % few]} in the image?"
        asked.append(Asked(str(number + 1), f"p{number // 2}.jpg", text, dice.choice(["yes", "no"])))
    path = folder / "coco_pope_random.json"
    keys = ("question_id", "image", "text", "label")
    rows = [dict(zip(keys, (int(each.id), *each[1:]), strict=True)) for each in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"pope={path}", asked


def _chair(dice: Random, folder: Path) -> tuple[str, list[Asked]]:
    prompt = "Please describe this image in detail."  # docs of the benchmark: OPERA's
    asked = [Asked(str(number), f"p{number}.jpg", prompt) for number in range(1, dice.randint(3, 6))]
    (folder / "objects.txt").write_text("table, desk\ndog\ncup\n")
    rows = [{"image": each.image, "objects": ["dog"]} for each in asked]
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"chair={folder / 'pictures.jsonl'}", asked


def _amber(dice: Random, folder: Path) -> tuple[str, list[Asked]]:
    asked = [Asked(str(n), f"AMBER_{n}.jpg", "Describe this image.") for n in range(1, dice.randint(3, 6))]
    queries = [{"id": int(each.id), "image": each.image, "query": each.text} for each in asked]
    told = [{"id": int(each.id), "type": "generative", "truth": ["dog"], "hallu": ["cat"]} for each in asked]
    files = {"query_generative": queries, "annotations": told, "relation": {"dog": ["puppy"], "cat": []}}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "safe_words.txt").write_text("dog\n")
    return f"amber={folder}", asked


# --- spellings ---


def _mixed(dice: Random, row: Row) -> Row:
    items = list(row.items())
    dice.shuffle(items)
    return dict(items)


def _own_id(dice: Random, each: Asked) -> Any:
    return dice.choice([each.id, int(each.id)])


_LAYOUTS: dict[str, Any] = {
    "LLaVA": lambda dice, q, said: {
        **{"question_id": int(q.id), "prompt": q.text, "text": said},
        **{"answer_id": f"x{q.id}", "model_id": "llava", "metadata": None},
    },
    "question in text": lambda dice, q, said: {
        "question_id": int(q.id),
        "image": q.image,
        "text": q.text,
        "answer": said,
    },
    "POPE": lambda dice, q, said: {"question": q.text, "answer": said},
    "id": lambda dice, q, said: {"id": _own_id(dice, q), "response": said},
    "questionId": lambda dice, q, said: {"questionId": q.id, "model_answer": said},
    "id and image": lambda dice, q, said: _mixed(dice, {"id": int(q.id), "image": q.image, "output": said}),
    "image": lambda dice, q, said: {"image": q.image, "caption": said},
    "image and question": lambda dice, q, said: _mixed(dice, {"image": q.image, "question": q.text, "answer": said}),
    "image and label": lambda dice, q, said: {"question_id": int(q.id), "label": q.label, "answer": said},
    "nothing": lambda dice, q, said: {"answer": said},
    "mapping": lambda dice, q, said: {q.id: said},
    "lmms-eval": lambda dice, q, said: {
        **{"doc_id": int(q.id) - 1, "target": q.label, "resps": [[said]], "filtered_resps": [said]},
        "doc": {"question_id": q.id, "image": q.image, "question": q.text},
    },
    "VLMEvalKit": lambda dice, q, said: {
        **{"index": int(q.id), "question": q.text, "answer": q.label.title(), "prediction": said}
    },
    "AMBER": lambda dice, q, said: {"id": int(q.id), "response": said},
}
_SUFFIX = {
    "mapping": ".json",
    "lines": ".jsonl",
    "list": ".json",
    "wrapped": ".json",
    "csv": ".csv",
    "tsv": ".tsv",
    "parquet": ".parquet",
}


def _orderless(layout: str, asked: Sequence[Asked]) -> bool:
    """Whether rows of this layout can be told apart in any order."""
    if layout in ("POPE", "nothing"):
        return False
    return layout != "image" or len({each.image for each in asked}) == len(asked)


def _float_ids(row: Row) -> Row:
    """As pandas writes whole numbers once one of them was missing."""
    return {key: float(value) if key in IDS and str(value).isdecimal() else value for key, value in row.items()}


def _written(dice: Random, rows: list[Row], container: str) -> bytes:
    keys = dict.fromkeys(key for row in rows for key in row)
    if container == "mapping":
        return json.dumps({key: value for row in rows for key, value in row.items()}).encode()
    if container == "parquet":
        return parquet(rows)[0]
    if container in ("csv", "tsv"):
        text = io.StringIO()
        quoting = csv.QUOTE_ALL if len(keys) == 1 or dice.random() < 0.3 else csv.QUOTE_MINIMAL
        writer = csv.DictWriter(text, list(keys), delimiter="," if container == "csv" else "\t", quoting=quoting)
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(cell) if isinstance(cell, (dict, list)) else cell for key, cell in row.items()}
            for row in rows
        )
        return text.getvalue().encode()
    if container == "lines":
        return "\n".join(json.dumps(row) for row in rows).encode() + dice.choice([b"\n", b""])
    return json.dumps({"answers": rows} if container == "wrapped" else rows, indent=dice.choice([None, 2])).encode()


# --- damages ---


def _hurt(dice: Random, rows: list[Row], asked: Sequence[Asked]) -> tuple[str, list[Row]]:
    rows = [dict(row) for row in rows]
    place, other = dice.randrange(len(rows)), dice.randrange(len(rows))
    row, key = rows[place], dice.choice(list(rows[place]))
    how = dice.choice(
        ["left out", "twice", "null", "number", "two answers", "foreign", "swapped", "id gone", "renamed", "reversed"]
    )
    if how == "left out":
        del rows[place]
    elif how == "twice":
        rows.insert(other, row)
    elif how == "null":
        row[key] = None
    elif how == "number":
        row[key] = dice.choice([3, 2.5, True, [], {}, float("nan"), ""])
    elif how == "two answers":
        column = dice.choice(["response", "text", "caption"])
        rows = [{**each, column: f"Otherwise {number}"} for number, each in enumerate(rows)]
    elif how == "foreign":
        row |= dice.choice([{"question_id": 99}, {"image": "other.jpg"}, {"id": "x"}, {"question": "Who is it?"}])
    elif how == "swapped":
        rows[place][key], rows[other][key] = rows[other].get(key), rows[place][key]
    elif how == "id gone":
        rows = [{name: cell for name, cell in each.items() if name not in IDS} for each in rows]
    elif how == "renamed":
        rows = [{"reply" if name == key else name: cell for name, cell in each.items()} for each in rows]
    else:
        rows = rows[::-1]
    return how, rows


# --- the oracle ---


def _meant(data: bytes, container: str, asked: Sequence[Asked]) -> Any:
    """The answer to each question, or REFUSED."""
    rows = _parsed(data, container)
    if rows is None or not rows:
        return REFUSED
    if container == "mapping":
        answers = rows[0] if isinstance(rows[0], dict) else {}
        known = all(isinstance(text, str) for text in answers.values()) and set(answers) == {each.id for each in asked}
        return [answers[each.id] for each in asked] if known else REFUSED
    if not all(isinstance(row, dict) for row in rows):
        return REFUSED
    if all(isinstance(row.get("doc_id"), int) for row in rows):
        rows = sorted(rows, key=lambda row: row["doc_id"])  # lmms-eval's place of each question
    rows = [_sample(row) for row in rows]
    questions = {_same(each.text) for each in asked}
    left = [key for key in TEXTS if any(not _null(row.get(key)) for row in rows)]
    left = [key for key in left if not all(_null(row.get(key)) or _same(row[key]) in questions for row in rows)]
    if set(left) == {"prediction", "answer"}:
        left = ["prediction"]  # VLMEvalKit's tables keep the right answer beside it
    if len(left) != 1 or not all(isinstance(row.get(left[0]), str) for row in rows):
        return REFUSED
    names = _naming(rows, asked, left[0])
    fits = [[place for place, each in enumerate(asked) if _about(row, each, names)] for row in rows]
    if [len(each) for each in fits] != [1] * len(rows):
        if len(rows) != len(asked) or any(place not in each for place, each in enumerate(fits)):
            return REFUSED
        fits = [[place] for place in range(len(rows))]
    places = [each[0] for each in fits]
    if sorted(places) != list(range(len(asked))):
        return REFUSED
    return [rows[places.index(place)][left[0]] for place in range(len(asked))]


def _sample(row: Row) -> Row:
    """lmms-eval's sample as a plain row: the document's names, and the answer as it was filtered."""
    raw, document = row.get("resps"), row.get("doc")
    said = row.get("filtered_resps", raw[0] if isinstance(raw, list) and raw else None)
    if not isinstance(said, list) or len(said) != 1:
        return row
    if not isinstance(document, dict):
        return {"response": said[0]} if "doc_id" in row else row
    own = {key: document.get(key) for key in ("question_id", "image", "question")}
    return {**own, "response": said[0]}


def _naming(rows: list[Row], asked: Sequence[Asked], answers: str) -> list[str]:
    """The columns that name questions. An id that is no question's anywhere is another program's own number, where
    something else names them."""
    names = [key for key in dict.fromkeys(key for row in rows for key in row) if key in NAMES and key != answers]
    ids = {each.id for each in asked}
    strange = [key for key in names if key in IDS[1:4] and not any(_plain(row.get(key)) in ids for row in rows)]
    strange = [key for key in strange if key not in PICTURES]
    names += [key for key in dict.fromkeys(key for row in rows for key in row) if _is_renamed(rows, key, asked)]
    return [key for key in names if key not in strange] if set(names) - set(strange) else names


def _is_renamed(rows: list[Row], key: str, asked: Sequence[Asked]) -> bool:
    """Whether a column of an unknown name has every question's id or picture once, or its words in every row."""
    cells = sorted(_plain(row.get(key)) for row in rows)
    names = sorted(each.id for each in asked), sorted(each.image for each in asked)
    return key not in NAMES and (cells in names or {*map(_same, cells)} <= {_same(each.text) for each in asked})


def _about(row: Row, each: Asked, names: Sequence[str]) -> bool:
    """Whether nothing that the row names contradicts the question."""
    for key in names:
        cell = row.get(key)
        if _null(cell):
            continue
        is_id, is_picture = _plain(cell) == each.id, str(cell).split("/")[-1] == each.image
        if key in IDS and not is_id and not (key in PICTURES and is_picture):
            return False
        if key in PICTURES and key not in IDS and not is_picture:
            return False
        if key not in NAMES and not is_id and not is_picture and _same(cell) != _same(each.text):
            return False
        if key in WORDS and _same(each.text) not in _same(cell) and _same(cell) not in _same(each.text):
            return False  # a template may be round it, and a part of it may be left out
    return True


def _null(cell: Any) -> bool:
    """Whether a cell says nothing: an empty list or object does not, either."""
    return cell is None or cell in ("", [], {}) or cell != cell


def _plain(cell: Any) -> str:
    text = str(cell).strip()
    return text[:-2] if text.endswith(".0") and text[:-2].isdecimal() else text


def _same(text: Any) -> str:
    return " ".join(str(text).split()).casefold()


def _parsed(data: bytes, container: str) -> list[Any] | None:
    """The rows, or None where the file is none."""
    try:
        if container == "parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
        text = data.decode("utf-8-sig")
        if container in ("csv", "tsv"):
            reader = csv.reader(
                io.StringIO(text, newline=""), delimiter="," if container == "csv" else "\t", strict=True
            )
            header, *lines = [line for line in reader if line]
            header = [name.strip() for name in header]
            whole = len(set(header)) == len(header) and all(len(line) == len(header) for line in lines)
            return [dict(zip(header, line, strict=True)) for line in lines] if whole else None
        if container == "lines":
            return [json.loads(line, object_pairs_hook=_once) for line in text.split("\n") if line.strip()]
        tree = json.loads(text, object_pairs_hook=_once)
        if container == "mapping":
            return [tree]
        if isinstance(tree, dict) and len(tree) == 1:
            tree = next(iter(tree.values()))
        return tree if isinstance(tree, list) else None
    except Exception:  # whatever the readers make of broken bytes
        return None


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """An object that says no two things under one key."""
    row = dict(pairs)
    if any(repr(row[key]) != repr(value) for key, value in pairs):
        raise ValueError("a key stands twice")
    return row
