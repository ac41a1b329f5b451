"""The real chain, offline: minipovid serve with a small real model as the teacher, its grammar holding the schema.

The model is the tiny world's: it knows a few dozen words and cannot follow an instruction, so most rows fail, for what
the words say. That every reply is whole JSON of the right shape all the same is the grammar's doing.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from local_server import serving

from minipovid import tinyworld
from minipovid.export import export_base
from minipovid.inference.llama_cpp import Runtime
from minipovid.inference.remote import Message
from minipovid.inference.remote.client import Teacher
from minipovid.inference.remote.server import Server
from minipovid.inference.remote.structured import parsed
from minipovid.pairs import make as making
from minipovid.pairs.formats import jsonl
from minipovid.pairs.injection import KINDS, schema
from minipovid.pairs.make.makers import povid
from minipovid.pairs.pair import BadRow, Pair, Seed

QUESTIONS = [
    ("Is there a ring in the picture?", "Yes."),
    ("Is there a star in the picture?", "No."),
    ("Describe the picture.", "A blue diamond is at the bottom left. A green triangle is at the top right."),
]


def check(reply: dict[str, Any], answer: str) -> None:
    """The reply fits the schema, said anew in plain words."""
    bounds = schema(answer)["properties"]["rejected"]
    assert list(reply) == ["rejected", "spans"]
    assert bounds["minLength"] <= len(reply["rejected"]) <= bounds["maxLength"]
    assert 1 <= len(reply["spans"]) <= 8
    for span in reply["spans"]:
        assert list(span) == ["text", "kind"] and span["kind"] in KINDS
        assert 1 <= len(span["text"]) <= 120


def patient(folder: Path) -> Path:
    """The tiny world's model as if it had been trained on prompts as long as a teacher's."""
    shutil.copytree(tinyworld.CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.mark.slow
def test_a_local_model_teaches_under_the_schema_of_the_server(drawn_world: Path, tmp_path: Path) -> None:
    picture = sorted(drawn_world.rglob("*.png"))[0].relative_to(drawn_world).as_posix()
    rows: list[Seed | BadRow] = [Seed(str(n), picture, *each) for n, each in enumerate(QUESTIONS)]
    export_base(str(patient(tmp_path / "base")), tmp_path / "gguf", ["f16"])
    with Runtime.open(tmp_path / "gguf", n_ctx=8192) as model, serving(model) as url:
        teacher = Teacher("tinyworld", Server(url), cache=tmp_path / "a.sqlite", temperature=0.0, max_tokens=700)
        counts = making.make(lambda: rows, povid.Injector(teacher), tmp_path / "to", root=drawn_world, progress=False)
        free = Teacher("tinyworld", Server(url), temperature=0.0, max_tokens=100)
        free._dropped = frozenset({"response_format"})
        told = povid.prompt("description.v1").task
        wild = free.ask([Message("system", told), Message("user", "Question:\nWhat is it?")], {}, "wild")
        again = Teacher("tinyworld", Server(url), cache=tmp_path / "a.sqlite", temperature=0.0, max_tokens=700)
        held = making.make(lambda: rows, povid.Injector(again), tmp_path / "again", root=drawn_world, progress=False)
    with pytest.raises(ValueError, match="no JSON object"):  # what this model says unheld
        parsed(wild.text)
    assert (counts.rows, counts.pairs + counts.failures, counts.left) == (3, 3, 0)
    assert 3 <= counts.this_run.requests <= 9
    assert held.this_run.requests == 0 and (held.pairs, held.failures) == (counts.pairs, counts.failures)
    with sqlite3.connect(tmp_path / "a.sqlite") as file:
        replies = [json.loads(reply) for (reply,) in file.execute("SELECT reply FROM answers")]
    assert len(replies) == counts.this_run.requests
    longest = max((answer for _, answer in QUESTIONS), key=len)
    for reply in replies:
        assert reply["finish_reason"] == "stop" and reply["usage"]["estimated"] == 0
        said = json.loads(reply["text"])
        check(said, "Yes." if len(said["rejected"]) <= 46 else longest)
    pairs = jsonl.read(tmp_path / "to/pairs.jsonl") if counts.pairs else ()  # a file without a pair is refused
    written = [pair for pair in pairs if isinstance(pair, Pair)]
    failures = [json.loads(line) for line in (tmp_path / "to/failures.jsonl").read_text("utf-8").splitlines()]
    assert {pair.id for pair in written} | {row["id"] for row in failures} == {"0", "1", "2"}
    assert all(len(row["reasons"]) == 3 and "JSON" not in " ".join(row["reasons"]) for row in failures)
