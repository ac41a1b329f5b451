"""Other people's data sets: what their own tools write comes in whole, goes out as TRL's columns, and TRL takes it.

The foreign files are written here by datasets, pyarrow, json and csv, never by code of ours; what comes out again is
read by `datasets` and given to TRL's own collator, beside the same rows that never went through minipovid.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import tiny_llava
import torch
from foreign_rows import ANSWERED, ASKED, FACTORY, RATED, RLAIF, RLHF, SWIFT, TRL, annotated
from PIL import Image

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.images import embedded as pictures
from minipovid.models.encoder import Encoder
from minipovid.pairs import convert
from minipovid.pairs import formats as pairs
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import BadRow, Pair, Seed, Unpaired
from minipovid.pairs.reading import rows, where
from minipovid.pairs.source import load_pairs, locate
from minipovid.recipe.schema import DataSection


class Row(NamedTuple):
    """One preference of the made-up data set, before any format."""

    prompt: str
    chosen: str
    rejected: str
    picture: str
    data: bytes

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.prompt, self.chosen, self.rejected, hashlib.sha256(self.data).hexdigest()


def drawn(seed: int, kind: str, size: tuple[int, int] = (9, 7)) -> bytes:
    noise = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    file = io.BytesIO()
    noise.save(file, kind)
    return file.getvalue()


PNG, JPEG, WEBP = drawn(1, "PNG"), drawn(2, "JPEG"), drawn(3, "WEBP")
ROWS = [
    Row("What is on the water?", "A boat at dusk.", "A boat with fishing poles.", "harbour.png", PNG),
    Row("Why, and how?", 'It is "red";\nthe sky, too.', "Two lines,\n\none empty.", "deep/sky.jpg", JPEG),
    Row("何が見えますか", "猫と犬 – ü\u2028.", "犬だけ", "neko.jpg", WEBP),  # a WebP that is called .jpg
    Row("What is on the water?", "One boat.", "No boat.", "harbour.png", PNG),  # a picture twice
]


class Written(NamedTuple):
    """A foreign data set: its file, and the folder its picture paths are relative to."""

    path: Path
    images: Path | None


def laid_out(folder: Path) -> Path:
    """The pictures as files."""
    for row in ROWS:
        file = folder / "photos" / row.picture
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row.data)
    return folder / "photos"


def as_json(folder: Path, content: list[Any], name: str = "data.json") -> Path:
    path = folder / name
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    path.write_text(lines if name.endswith("l") else json.dumps(content, indent=1), encoding="utf-8")
    return path


def as_parquet(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any]) -> Path:
    """As `datasets` itself writes it: pictures are struct<bytes, path>."""
    known = {name: features.get(name, datasets.Value("string")) for name in columns}
    path = folder / "data.parquet"
    datasets.Dataset.from_dict(columns, features=datasets.Features(known)).to_parquet(path)
    return path


def embedded(row: Row) -> dict[str, Any]:
    return {"bytes": row.data, "path": row.picture}


def trl_jsonl(folder: Path) -> Written:
    content = [
        {
            "images": [row.picture],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.prompt}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": row.chosen}]}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
        }
        for row in ROWS
    ]
    return Written(as_json(folder, content, "data.jsonl"), laid_out(folder))


def trl_strings(folder: Path) -> Written:
    content = [
        {"image": row.picture, "prompt": f"<image>\n{row.prompt}", "chosen": row.chosen, "rejected": row.rejected}
        for row in ROWS
    ]
    return Written(as_json(folder, content), laid_out(folder))


def trl_implicit(folder: Path) -> Written:
    """No prompt column, and pictures as data URLs or bare base64 inside JSON."""
    content = []
    for number, row in enumerate(ROWS):
        asked = {"role": "user", "content": row.prompt}
        picture = base64.b64encode(row.data).decode()
        sides = {side: [asked, {"role": "assistant", "content": getattr(row, side)}] for side in ("chosen", "rejected")}
        content.append({"images": [picture if number % 2 else f"data:image/png;base64,{picture}"], **sides})
    return Written(as_json(folder, content, "data.jsonl"), None)


def trl_parquet(folder: Path) -> Written:
    """HuggingFaceH4/rlaif-v_formatted: every part has every field, absent ones are null."""
    part = {"text": datasets.Value("string"), "type": datasets.Value("string")}
    message = [{"content": [part], "role": datasets.Value("string")}]

    def turns(role: str, words: str) -> list[dict[str, Any]]:
        picture = [{"text": None, "type": "image"}] if role == "user" else []
        return [{"content": [*picture, {"text": words, "type": "text"}], "role": role}]

    columns = {
        "chosen": [turns("assistant", row.chosen) for row in ROWS],
        "rejected": [turns("assistant", row.rejected) for row in ROWS],
        "images": [[embedded(row)] for row in ROWS],
        "prompt": [turns("user", row.prompt) for row in ROWS],
    }
    features = {"images": datasets.List(datasets.Image()), **dict.fromkeys(["chosen", "rejected", "prompt"], message)}
    return Written(as_parquet(folder, columns, features), None)


def rlaif_v(folder: Path) -> Written:
    columns = {
        "ds_name": ["RLAIF-V"] * 4,
        "image": [embedded(row) for row in ROWS],
        "question": [row.prompt for row in ROWS],
        "chosen": [row.chosen for row in ROWS],
        "rejected": [row.rejected for row in ROWS],
        "origin_dataset": ["COCO"] * 4,
        "origin_split": ["{}"] * 4,
        "idx": ["0", "1", "2", "0"],  # repeats, which must not matter
        "image_path": [row.picture for row in ROWS],
    }
    return Written(as_parquet(folder, columns, {"image": datasets.Image()}), None)


def rlaif_v_shards(folder: Path) -> Written:
    """A folder of parquet files, written by pyarrow alone, its metadata file and a hidden one beside them."""
    shards = folder / "shards"
    shards.mkdir()
    for number, part in enumerate([ROWS[:3], ROWS[3:]]):
        table = [
            {"image": embedded(row), "question": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
            for row in part
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), shards / f"RLAIF-V_00{number}.parquet")
    (shards / ".hidden.json").write_text("[]")
    (shards / "README.md").write_text("about")
    return Written(shards, None)


def rlhf_v(folder: Path) -> Written:
    texts = [{"question": row.prompt, "chosen": row.chosen, "rejected": row.rejected} for row in ROWS]
    columns = {
        "ds_name": ["RLHF-V"] * 4,
        "image": [embedded(row) for row in ROWS],
        "text": [json.dumps(text) for text in texts],
        "origin_dataset": ["COCO"] * 4,
        "origin_split": ["{}"] * 4,
        "idx": [0, 1, 2, 3],
        "image_path": [row.picture for row in ROWS],
    }
    return Written(as_parquet(folder, columns, {"image": datasets.Image(), "idx": datasets.Value("int64")}), None)


def completions(row: Row) -> list[dict[str, Any]]:
    """The worse answer first."""
    return [
        {"annotations": annotated("3", "5", "1"), "model": "qwen", "response": row.rejected},
        {"annotations": annotated("4", "5", "5"), "model": "gpt4v", "response": row.chosen},
    ]


def vlfeedback(folder: Path) -> Written:
    """The jsonl as published, with an id twice: the picture is <id>.jpg of the unpacked archive."""
    archive = folder / "merged_images"
    archive.mkdir()
    ids = ["svit-1", "m3it-2", "m3it-3", "svit-1"]
    for name, row in zip(ids, ROWS, strict=True):
        (archive / f"{name}.jpg").write_bytes(row.data)
    content = [
        {"id": name, "prompt": row.prompt, "models": ["qwen", "gpt4v"], "completions": completions(row)}
        for name, row in zip(ids, ROWS, strict=True)
    ]
    return Written(as_json(folder, content, "vlfeedback_80k.jsonl"), archive)


def vlfeedback_parquet(folder: Path) -> Written:
    """As its loading script builds it: a sequence of objects, which datasets stores as an object of lists."""
    rated = {"Rating": datasets.Value("string"), "Rationale": datasets.Value("string")}
    completion = {
        "annotations": dict.fromkeys(annotated("1", "1", "1"), rated),
        "model": datasets.Value("string"),
        "response": datasets.Value("string"),
    }
    photos = laid_out(folder)
    (photos / "sky.jpg").write_bytes(JPEG)
    each = [completions(row) for row in ROWS]
    columns = {
        "id": [f"vlf-{number}" for number in range(4)],
        "prompt": [row.prompt for row in ROWS],
        "models": [["qwen", "gpt4v"]] * 4,
        "completions": [{key: [one[key] for one in both] for key in both[0]} for both in each],
        "img_path": [f"/home/me/.cache/merged_images/{row.picture}" for row in ROWS],
    }
    sequences = {key: datasets.List(feature) for key, feature in completion.items()}
    features = {"models": datasets.List(datasets.Value("string")), "completions": sequences}
    return Written(as_parquet(folder, columns, features), photos)


def llamafactory(folder: Path) -> Written:
    content = [
        {
            "conversations": [{"from": "human", "value": f"<image>{row.prompt}"}],
            "chosen": {"from": "gpt", "value": row.chosen},
            "rejected": {"from": "gpt", "value": row.rejected},
            "images": [row.picture],
        }
        for row in ROWS
    ]
    return Written(as_json(folder, content), laid_out(folder))


def llamafactory_parquet(folder: Path) -> Written:
    """llamafactory/RLHF-V and Zhihui/VLFeedback."""
    turn = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    columns = {
        "conversations": [[{"from": "human", "value": f"<image>\n{row.prompt}"}] for row in ROWS],
        "chosen": [{"from": "gpt", "value": row.chosen} for row in ROWS],
        "rejected": [{"from": "gpt", "value": row.rejected} for row in ROWS],
        "images": [[embedded(row)] for row in ROWS],
    }
    features = {
        "conversations": [turn],
        "chosen": turn,
        "rejected": turn,
        "images": datasets.List(datasets.Image()),
    }
    return Written(as_parquet(folder, columns, features), None)


def swift_turns(row: Row, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"<image>{row.prompt}"}, {"role": "assistant", "content": answer}]


def ms_swift(folder: Path) -> Written:
    """Absolute paths, as its manual prefers them."""
    photos = laid_out(folder)
    content = [
        {
            "messages": swift_turns(row, row.chosen),
            "images": [str(photos / row.picture)],
            "rejected_response": row.rejected,
        }
        for row in ROWS
    ]
    return Written(as_json(folder, content, "data.jsonl"), photos)


def ms_swift_messages(folder: Path) -> Written:
    content = [
        {
            "messages": [{"role": "system", "content": ""}, *swift_turns(row, row.chosen)],
            "images": [row.picture],
            "rejected_messages": swift_turns(row, row.rejected),
            "rejected_images": [row.picture],
        }
        for row in ROWS
    ]
    return Written(as_json(folder, content, "data.jsonl"), laid_out(folder))


def table(folder: Path, delimiter: str = ",", encoding: str = "utf-8") -> Written:
    photos = laid_out(folder)
    path = photos / "pairs.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["image", "prompt", "chosen", "rejected", "note"])
        writer.writerows([row.picture, row.prompt, row.chosen, row.rejected, "x"] for row in ROWS)
    return Written(path, None)


def excel_table(folder: Path) -> Written:
    """As spreadsheets of other countries save it: semicolons and a byte-order mark. The folder stands for the file."""
    return Written(table(folder, ";", "utf-8-sig").path.parent, None)


def povid_list(folder: Path) -> Written:
    content = [
        {
            "id": number,
            "image": row.picture,
            "conversations": [
                {"from": "human", "value": f"<image>\n{row.prompt}"},
                {"from": "gpt", "value": row.chosen},
            ],
            "rejected_conversations": [
                {"from": "human", "value": f"<image>\n{row.prompt}"},
                {"from": "gpt", "value": row.rejected},
            ],
        }
        for number, row in enumerate(ROWS)
    ]
    return Written(as_json(folder, content), laid_out(folder))


def our_lines(folder: Path) -> Written:
    content = [
        {"id": str(i), "image": row.picture, "prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
        for i, row in enumerate(ROWS)
    ]
    return Written(as_json(folder, content, "data.jsonl"), laid_out(folder))


FOREIGN: list[tuple[str, Callable[[Path], Written]]] = [
    ("trl", trl_jsonl),
    ("trl", trl_strings),
    ("trl", trl_implicit),
    ("trl", trl_parquet),
    ("rlaif_v", rlaif_v),
    ("rlaif_v", rlaif_v_shards),
    ("rlhf_v", rlhf_v),
    ("vlfeedback", vlfeedback),
    ("vlfeedback", vlfeedback_parquet),
    ("llamafactory", llamafactory),
    ("llamafactory", llamafactory_parquet),
    ("ms_swift", ms_swift),
    ("ms_swift", ms_swift_messages),
    ("csv", table),
    ("csv", excel_table),
    ("povid", povid_list),
    ("jsonl", our_lines),
]
IDS = [write.__name__ for _, write in FOREIGN]


def test_every_format_on_the_shelf_is_among_these() -> None:
    assert {name for name, _ in FOREIGN} == set(pairs.formats())


# --- the round trip ---


@pytest.fixture(scope="module")
def collator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL 1.16's own, with the processor of a tiny LLaVA."""
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    processor = AutoProcessor.from_pretrained(tiny_llava.build(tmp_path_factory.mktemp("llava") / "model"))
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: {% endif %}{% for part in m['content'] %}"
        "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        "{{ ' ASSISTANT: ' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    )
    return DataCollatorForVisionPreference(processor)


@pytest.fixture(scope="module")
def direct(collator: Any) -> dict[str, torch.Tensor]:
    """What TRL makes of the rows where minipovid had no hand in them."""
    sides = (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    examples = [
        {
            "images": [Image.open(io.BytesIO(row.data))],
            **{side: [{"role": role, "content": getattr(row, side)}] for side, role in sides},
        }
        for row in ROWS
    ]
    return dict(collator(examples))


def as_rows(table: datasets.Dataset, beside: Path | None) -> list[tuple[str, str, str, str]]:
    """The rows of TRL's columns as `Row.key`; pictures are bytes, or paths relative to `beside`."""
    found = []
    for row in table:
        (image,) = row["images"]
        data = image["bytes"] if beside is None else (beside / image).read_bytes()
        ((prompt,), (chosen,), (rejected,)) = row["prompt"], row["chosen"], row["rejected"]
        assert (prompt["role"], chosen["role"], rejected["role"]) == ("user", "assistant", "assistant")
        found.append((prompt["content"], chosen["content"], rejected["content"], hashlib.sha256(data).hexdigest()))
    return found


@pytest.mark.parametrize(("name", "write"), FOREIGN, ids=IDS)
def test_every_format_goes_round(
    name: str, write: Callable[[Path], Written], tmp_path: Path, collator: Any, direct: dict[str, torch.Tensor]
) -> None:
    source, target = write(tmp_path / "s" if (tmp_path / "s").mkdir() else tmp_path / "s"), tmp_path / "mine"
    assert pairs.detect(source.path) == name
    counts = convert.import_pairs(source.path, target, images=source.images)
    assert counts == (name, 4, 0, 0, len(set(os.listdir(target / "images"))), sum(map(len, set(data_of(target)))))
    assert [key_of(pair, target) for pair in jsonl.read(target / "pairs.jsonl")] == [row.key for row in ROWS]
    assert len({pair.id for pair in jsonl.read(target / "pairs.jsonl") if isinstance(pair, Pair)}) == 4

    assert convert.export_trl(target / "pairs.jsonl", target / "trl.jsonl") == 4
    lines = datasets.load_dataset("json", data_files=str(target / "trl.jsonl"), split="train", cache_dir=tmp_path / "c")
    assert as_rows(lines, target) == [row.key for row in ROWS]

    assert convert.export_trl(target / "pairs.jsonl", tmp_path / "trl.parquet") == 4
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "trl.parquet"), split="train", cache_dir=tmp_path / "c"
    )
    raw = table.cast_column("images", datasets.List(datasets.Image(decode=False)))
    assert as_rows(raw, None) == [row.key for row in ROWS]
    taken = collator([{key: row[key] for key in ("images", "prompt", "chosen", "rejected")} for row in table])
    assert {key: value.tolist() for key, value in taken.items()} == {k: v.tolist() for k, v in direct.items()}


