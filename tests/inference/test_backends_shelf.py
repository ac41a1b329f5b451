"""The backends' shelf is walked: whatever stands there opens, answers, says what it is and closes as `eval` relies on.

All are opened over one run folder of the tiny world, each with those options of OPTIONS that it declares.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from local_server import serving
from trained_run import a_run

from minipovid import tinyworld
from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.export import export_base
from minipovid.inference import backends
from minipovid.inference.backends import Backend, Decoding, Question
from minipovid.inference.llama_cpp import Runtime
from minipovid.recipe.strict import validated
from minipovid.tinyworld import scenes, text

NAMES = shelf.names("inference.backends")
PROMPTS = [*map(text.question, scenes.SHAPES[:3]), text.CAPTION_PROMPTS[0]]

each_backend = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = a_run(tmp_path_factory.mktemp("runs") / "run")
    export_base(str(tinyworld.CHECKPOINT), folder / "gguf", ["f16"])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(2):
        scenes.render(scenes.unbiased_scene(f"shelf {number}")).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", autouse=True)
def server(run: Path) -> Iterator[None]:
    with Runtime.open(run) as model, serving(model) as url, pytest.MonkeyPatch.context() as environment:
        environment.setenv("MINIPOVID_MODEL_BASE_URL", url)
        yield


def questions(image: str = "0.png") -> list[Question]:
    return [Question(str(number), image, prompt, {}, 32) for number, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a backend may need to be told."""
    file = tmp_path_factory.mktemp("answers") / "answers.json"
    file.write_text(json.dumps({question.id: f"Answer {question.id}." for question in questions()}))
    return {"model": "tinyworld", "predictions": str(file)}


def opened(name: str, run: Path, own: dict[str, Any], decoding: Decoding = backends.GREEDY) -> Any:
    declared = {key: value for key, value in own.items() if key in backends.option_names(name)}
    return backends.opened(name, run, declared, decoding)


def test_the_whole_shelf_is_seen() -> None:
    files = {path.stem for path in Path(backends.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(NAMES) == files and len(files) >= 4


@each_backend
def test_the_file_defines_what_the_page_says(name: str) -> None:
    """`option_names` reads the text, and says what Python would; every option has a default, and a wrong one is
    refused in one sentence."""
    module = shelf.load("inference.backends", name)
    assert module.__doc__ and module.Options.__doc__ and module.open.__doc__
    assert is_dataclass(module.Options) and module.Options.__dataclass_params__.frozen
    assert backends.option_names(name) == [field.name for field in fields(module.Options)]
    assert all(field.default is not MISSING for field in fields(module.Options))
    assert [*inspect.signature(module.open).parameters] == ["run", "options", "decoding"]
    assert asdict(validated(module.Options, {}, name)) == asdict(module.Options())
    for options in ({"nonsense": 1}, {backends.option_names(name)[0]: object()}):
        with pytest.raises(MinipovidError, match=rf"^{name}: ") as error:
            validated(module.Options, options, name)
        assert "\n" not in str(error.value)


def test_options_are_read_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delitem(sys.modules, f"minipovid.inference.backends.{name}", raising=False)
        assert backends.option_names(name)
        assert f"minipovid.inference.backends.{name}" not in sys.modules
    assert backends.option_names("none_such") == []


@each_backend
def test_what_cannot_be_opened_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is not there, and no option set."""
    for variable in ("MINIPOVID_MODEL_BASE_URL", "OPENAI_BASE_URL", "OPENAI_API_KEY", "MINIPOVID_MODEL_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(MinipovidError) as error, backends.opened(name, tmp_path / "nowhere"):
        pass
    assert re.fullmatch(r"[^\n]+\.", str(error.value))


@each_backend
def test_answers_come_in_order_and_again(name: str, run: Path, own: dict[str, Any], pictures: Sequence[Path]) -> None:
    """One for each question, text, the same when asked again and one by one; about pictures and about none."""
    with opened(name, run, own) as backend:
        backend.check(questions())
        together = list(backend.answers(questions(), pictures[0]))
        assert len(together) == len(PROMPTS) and all(isinstance(answer, str) and answer for answer in together)
        assert together == [answer.strip() for answer in together]
        alone = [answer for question in questions() for answer in backend.answers([question], pictures[0])]
        assert alone == together == list(backend.answers(questions(), pictures[0]))
        backwards = list(backend.answers(questions()[::-1], pictures[0]))
        assert backwards[::-1] == together
        assert len(list(backend.answers(questions(image="")[:2], None))) == 2


@each_backend
def test_identity(name: str, run: Path, own: dict[str, Any], pictures: Sequence[Path]) -> None:
    """Ready for JSON, the same before and after answers and when opened again, another at another temperature; the
    name is a part of file names and begins with the file's own."""
    with ExitStack() as stack:
        backend, again = (stack.enter_context(opened(name, run, own)) for _ in range(2))
        warm: Backend = stack.enter_context(opened(name, run, own, Decoding(0.7, 3)))
        backend.check(questions())
        before = json.dumps(backend.identity(), sort_keys=True)
        assert len(list(backend.answers(questions()[:1], pictures[0]))) == 1
        assert before == json.dumps(backend.identity(), sort_keys=True) == json.dumps(again.identity(), sort_keys=True)
        assert "backend" in backend.identity()
        assert re.fullmatch(rf"{name}(-[\w-]+)?", backend.name) and backend.name == warm.name
        assert isinstance(backend.concurrency, int) and backend.concurrency >= 1
        assert backend.decoding == {} and json.dumps(dict(warm.decoding))
        assert (warm.identity() != backend.identity()) == bool(warm.decoding)
