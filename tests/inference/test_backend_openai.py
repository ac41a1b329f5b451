"""A server answers a benchmark: minipovid serve says what the GGUF backend says; failures are kept apart."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bad_server import BadServer
from local_server import serving

from minipovid import tinyworld
from minipovid.common.errors import MinipovidError
from minipovid.evaluate import evaluate, find, results
from minipovid.export import export_base
from minipovid.inference import backends
from minipovid.inference.backends import Decoding
from minipovid.inference.llama_cpp import Runtime
from minipovid.tinyworld.scenes import render, unbiased_scene

SECRET = "sk-not-to-be-seen-anywhere-0123"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    export_base(str(tinyworld.CHECKPOINT), folder / "gguf", ["f16"])
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three pictures, two questions about each."""
    rows = []
    for number in range(3):
        scene = unbiased_scene(f"served-{number}")
        render(scene).save(tmp_path / f"{number}.png")
        for shape in ("circle", "star"):
            label = "yes" if shape in scene.shapes else "no"
            text = f"Is there a {shape} in the picture?"
            rows.append({"question_id": len(rows), "image": f"{number}.png", "text": text, "label": label})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "q.jsonl"


def answers(run: Path, file: Path, backend: str, folder: Path, **own: Any) -> list[str]:
    settings: Mapping[str, Mapping[str, Any]] = {"pope": {"suffix": "", "max_tokens": 16}}
    with backends.opened(backend, folder, own) as answering:
        (result,) = evaluate(run, find([f"pope={file}"], settings), answering)
    return [row["answer"] for row in results.rows(run, result)]


def test_the_served_model_answers_as_its_files_do(
    base: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same six answers, whole sentences, through HTTP and PNG."""
    run = tmp_path / "run"
    wanted = answers(run, questions, "gguf", base)
    assert len(set(wanted)) > 2
    with Runtime.open(base) as model, serving(model) as url:
        monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", url)
        monkeypatch.setenv("MINIPOVID_MODEL_API_KEY", SECRET)
        assert answers(run, questions, "openai", run, model="tinyworld", concurrency=3) == wanted
    kept = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"openai" in kept and SECRET.encode() not in kept


def test_unanswered_questions_are_told_and_asked_again(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of six is refused (HTTP 400): nothing is scored, five are kept, and only that one is asked again."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    lines = [json.dumps({**row, "text": f"row {row['question_id']}: {row['text']}"}) for row in rows]
    questions.write_text("\n".join(lines) + "\n")
    run, own = tmp_path / "run", {"model": "m", "concurrency": 2}
    script = {"*": ["say Yes"], "4": ["400", "say No"]}
    with BadServer(script) as server:
        monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", server.url)
        monkeypatch.setenv("MINIPOVID_MODEL_API_KEY", SECRET)
        with pytest.raises(MinipovidError) as error:
            answers(run, questions, "openai", run, **own)
        assert str(error.value).startswith("1 of 6 questions of pope by openai-m got no answer from openai-m; ")
        assert not (run / "scores.json").exists()
        assert answers(run, questions, "openai", run, **own) == ["Yes"] * 4 + ["No", "Yes"]
        assert [server.asked(str(number)) for number in range(6)] == [1, 1, 1, 1, 2, 1]
        assert {each.key for each in server.seen} == {f"Bearer {SECRET}"}
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("behaviour", ["cut_off_empty", "refusal_field", "filtered"])
def test_a_refused_reply_is_no_answer(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    """A refusal, a filter's silence, and a model that thought until its tokens were used up: asked again later."""
    run, own = tmp_path / "run", {"model": "m"}
    with BadServer({"*": [behaviour, *["say Yes"] * 9]}) as server:
        monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", server.url)
        with pytest.raises(MinipovidError, match="1 of 6 questions of pope by openai-m got no answer"):
            answers(run, questions, "openai", run, **own)
        assert answers(run, questions, "openai", run, **own) == ["Yes"] * 6


INTERRUPTED = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {tests!r} + "/../helpers"]
from test_backend_openai import answers
answers(Path({run!r}), Path({file!r}), "openai", Path({run!r}), model="m", concurrency=2)
"""


def _hears_ctrl_c() -> None:
    """Even where the shell that runs the tests ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interruption_keeps_what_was_answered(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the server, a quarter of a second a request, answers: in all no question is asked twice."""
    rows = [{"question_id": n, "image": "0.png", "text": f"row {n}?", "label": "no"} for n in range(24)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with BadServer({"*": ["say No"] * 99}, seconds=0.25) as server:
        monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", server.url)
        here = {"tests": str(Path(__file__).parent), "run": str(tmp_path / "run"), "file": str(questions)}
        child = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED.format(**here)],
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hears_ctrl_c,
        )
        while len(server.answered) < 4 and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        _, complaint = child.communicate(timeout=60)
        assert "KeyboardInterrupt" in complaint
        before = len(server.seen)
        server.seconds = 0.0
        assert answers(tmp_path / "run", questions, "openai", tmp_path, model="m") == ["No"] * 24
        assert len(server.seen) == 24 and before < 24


def test_a_server_that_is_not_there_ends_it_at_once(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(MinipovidError, match="is not there; start the server, or check its address"):
        answers(tmp_path / "run", questions, "openai", tmp_path, model="m")


def test_what_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MINIPOVID_MODEL_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "MINIPOVID_MODEL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with (
        pytest.raises(MinipovidError, match="name the model with --model"),
        backends.opened("openai", tmp_path),
    ):
        pass
    with pytest.raises(MinipovidError) as error, backends.opened("openai", tmp_path, {"model": "m"}):
        pass
    assert str(error.value) == (
        "No server is named: export OPENAI_API_KEY, or for a local server MINIPOVID_MODEL_BASE_URL, such as "
        "http://127.0.0.1:8080/v1."
    )


def test_a_temperature_is_part_of_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIPOVID_MODEL_BASE_URL", "http://127.0.0.1:9/v1")
    with (
        backends.opened("openai", tmp_path, {"model": "m"}) as cold,
        backends.opened("openai", tmp_path, {"model": "m"}, Decoding(0.7, 3)) as other,
    ):
        assert (cold.decoding, other.decoding) == ({}, {"temperature": 0.7})
        assert cold.identity() != other.identity()