def key_of(pair: Any, root: Path) -> tuple[str, str, str, str]:
    assert isinstance(pair, Pair)
    return pair.prompt, pair.chosen, pair.rejected, hashlib.sha256((root / pair.image).read_bytes()).hexdigest()


def data_of(root: Path) -> list[bytes]:
    return [file.read_bytes() for file in (root / "images").iterdir()]


def test_our_export_is_a_format_that_we_import(tmp_path: Path) -> None:
    """TRL's columns from us and back: ids, texts and picture names stay what they were."""
    folder = tmp_path / "s"
    folder.mkdir()
    source = our_lines(folder)
    convert.import_pairs(source.path, tmp_path / "a", images=source.images)
    for suffix in ("jsonl", "parquet"):
        convert.export_trl(tmp_path / "a" / "pairs.jsonl", tmp_path / f"trl.{suffix}")
        assert pairs.detect(tmp_path / f"trl.{suffix}") == "trl"
        convert.import_pairs(tmp_path / f"trl.{suffix}", tmp_path / suffix)
        ours, again = (list(jsonl.read(tmp_path / where / "pairs.jsonl")) for where in ("a", suffix))
        assert [(p.id, p.image, p.prompt) for p in again if isinstance(p, Pair)] == [
            (p.id, p.image, p.prompt) for p in ours if isinstance(p, Pair)
        ]


# --- a recipe reads every format as it is ---


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Counts characters: what an encoder says of tokens is tests/train/test_data.py's matter."""
    return Encoder.__new__(Anything)


class Anything(Encoder):
    """Takes every pair."""

    def __call__(self, question: str, texts: Mapping[str, str]) -> Any:
        return None


@pytest.mark.parametrize(("name", "write"), FOREIGN, ids=IDS)
def test_a_recipe_reads_every_format(
    name: str,
    write: Callable[[Path], Written],
    tmp_path: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "s").mkdir()
    source = write(tmp_path / "s")
    before = sorted(path for path in (tmp_path / "s").rglob("*"))
    images = None if source.images is None else str(source.images)
    section = DataSection(path=str(source.path), format=name, images=images)
    found, bad = load_pairs(section, encoder)
    root = locate(section)[1]
    assert not bad and [key_of(pair, root) for pair in found] == [row.key for row in ROWS]
    assert [type(pair.image) for pair in found] == [str] * 4, "no bytes may ride along into training"
    assert sorted(path for path in (tmp_path / "s").rglob("*")) == before, "the user's folder is left alone"
    assert (root == tmp_path / "cache" / "minipovid" / "pictures") == (
        source.images is None and name not in ("csv", "jsonl", "povid")
    )


# --- bad rows ---

GOOD = {"trl": TRL, "ms_swift": SWIFT, "llamafactory": FACTORY, "rlhf_v": RLHF, "rlaif_v": RLAIF, "vlfeedback": RATED}
LONG = [ASKED, {"role": "assistant", "content": "Hm."}, ASKED]
GONE: Any = object()


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("trl", {"images": GONE}, "images is missing; a preference about a picture needs one"),
        ("trl", {"images": []}, "images is missing; a preference about a picture needs one"),
        ("trl", {"images": ["a.png", "b.png"]}, "images holds 2 pictures, and a pair has one; leave the row out or sp"),
        ("trl", {"images": [7]}, "images is 7, but it must be text in quotes"),
        ("trl", {"images": [{"bytes": None, "path": None}]}, "images names no picture"),
        ("trl", {"images": ["https://x.org/a.png"]}, "images is the address 'https://x.org/a.png'; minipovid fetches"),
        ("trl", {"images": ["data:image/png;base64,%%"]}, "images is not base64: "),
        ("trl", {"images": ["data:image/png;base64,QUJD"]}, "images holds 3 bytes that are no picture (b'ABC')"),
        ("trl", {"prompt": GONE}, "prompt is missing"),
        ("trl", {"chosen": GONE}, "chosen is missing"),
        ("trl", {"rejected": 3}, "rejected is 3, but it must be text in quotes"),
        ("trl", {"rejected": " "}, "the rejected answer is empty"),
        ("trl", {"rejected": "A. "}, "the chosen and the rejected answer are equal, so there is nothing to prefer"),
        ("trl", {"prompt": "<image>"}, "the question is empty"),
        ("trl", {"prompt": "<image>Why?<image>"}, "prompt has <image> in the middle or twice; a pair has one picture"),
        ("trl", {"prompt": "USER: <image>\nWhy? ASSISTANT:"}, "prompt has <image> in the middle or twice"),
        ("trl", {"chosen": "<image> A."}, "chosen has <image> in an answer; only the question has the picture"),
        ("trl", {"prompt": LONG}, "prompt holds 2 exchanges; split it into rows of one question each"),
        ("trl", {"prompt": [{"role": "system", "content": "Be brief."}, ASKED]}, "prompt has a system turn, which a p"),
        ("trl", {"prompt": [{"role": "tool", "content": "x"}]}, "prompt has a turn from 'tool'; known are human, user"),
        ("trl", {"prompt": [{"role": "user"}]}, "prompt: content is missing"),
        ("trl", {"prompt": ["Why?"]}, "prompt is ['Why?'], but it must be a list of turns"),
        ("trl", {"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "prompt has a part {'type': 'video'};"),
        ("trl", {"chosen": [ASKED]}, "chosen must be one answer from the assistant; its turns are from ['user']"),
        ("trl", {"rejected_images": ["b.png"]}, "rejected_images is another picture; a pair's answers are about one"),
        (
            "trl",
            {"prompt": GONE, "chosen": SWIFT["messages"], "rejected": [{**ASKED, "content": "How?"}, ANSWERED]},
            "the two answers open with different questions: 'Why?' and 'How?'",
        ),
        ("ms_swift", {"messages": [*LONG, ANSWERED]}, "messages holds 2 exchanges; split it into rows of"),
        ("ms_swift", {"messages": [ASKED]}, "messages must "),
        ("ms_swift", {"messages": "Why?"}, "messages is 'Why?', but it must be a list of turns"),
        ("ms_swift", {"rejected_response": GONE}, "rejected_response is missing"),
        ("ms_swift", {"rejected_images": ["b.png"]}, "rejected_images is another picture; a pair's answers are about"),
        (
            "ms_swift",
            {"rejected_messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "B."}]},
            "messages and rejected_messages ask different questions: 'Why?' and 'How?'",
        ),
        ("llamafactory", {"conversations": GONE}, "conversations is missing"),
        ("llamafactory", {"system": "Be brief."}, "system holds a text, which a pair cannot keep; take it out, or put"),
        ("llamafactory", {"chosen": {"from": "gpt"}}, "chosen: content is missing"),
        ("llamafactory", {"chosen": {"from": "human", "value": "A."}}, "chosen must be one answer from the assistant;"),
        ("llamafactory", {"rejected": "B."}, "rejected is 'B.', but it must be a list of turns"),
        ("rlhf_v", {"text": "{'question': 'Why?'}"}, "text: it is not JSON: Expecting property name"),
        ("rlhf_v", {"text": "[]"}, "text: it holds [], not an object with question, chosen and rejected"),
        ("rlhf_v", {"text": "{}"}, "text: chosen is missing"),
        ("rlhf_v", {"text": GONE}, "text: text is missing"),
        ("rlaif_v", {"question": None}, "question is None, but it must be text in quotes"),
        ("rlaif_v", {"image": {"bytes": "QUJD", "path": "a.png"}}, "image holds 3 bytes that are no picture (b'ABC')"),
        ("vlfeedback", {"completions": GONE}, "completions is None, but it must be a list of answers with their annot"),
        ("vlfeedback", {"completions": {"model": ["m"], "response": []}}, "completions has columns of unequal lengths"),
        ("vlfeedback", {"completions": [{"model": "m", "response": "A."}]}, "annotations is None, but it must be an o"),
        ("vlfeedback", {"id": GONE}, "id is missing"),
    ],
)  # fmt: skip
def test_a_bad_row_gets_its_sentence(name: str, change: dict[str, Any], why: str, tmp_path: Path) -> None:
    row = {key: value for key, value in {**GOOD[name], **change}.items() if value is not GONE}
    path = as_json(tmp_path, [GOOD[name], row], "data.jsonl")
    first, bad = pairs.reader(name).read(path)
    assert isinstance(first, Pair)
    assert isinstance(bad, BadRow) and bad.where.startswith("row 2") and bad.why.startswith(why)


def test_the_question_may_stand_before_or_behind_its_picture(tmp_path: Path) -> None:
    path = as_json(tmp_path, [{**TRL, "prompt": words} for words in ("<image>\nWhy?", "Why?\n<image>", " Why? ")])
    assert [row.prompt for row in pairs.reader("trl").read(path) if isinstance(row, Pair)] == ["Why?"] * 3


def test_vlfeedback_pairs_are_made_by_its_own_rule(tmp_path: Path) -> None:
    """Means 4.67, 3, 3 and none: of six combinations one is a tie, three have no score; left are 0-1 and 0-2."""
    ratings = [("4", "5", "5"), ("3", "3", "3"), ("4", "1", "4"), ("5", "N/A", "5")]
    four = [
        {"annotations": annotated(*rating), "model": f"m{i}", "response": f"Answer {i}."}
        for i, rating in enumerate(ratings)
    ]
    tied = [{**each, "annotations": annotated("1", "2", "3")} for each in four]
    path = as_json(tmp_path, [{**RATED, "completions": four}, {**RATED, "completions": tied}], "v.jsonl")
    one, two, none = pairs.reader("vlfeedback").read(path)
    assert [(p.id, p.chosen, p.rejected, p.image) for p in (one, two) if isinstance(p, Pair)] == [
        ("a:1:0-1", "Answer 0.", "Answer 1.", "a.jpg"),
        ("a:1:0-2", "Answer 0.", "Answer 2.", "a.jpg"),
    ]
    assert isinstance(one, Pair) and one.source == {
        "chosen": "m0 (VLFeedback, 4.67)",
        "rejected": "m1 (VLFeedback, 3.00)",
    }
    assert isinstance(none, Unpaired) and none.why == "no two of its answers have different scores"


def test_what_a_rule_leaves_out_stops_no_run(tmp_path: Path, encoder: Encoder) -> None:
    tied = [{**each, "annotations": annotated("1", "2", "3")} for each in RATED["completions"]]
    path = as_json(tmp_path, [RATED, {**RATED, "completions": tied}], "v.jsonl")
    (tmp_path / "a.jpg").write_bytes(JPEG)
    found, bad = load_pairs(DataSection(path=str(path), format="vlfeedback"), encoder)
    assert len(found) == 1 and [row.where for row in bad] == ["row 2"]


def test_a_table_of_a_spreadsheet_is_read_as_it_is(tmp_path: Path) -> None:
    """Excel's first line, capitals, UTF-16 and rows of empty cells."""
    text = "sep=;\r\nID;Image;Prompt;Chosen;Rejected\r\n7;a.png;Why?;A;B\r\n;;;;\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode("utf-16"))
    assert pairs.detect(tmp_path / "t.csv") == "csv"
    (pair,) = pairs.reader("csv").read(tmp_path / "t.csv")
    assert isinstance(pair, Pair) and (pair.id, pair.image, *pair.texts().values()) == ("7", "a.png", "A", "B")


def test_a_table_counts_rows_as_a_spreadsheet_does(tmp_path: Path) -> None:
    text = 'image,prompt,chosen,rejected\na.png,Why?,"A,\nb.",B.\na.png,Why?,A.\n\na.png,Why?,A.,\n'
    (tmp_path / "t.csv").write_text(text)
    first, short, empty = pairs.reader("csv").read(tmp_path / "t.csv")
    assert isinstance(first, Pair) and first.chosen == "A,\nb." and where(first, 1) == "row 2"
    assert short == BadRow("row 3", "the row has 3 cells, the header 4; a text with a comma in it needs quotes")
    assert empty == BadRow("row 5", "the rejected answer is empty")


def test_rows_of_turns_or_with_a_placeholder_are_not_minipovids_own(tmp_path: Path) -> None:
    """Other tools' rows may have the very same columns; the placeholder is no part of the question."""
    row = {"id": "1", "image": "a.png", "prompt": "<image>\nWhy?", "chosen": "A.", "rejected": "B."}
    turns = [{"role": "user", "content": "Why?"}]
    for prompt, form in (("<image>\nWhy?", "trl"), (turns, "trl"), ("Why?", "jsonl")):
        path = as_json(tmp_path, [{**row, "prompt": prompt}])
        (pair,) = pairs.reader(pairs.detect(path)).read(path)
        assert (pairs.detect(path), isinstance(pair, Pair) and pair.prompt) == (form, "Why?")


def test_a_table_whose_quotes_do_not_match_loses_no_row_in_silence(tmp_path: Path) -> None:
    head = "image,prompt,chosen,rejected\n"
    (tmp_path / "t.csv").write_text(head + 'a.png,Why?,"A"b "" c,B\na.png,Why?,A,B\n')
    bad, good = pairs.reader("csv").read(tmp_path / "t.csv")
    assert isinstance(bad, BadRow) and bad.where == "row 2" and "a quote within a cell in quotes" in bad.why
    assert isinstance(good, Pair) and good.chosen == "A"
    (tmp_path / "t.csv").write_text(head + 'a.png,Why?,"A,B\na.png,Why?,A,B\n')
    with pytest.raises(MinipovidError, match="t.csv cannot be read: .* a quote within a cell in quotes"):
        list(pairs.reader("csv").read(tmp_path / "t.csv"))


@pytest.mark.parametrize("own", ['{"image": "b.png", %s}', '{%s, "image": "b.png"}'])
def test_a_row_that_says_two_things_under_one_key_is_bad(own: str, tmp_path: Path) -> None:
    said = '"id": "1", "image": "a.png", "prompt": "Why?", "chosen": "A.", "rejected": "B."'
    (tmp_path / "a.jsonl").write_text(own % said)
    (bad,) = pairs.reader("jsonl").read(tmp_path / "a.jsonl")
    assert isinstance(bad, BadRow) and "image stands there twice, with " in bad.why
    row = {"image": {"path": "a.png"}, "text": '{"question": "Q?", "chosen": "A.", "rejected": "B.", "chosen": "C."}'}
    (bad,) = pairs.reader("rlhf_v").read(as_json(tmp_path, [row]))
    assert (
        isinstance(bad, BadRow) and bad.why == "text: chosen stands there twice, with 'A.' and 'C.'; keep one of them"
    )


# --- pictures inside and beside the file ---


def test_one_data_set_may_hold_both_kinds_only_when_imported(tmp_path: Path, encoder: Encoder) -> None:
    inside = {"images": [{"bytes": base64.b64encode(PNG).decode()}], **{k: TRL[k] for k in ("prompt", "chosen")}}
    path = as_json(tmp_path, [{**inside, "rejected": "B."}, TRL], "data.jsonl")
    (tmp_path / "a.png").write_bytes(JPEG)
    section = DataSection(path=str(path), format="trl", on_bad_row="skip")
    _, (bad,) = load_pairs(section, encoder)
    assert bad.where == "row 2" and "is a file, and the first pair's is inside the data file" in bad.why
    assert convert.import_pairs(path, tmp_path / "mine").pictures == 2


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "photos/../../secret.png", "link.png"])
def test_no_picture_comes_from_outside_the_folder(name: str, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(PNG)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "a.png").write_bytes(PNG)
    path = as_json(root, [TRL, {**TRL, "images": [name]}])
    convert.import_pairs(path, tmp_path / "mine")
    (bad,) = json.loads((tmp_path / "mine" / "import.json").read_text())["bad_rows"]
    assert bad["where"] == "row 2" and "lies outside the image folder" in bad["why"]


def test_bad_pictures_are_named_and_not_kept(tmp_path: Path) -> None:
    """Missing, no picture, cut short inside and beside the file; the sentence names the row, the rest comes in."""
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(PNG[:60])
    inside = {"bytes": base64.b64encode(PNG[:60]).decode(), "path": "x.png"}
    images = ["a.png", "absent.png", "text.png", "cut.png", inside, inside]
    path = as_json(tmp_path, [{**TRL, "images": [image]} for image in images])
    counts = convert.import_pairs(path, tmp_path / "mine")
    assert counts == ("trl", 1, 5, 0, 1, len(PNG))
    bad = json.loads((tmp_path / "mine" / "import.json").read_text())["bad_rows"]
    assert [row["where"] for row in bad] == [f"row {number}" for number in range(2, 7)]
    for row, why in zip(bad, ["There is no picture", "is not a picture", *["cut short or damaged"] * 3], strict=True):
        assert why in row["why"]
    assert data_of(tmp_path / "mine") == [PNG]


def test_pictures_get_the_extension_of_what_they_are(tmp_path: Path) -> None:
    """Each kind as Pillow writes it; images.load, which goes by content too, reads each back."""
    from minipovid.images.load import FORMATS, load

    kinds = {"JPEG2000": (".jp2", {}), "JPEG": (".jpg", {}), "TIFF": (".tif", {}), "PPM": (".ppm", {})}
    for kind in FORMATS:
        if kind == "AVIF" and kind not in Image.SAVE:
            continue
        image = pictures.embedded(drawn(5, kind, (16, 16)))
        assert image is not None and image.endswith(kinds.get(kind, (f".{kind.lower()}",))[0])
        assert load(tmp_path / pictures.Store(tmp_path).keep(image)).size == (16, 16)
    assert pictures.embedded(b"") is None and pictures.embedded(b"P7 no") is None


def test_a_picture_half_written_by_others_is_written_again(tmp_path: Path) -> None:
    image = pictures.embedded(PNG)
    assert image is not None
    (tmp_path / image).write_bytes(PNG[:10])
    pictures.Store(tmp_path).keep(image)
    assert (tmp_path / image).read_bytes() == PNG
    stamp = (tmp_path / image).stat().st_mtime_ns
    pictures.Store(tmp_path).keep(image)
    assert (tmp_path / image).stat().st_mtime_ns == stamp and os.listdir(tmp_path) == [image]


# --- import: folders, kills ---


def test_an_import_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    source = trl_jsonl(tmp_path / "s")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pairs.jsonl").write_text("precious")
    with pytest.raises(MinipovidError, match="is in use and no import of minipovid's; choose another folder"):
        convert.import_pairs(source.path, tmp_path / "mine", images=source.images)
    assert (tmp_path / "mine" / "pairs.jsonl").read_text() == "precious"
    convert.import_pairs(source.path, tmp_path / "b", images=source.images)
    convert.import_pairs(source.path, tmp_path / "b", images=source.images, limit=1)  # its own, again
    assert len(list(jsonl.read(tmp_path / "b" / "pairs.jsonl"))) == 1
    with pytest.raises(MinipovidError, match=r"holds the import of .*data\.jsonl as trl; choose another folder"):
        convert.import_pairs(our_lines(tmp_path).path, tmp_path / "b")


def test_an_import_without_a_pair_says_so(tmp_path: Path) -> None:
    path = as_json(tmp_path, [{**TRL, "chosen": "B."}])
    with pytest.raises(MinipovidError, match="no usable pair of format trl among 1 rows. The first: row 1: the chosen"):
        convert.import_pairs(path, tmp_path / "mine")


KILLED = """
import sys
from pathlib import Path
from minipovid.pairs import convert
print("begun", flush=True)
convert.import_pairs(Path(sys.argv[1]), Path(sys.argv[2]), "rlaif_v")
"""


def big_parquet(path: Path, count: int) -> None:
    rows_ = [
        {
            "image": {"bytes": drawn(n, "PNG", (24, 24)), "path": None},
            "question": f"Q{n}?",
            "chosen": "A.",
            "rejected": "B.",
        }
        for n in range(count)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows_), path)


def test_a_killed_import_goes_on_without_damage(tmp_path: Path) -> None:
    big_parquet(tmp_path / "data.parquet", 1500)
    target = tmp_path / "mine"
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data.parquet"), str(target)]
    for enough in (100, 200, 300):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"begun\n"
            wait_for(target / "images", enough)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert not (target / "pairs.jsonl").exists()
    kept = {name: (target / "images" / name).stat().st_mtime_ns for name in os.listdir(target / "images")}
    assert convert.import_pairs(tmp_path / "data.parquet", target, "rlaif_v")[1:5] == (1500, 0, 0, 1500)
    files = os.listdir(target / "images")
    assert len(files) == 1500, "no drafts are left"
    for name in files:
        data = (target / "images" / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == name.partition(".")[0]
    whole = {name for name in kept if not name.startswith(".")}
    assert whole and all((target / "images" / name).stat().st_mtime_ns == kept[name] for name in whole), "kept as it is"


def wait_for(folder: Path, files: int) -> None:
    end = time.monotonic() + 60
    while not folder.is_dir() or len(os.listdir(folder)) < files:
        assert time.monotonic() < end
        time.sleep(0.002)


# --- export ---


def test_an_export_is_whole_or_not_at_all(tmp_path: Path) -> None:
    jsonl.write(tmp_path / "pairs.jsonl", [Pair("1", "absent.png", "Q?", "A.", "B.")])
    for name in ("t.jsonl", "t.parquet"):
        with pytest.raises(MinipovidError, match=r"There is no picture .*absent.png \(row with id 1\)"):
            convert.export_trl(tmp_path / "pairs.jsonl", tmp_path / name)
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(MinipovidError, match=r"pairs.jsonl: row 1: id is missing. Mend or remove the row."):
        convert.export_trl(tmp_path / "pairs.jsonl", tmp_path / "t.parquet")
    with pytest.raises(MinipovidError, match=r"t.arrow must end in .parquet or .jsonl"):
        convert.export_trl(tmp_path / "pairs.jsonl", tmp_path / "t.arrow")
    with pytest.raises(MinipovidError, match="is the file that is exported; name another"):
        convert.export_trl(tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl")
    assert os.listdir(tmp_path) == ["pairs.jsonl"]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_picture_inside_a_row_of_ours_is_exported_too(suffix: str, tmp_path: Path) -> None:
    row = {"id": 1, "image": base64.b64encode(PNG).decode(), "prompt": "Q?", "chosen": "A.", "rejected": "B."}
    convert.export_trl(as_json(tmp_path, [row]), tmp_path / f"t.{suffix}")
    convert.import_pairs(tmp_path / f"t.{suffix}", tmp_path / "mine", "trl")
    assert data_of(tmp_path / "mine") == [PNG]


@pytest.mark.parametrize("limit", ["GROUP_ROWS", "GROUP_BYTES"])
def test_parquet_is_written_in_groups(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows or a byte at once; every row is in the file once."""
    monkeypatch.setattr(convert, limit, {"GROUP_ROWS": 3, "GROUP_BYTES": 1}[limit])
    (tmp_path / "a.png").write_bytes(PNG)
    jsonl.write(tmp_path / "pairs.jsonl", [Pair(str(n), "a.png", "Q?", "A.", "B.") for n in range(7)])
    convert.export_trl(tmp_path / "pairs.jsonl", tmp_path / "t.parquet")
    written = pyarrow.parquet.ParquetFile(tmp_path / "t.parquet")
    assert written.num_row_groups == {"GROUP_ROWS": 3, "GROUP_BYTES": 7}[limit]
    assert written.read().column("id").to_pylist() == list("0123456")


# --- which format is it? ---


def test_what_no_format_claims_is_said(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match=r"no format fits the columns instruction, output; name one of csv, jsonl"):
        pairs.detect(as_json(tmp_path, [{"instruction": "x", "output": "y"}]))
    for content, described in [
        ("[]", r"no format fits a file that holds no rows; name"),
        ("[5]", r"no format fits row 1, which is 5 and no object; name"),
        ("[{}]", r"no format fits row 1, an object without columns; name"),
        ('{"a": 1', r"no format fits row 1 \(the line is not JSON: .*\); name"),
        (
            json.dumps(dict.fromkeys(map(str, range(2000)), 0)),
            r"no format fits the columns 0, 1, .*, 11 and 1,988 more; name",
        ),
        ('{"a": {}}', "is one object of objects and no list of rows; save it as a list of rows"),
    ]:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(MinipovidError, match=described):
            pairs.detect(tmp_path / "a.json")
    with pytest.raises(MinipovidError, match="is neither parquet nor JSON nor a .csv table; convert it"):
        (tmp_path / "data.txt").write_text("hello")
        pairs.detect(tmp_path / "data.txt")


def test_a_maker_is_no_format() -> None:
    with pytest.raises(
        MinipovidError, match="llava reads good answers, not pairs; the formats of pairs are csv, jsonl, "
    ):
        pairs.reader("llava")


def test_a_new_format_is_one_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on the shelf, with nothing but `read`, is found by name and recognised."""
    body = (
        "from minipovid.pairs.pair import Pair\nfrom minipovid.pairs.reading import pairs_of, rows\n"
        "def _pair(row):\n    return Pair('', row['pic'], row['q'], row['w'], row['l'])\n"
        "def read(path):\n    yield from pairs_of(rows(path), _pair, foreign=True)\n"
    )
    (tmp_path / "brandnew.py").write_text(body)
    monkeypatch.setattr(pairs, "__path__", [*pairs.__path__, str(tmp_path)])
    assert "brandnew" in shelf.names("pairs.formats")
    path = as_json(tmp_path, [{"pic": "a.png", "q": "Q?", "w": "A.", "l": "B."}])
    assert pairs.detect(path) == "brandnew"
    (pair,) = pairs.reader("brandnew").read(path)
    assert isinstance(pair, Pair) and (pair.id, pair.image) == ("row 1", "a.png")


# --- seeds ---


def test_llava_data_gives_the_first_exchange_of_each_row(tmp_path: Path) -> None:
    def turn(speaker: str, words: str) -> dict[str, str]:
        return {"from": speaker, "value": words}

    content = [
        {"id": "1", "image": "a.png", "conversations": [turn("human", "<image>\nWhat?"), turn("gpt", "A bus.")]},
        {
            "id": "2",
            "image": "b.png",
            "conversations": [
                turn("human", "What?\n<image>"),
                turn("gpt", "A cat."),
                turn("human", "And its colour?"),
                turn("gpt", "Black."),
            ],
        },
        {"id": "3", "conversations": [turn("human", "Hi"), turn("gpt", "Hello.")]},
        {"id": "2", "image": "c.png", "conversations": [turn("human", "What?"), turn("gpt", " ")]},
    ]
    path = as_json(tmp_path, content)
    assert pairs.detect(path, "seeds") == "llava"
    assert list(pairs.seeds(path)) == [
        Seed("1", "a.png", "What?", "A bus."),
        Seed("2", "b.png", "What?", "A cat."),
        BadRow("row 3 (id 3)", "image is missing; a preference about a picture needs one"),
        BadRow("row 4 (id 2)", "the answer is empty"),
    ]


def test_a_folder_with_captions_is_seeds(tmp_path: Path) -> None:
    files = {
        "b.png": PNG,
        "b.txt": b"Two boats.\n",
        "a.jpg": JPEG,
        "c.txt": b"No picture.",
        "d.webp": WEBP,
        "d.jpg": JPEG,
    }
    for name, content in {**files, "d.txt": b"Which?", "e.txt": b"\xff", "e.png": PNG, "notes.md": b"x"}.items():
        (tmp_path / name).write_bytes(content)
    assert pairs.detect(tmp_path, "seeds") == "captions"
    assert list(pairs.seeds(tmp_path)) == [
        BadRow("row 1 (id a)", "the picture a.jpg has no caption a.txt beside it"),
        Seed("b", "b.png", "Describe this image in detail.", "Two boats."),
        BadRow("row 3 (id c)", "the caption c.txt stands beside 0 pictures of its name"),
        BadRow("row 4 (id d)", "the caption d.txt stands beside 2 pictures of its name"),
        BadRow(
            "row 5 (id e)",
            f"The caption {tmp_path}/e.txt cannot be read: it is not UTF-8 text; save it as UTF-8",
        ),
    ]


def test_a_table_and_any_pairs_are_seeds_too(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,prompt,answer\na.png,Why?,Because.\n")
    assert list(pairs.seeds(tmp_path / "t.csv")) == [Seed("row 2", "a.png", "Why?", "Because.")]
    path = as_json(tmp_path, [RLHF])
    assert list(pairs.seeds(path)) == [Seed("1", "a.png", "Why?", "A.", "person (RLHF-V)")]


def test_an_id_keeps_its_row_across_processes(tmp_path: Path) -> None:
    (pair,) = pairs.reader("trl").read(as_json(tmp_path, [TRL]))
    assert isinstance(pair, Pair) and pair.id == "row 1"
    again = pickle.loads(pickle.dumps(pair))  # noqa: S301 - our own, as a data loader sends it to its workers
    assert again == pair and where(again, 9) == "row 1"
    assert where(Pair("x", "a.png", "Q?", "A.", "B."), 9) == "row 9 (id x)"


# --- the rows of a file: tests/common/test_data_files.py; here, in the words of pairs ---


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    big_parquet(tmp_path / "d.parquet", 3)
    whole = (tmp_path / "d.parquet").read_bytes()
    (tmp_path / "d.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MinipovidError, match="The pairs .* cannot be read"):
        list(rows(tmp_path / "d.parquet"))


def test_folders_hold_one_kind_of_data_file(tmp_path: Path) -> None:
    with pytest.raises(MinipovidError, match="holds no data file"):
        list(rows(tmp_path))
    as_json(tmp_path, [TRL], "b.jsonl")
    as_json(tmp_path, [TRL, 5], "a.jsonl")
    assert list(rows(tmp_path)) == [("1 of a.jsonl", TRL), ("2 of a.jsonl", 5), ("1 of b.jsonl", TRL)]
    as_json(tmp_path, [TRL], "c.json")
    with pytest.raises(MinipovidError, match=r"holds \.json and \.jsonl files; name the one that holds the pairs"):
        list(rows(tmp_path))
