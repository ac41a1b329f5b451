"""The card tells what is known and no more; the Modelfile writes what Chat writes; LM Studio gets the pair."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import yaml

from minipovid.common.errors import MinipovidError
from minipovid.export import naming
from minipovid.export.card import Facts, write_card
from minipovid.export.lm_studio import lm_studio
from minipovid.export.naming import FILE_NAME, Origin, title
from minipovid.export.ollama import go_template, write_modelfile
from minipovid.models.chat_template import VICUNA, Chat, Turn
from minipovid.recipe import read as recipes
from minipovid.recipe import schema

RECIPE = """
name: my-run
model: {path: llava-hf/llava-1.5-7b-hf, revision: abc123, load_in_4bit: true}
lora: {r: 128, alpha: 256}
data: {path: /home/somebody/secret/preference_data.json, images: /home/somebody/photos, format: povid}
stages:
  - {loss: {name: dpo, beta: 0.1}, epochs: 3}
  - {loss: {name: povid, variant: proper}, learning_rate: 2.0e-7}
train: {learning_rate: 1.0e-6, gradient_accumulation_steps: 8}
"""
LLAVA = title("llava-hf/llava-1.5-7b-hf", 0, "minipovid")
CHATML = Chat(
    begin="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "", "<|im_end|>\n"),
    picture="<image>\n",
    opening="<|im_start|>assistant\n",
    assistant="<|im_start|>assistant\n",
    end="<|im_end|>",
    after="\n",
)
QUOTED = Chat('"""', ('"\\', "é"), ("{{ ", "-", " }}"), "<image>", 'a"""', 'a"""b', "</s>", "\n\t")
MISTRAL = Chat(
    begin="", system=None, user=("[INST] ", "", " [/INST]"), picture="<image>\n", opening="", assistant=" ", end="</s>"
)


@pytest.fixture
def recipe(tmp_path: Path) -> schema.Recipe:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return recipes.read(tmp_path / "recipe.yaml")


def mmproj(path: Path, tensor: str = "v.class_embd") -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_tensor(tensor, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """RUN/gguf with two text files, the mmproj, the adapter, and another model's file."""
    place = tmp_path / "run" / "gguf"
    place.mkdir(parents=True)
    for name, size in ((LLAVA.text("q8_0"), 8000), (LLAVA.text("q4_k_m"), 4000), (LLAVA.lora(), 300)):
        (place / name).write_bytes(bytes(size))
    (place / "llava-1.5-7B-minipovid-v1.0-Q4_K_M-notes.txt").write_text("x")
    (place / "other-1B-minipovid-v1.0-F16.gguf").write_bytes(b"x")
    mmproj(place / LLAVA.mmproj())
    return place


def front_matter(card: str) -> dict[str, Any]:
    """What the Hub takes: from a first line of dashes to the next line that begins with them."""
    found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert found
    parsed = yaml.safe_load(found[1])
    assert isinstance(parsed, dict)
    return parsed


def section(card: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading}"
    return found[1]


# --- the card ---


def test_the_whole_card(folder: Path, recipe: schema.Recipe) -> None:
    (folder / "Modelfile").write_text("FROM x")
    run = folder.parent
    (run / "scores.json").write_text(
        json.dumps(
            {
                "pope.gguf-f16": {
                    "headline": ["accuracy"],
                    "figures": {"accuracy": [0.87654, 0.8, 0.91234], "precision": [0.5, 0.4, 0.6]},
                },
                "chair.gguf-q8_0": {"headline": ["chair_i"], "figures": {"chair_i": [None, None, None]}},
            }
        )
    )
    row = {"file": "Q8_0", "MiB": 6829.5, "KL": 0.00123, "agreement": 0.99, "kept": 0.98, "verdict": "ok | fine"}
    stale = {**row, "file": "Q4_0", "stamp": "made of another adapter"}
    (run / "verify.json").write_text(json.dumps({"ok": True, "pairs": 32, "table": [row, stale], "causes": []}))
    origin = Origin(license="llama2", languages=("en",), tags=("dpo", "povid"))
    card = write_card(folder, Facts(LLAVA, VICUNA, origin, recipe, run)).read_text()

    assert front_matter(card) == {
        "license": "llama2",
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "pipeline_tag": "image-text-to-text",
        "library_name": "gguf",
        "language": ["en"],
        "tags": ["gguf", "llama.cpp", "minipovid", "dpo", "povid"],
    }
    files = section(card, "Files")
    assert files.count("\n| `") == 4 and "other-1B" not in files and "notes" not in files
    assert (
        "| `llava-1.5-7B-minipovid-v1.0-Q8_0.gguf` | 8000 bytes | language model; 8.5 bits: next to no loss |" in files
    )
    assert "| benchmark | by | figure | value | 95 % |" in card and "precision" not in card
    assert "| pope | gguf-f16 | accuracy | 0.877 | 0.8 to 0.912 |" in card
    assert "| chair | gguf-q8_0 | chair_i |  |  |" in card
    assert "on 32 pairs that training never saw" in card
    assert "| Q8_0 | 6830 | 0.00123 | 0.99 | 0.98 | ok \\| fine |" in card
    assert "Q4_0" not in card
    training = section(card, "Training")
    assert "- stage 1: dpo: beta 0.1, learning rate 1e-06, epochs 3\n" in training
    assert "- stage 2: povid: variant proper, learning rate 2e-07, epochs 1\n" in training
    assert "LoRA on the language model, rank 128, alpha 256" in training and "8 pairs for each optimiser" in training
    assert "`preference_data.json`" in training and "secret" not in card and "somebody" not in card
    assert "llama2" in section(card, "Licence")


def test_every_command_names_files_that_are_there(folder: Path) -> None:
    card = write_card(folder, Facts(LLAVA, VICUNA)).read_text()
    named = set(re.findall(r"[\w.-]+\.gguf", card))
    assert {name for name in named if "BASE" not in name} == {path.name for path in folder.glob("*llava*.gguf")}
    commands = [shlex.split(line) for line in card.splitlines() if line.startswith(("llama-", "minipovid ", "ollama "))]
    assert len(commands) == 3 + 2 + 1
    server = next(command for command in commands if command[0] == "llama-server")
    assert server[server.index("-m") + 1] == LLAVA.text("q8_0")
    assert server[server.index("--mmproj") + 1] == LLAVA.mmproj()
    assert "**Ollama**" not in card  # no Modelfile


def test_what_is_not_known_is_left_out(folder: Path) -> None:
    """A base model of a local folder: no licence, no base, no scores, no training."""
    for path in folder.glob("*"):
        path.unlink()
    here = title("/models/my thing 2b", 0, "base")
    (folder / here.text("f16")).write_bytes(b"x")
    card = write_card(folder, Facts(here, VICUNA)).read_text()
    assert set(front_matter(card)) == {"pipeline_tag", "library_name", "tags"}
    assert re.findall(r"^## (.*)", card, re.MULTILINE) == ["Files"]
    assert "None" not in card and "/models" not in card
    assert "my-thing 2B, as it is, in GGUF files" in card


def test_only_clip_towers_have_the_class_token_s_limit(folder: Path) -> None:
    with_token = section(write_card(folder, Facts(LLAVA, VICUNA)).read_text(), "Limits elsewhere")
    assert "PR #13321 (May 2025)" in with_token and "0.505" in with_token and "0c1e57098" in with_token
    mmproj(folder / LLAVA.mmproj(), "v.patch_embd.weight")  # SigLIP
    without = section(write_card(folder, Facts(LLAVA, VICUNA)).read_text(), "Limits elsewhere")
    assert "class token" not in without and "PR #" not in without
    assert "begin the text with it" in without


def test_a_format_with_nothing_around_the_picture_loses_nothing(folder: Path) -> None:
    bare = Chat("", None, ("Q: ", "", "\n"), "<image>", "A:", "A: ", "</s>")
    card = write_card(folder, Facts(LLAVA, bare)).read_text()
    assert "The text around a picture" not in card
    assert '--image photo.jpg -p "What is on the table?"' in card
    assert "--image photo.jpg -p $'\\nWhat is on the table?'" in write_card(folder, Facts(LLAVA, VICUNA)).read_text()


@pytest.mark.parametrize("text", ["no", "a: b # c", "- x\n---\n", "'\"", "naïve 猫", "2023-01-01"])
def test_no_text_breaks_the_front_matter(folder: Path, text: str) -> None:
    origin = Origin(license=text, license_name=text, languages=(text,), tags=(text,))
    parsed = front_matter(write_card(folder, Facts(LLAVA, VICUNA, origin)).read_text())
    assert (parsed["license"], parsed["language"], parsed["tags"][-1]) == (text, [text], text)


# --- where things come from ---


def test_licence_is_read_from_the_base_s_card_and_never_guessed(tmp_path: Path, recipe: schema.Recipe) -> None:
    assert naming.origin(tmp_path) == Origin()
    readme = tmp_path / "README.md"
    readme.write_text(
        "---\nlanguage:\n- en\n- no\nlicense: other\nlicense_name: odd\nlicense_link: LICENSE\n---\n# x\n"
    )
    origin = naming.origin(tmp_path, recipe)
    assert origin == Origin(
        "other", "odd", "LICENSE", ("en",), "abc123", "preference_data.json", ("dpo", "povid")
    )  # YAML reads `no` as false
    keys = LLAVA.metadata("model", origin)
    assert keys["general.license"] == "other" and keys["general.license.name"] == "odd"
    assert keys["general.base_model.0.version"] == "abc123"
    assert keys["general.dataset.0.name"] == "preference_data.json"
    assert keys["general.tags"] == ["image-text-to-text", "dpo", "povid"]
    assert keys["general.languages"] == ["en"]
    for broken in (
        "# no front matter\n---\nlicense: mit\n---\n",
        "---\nlicense: [\n---\n",
        "---\n- a\n---\n",
        "---\n",
        "---\nlicense: [mit]\n---\n",
    ):
        readme.write_text(broken)
        assert naming.origin(tmp_path) == Origin()
    assert not any("license" in key or "dataset" in key or "languages" in key for key in LLAVA.metadata("mmproj"))


def test_provenance_of_a_run(tmp_path: Path, recipe: schema.Recipe) -> None:
    lines = [{"event": "data", "pairs": 240}, {"step": 10, "stage": 0}, {"event": "warning"}, {"step": 35, "stage": 1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "pairs.jsonl").write_text("abc")
    keys = naming.provenance(recipe, tmp_path)
    assert keys == {
        "minipovid.recipe": "my-run",
        "minipovid.seed": 42,
        "minipovid.losses": ["dpo beta=0.1 anchor=0.0", keys["minipovid.losses"][1]],
        "minipovid.betas": [0.1, 0.1],
        "minipovid.learning_rates": [1e-6, 2e-7],
        "minipovid.batch_size": 8,
        "minipovid.trained_in_4bit": True,
        "minipovid.data": "preference_data.json",
        "minipovid.steps": 35,
        "minipovid.pairs": 240,
        "minipovid.pairs_sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",  # FIPS 180-4
    }
    assert keys["minipovid.losses"][1].startswith("povid ") and "variant=proper" in keys["minipovid.losses"][1]


NAMES = {
    "Mixtral-8x7B-v0.1-KQ2.gguf": (None, "Mixtral", "8x7B", None, "v0.1", "KQ2", None, None),
    "Grok-100B-v1.0-Q4_0-00003-of-00009.gguf": (None, "Grok", "100B", None, "v1.0", "Q4_0", None, "00003-of-00009"),
    "Hermes-2-Pro-Llama-3-8B-v1.0-F16.gguf": (None, "Hermes-2-Pro-Llama-3", "8B", None, "v1.0", "F16", None, None),
    "Phi-3-mini-3.8B-ContextLength4k-instruct-v1.0.gguf": (
        *(None, "Phi-3-mini", "3.8B-ContextLength4k", "instruct", "v1.0"),
        *(None, None, None),
    ),
    "mmproj-Qwen2-VL-7B-v1.0-F16.gguf": ("mmproj", "Qwen2-VL", "7B", None, "v1.0", "F16", None, None),
    "Small-1B-v2.0-LoRA.gguf": (None, "Small", "1B", None, "v2.0", None, "LoRA", None),
    LLAVA.text("q4_k_m"): (None, "llava-1.5", "7B", "minipovid", "v1.0", "Q4_K_M", None, None),
    LLAVA.mmproj(): ("mmproj", "llava-1.5", "7B", "minipovid", "v1.0", "F16", None, None),
    LLAVA.lora(): (None, "llava-1.5", "7B", "minipovid", "v1.0", "F16", "LoRA", None),
    title("tinyworld", 984_200, "minipovid").text("bf16"): (
        *(None, "tinyworld", "984.2K", "minipovid", "v1.0"),
        *("BF16", None, None),
    ),
}


@pytest.mark.parametrize(("name", "parts"), NAMES.items())
def test_names_follow_ggml_s_convention(name: str, parts: tuple[str | None, ...]) -> None:
    """The first five are docs/gguf.md's own examples, the rest ours."""
    match = FILE_NAME.fullmatch(name)
    assert match and match.groups() == parts


def test_other_names_do_not() -> None:
    for name in (
        "not-a-known-arrangement.gguf",
        "llava-1.5-7B-F16.gguf",
        LLAVA.text("f16") + ".part",
        "x/" + LLAVA.lora(),
    ):
        assert not FILE_NAME.fullmatch(name)


# --- Ollama ---


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that a Modelfile here uses; written from its documentation.

    Text next to `{{-` loses its spaces. `if`, `else if`, `else`, `range` and `end` nest.
    """
    template = re.sub(r"\s*\{\{-", "{{", template)
    parts = re.split(r'\{\{ ?((?:"(?:[^"\\]|\\.)*"|[^}])*?) ?\}\}', template)
    tokens: Iterator[tuple[bool, str]] = iter((index % 2 == 1, part) for index, part in enumerate(parts))
    program, end = _block(tokens)
    assert end == ""
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return _run(program, {"messages": messages, "system": system})


def _block(tokens: Iterator[tuple[bool, str]]) -> tuple[list[Any], str]:
    """[text | action | (keyword, condition, block, else block)] up to `end` or an `else`."""
    found: list[Any] = []
    for is_action, part in tokens:
        if not is_action:
            found.append(("text", part))
        elif part == "end" or part.startswith("else"):
            return found, part
        elif part.startswith(("if ", "range ")):
            found.append(_branch(part, tokens))
        else:
            found.append(("print", part))
    return found, ""


def _branch(opening: str, tokens: Iterator[tuple[bool, str]]) -> Any:
    body, end = _block(tokens)
    if end == "end":
        return opening, body, []
    if end == "else":
        other, end = _block(tokens)
        return opening, body, other
    return opening, body, [_branch(end.removeprefix("else "), tokens)]


def _run(program: list[Any], scope: dict[str, Any]) -> str:
    written = ""
    for step in program:
        if step[0] == "text":
            written += step[1]
        elif step[0] == "print":
            written += _value(step[1], scope)
        elif step[0] == "range $i, $_ := .Messages":
            for index, message in enumerate(scope["messages"]):
                written += _run(step[1], {**scope, "i": index, **message})
        else:
            written += _run(step[1] if _true(step[0].removeprefix("if "), scope) else step[2], scope)
    return written


def _value(action: str, scope: dict[str, Any]) -> str:
    if action.startswith('"'):
        return str(json.loads(action))
    return str({".Content": scope.get("content"), "$.System": scope["system"], ".System": scope["system"]}[action])


def _true(condition: str, scope: dict[str, Any]) -> bool:
    left = len(scope["messages"]) - scope.get("i", 0)
    known = {
        "not .System": not scope["system"],
        "and $.System (eq $i 1)": scope["system"] and scope.get("i") == 1,
        "eq (len (slice $.Messages $i)) 1": left == 1,
        "gt (len (slice $.Messages $i)) 1": left > 1,
        **{f'eq .Role "{role}"': scope.get("role") == role for role in ("system", "user", "assistant")},
    }
    return bool(known[condition])


CONVERSATIONS = [
    [Turn("user", "What is this?")],
    [Turn("system", 'Be """ brief.'), Turn("user", "hi {{ x }}")],
    [Turn("user", "hi"), Turn("assistant", "yo"), Turn("user", " again\n")],
    [Turn("system", "Be\nbrief."), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    + [Turn("user", "e")],
]


@pytest.mark.parametrize("first", ["", " "])
@pytest.mark.parametrize("chat", [VICUNA, CHATML, MISTRAL, QUOTED], ids=["vicuna", "chatml", "mistral", "quoted"])
def test_the_modelfile_writes_what_chat_writes(tmp_path: Path, chat: Chat, first: str) -> None:
    path = write_modelfile(tmp_path, chat, tmp_path / LLAVA.text("q8_0"), tmp_path / LLAVA.mmproj(), first)
    text = path.read_text()
    template = text.partition('TEMPLATE """')[2].partition('"""')[0]
    for turns in CONVERSATIONS:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        assert go(template, messages) == first + chat.render(turns)
    assert text.startswith(f"FROM ./{LLAVA.text('q8_0')}\nFROM ./{LLAVA.mmproj()}\nTEMPLATE ")
    assert f'\nPARAMETER stop "{chat.end}"\n' in text
    assert text.endswith("\nPARAMETER temperature 0\nPARAMETER repeat_penalty 1\n")


def test_a_picture_s_mark_keeps_its_newline() -> None:
    """Ollama replaces [img] by the picture: with it in the text, the prompt is the one of training."""
    turns = [{"role": "user", "content": "[img]\nWhat is this?"}]
    assert go(go_template(VICUNA), turns).replace("[img]", "<image>") == VICUNA.prompt("What is this?")


def test_a_format_that_a_modelfile_cannot_hold(tmp_path: Path) -> None:
    odd = Chat("", None, ("", "", ""), "<image>", "", "", 'end"')
    with pytest.raises(MinipovidError, match="ends in 'end\"', which a Modelfile cannot name as a stop"):
        write_modelfile(tmp_path, odd, Path("a"), Path("b"))
    assert not list(tmp_path.iterdir())


# --- LM Studio ---


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def pair(folder: Path) -> Path:
    (folder / "other-1B-minipovid-v1.0-F16.gguf").unlink()
    return folder


def test_lm_studio_gets_the_pair_and_twice_is_once(folder: Path, models: Path) -> None:
    place = lm_studio(pair(folder), models)
    assert place == models / "minipovid" / "llava-1.5-7B-minipovid-v1.0"
    assert {path.name for path in place.iterdir()} == {LLAVA.text("q8_0"), LLAVA.text("q4_k_m"), LLAVA.mmproj()}
    assert all(path.samefile(folder / path.name) for path in place.iterdir())
    before = {path.name: path.stat().st_ctime_ns for path in place.iterdir()}
    assert lm_studio(folder, models) == place
    assert {path.name: path.stat().st_ctime_ns for path in place.iterdir()} == before


def test_lm_studio_follows_a_new_export(folder: Path, models: Path) -> None:
    """An export replaces files by rename: the link would go on pointing at the old weights."""
    place = lm_studio(pair(folder), models)
    (folder / "new").write_bytes(b"new weights")
    os.replace(folder / "new", folder / LLAVA.text("q8_0"))
    (folder / LLAVA.text("q4_k_m")).unlink()
    lm_studio(folder, models)
    assert (place / LLAVA.text("q8_0")).read_bytes() == b"new weights"
    assert {path.name for path in place.iterdir()} == {LLAVA.text("q8_0"), LLAVA.mmproj()}


def test_lm_studio_on_another_disk_copies(folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    place = lm_studio(pair(folder), models)
    copy = place / LLAVA.text("q8_0")
    assert not copy.samefile(folder / copy.name) and copy.read_bytes() == (folder / copy.name).read_bytes()
    before = copy.stat().st_ino
    lm_studio(folder, models)
    assert copy.stat().st_ino == before


def test_lm_studio_without_a_pair(folder: Path, models: Path) -> None:
    with pytest.raises(MinipovidError, match="needs the text and the mmproj file of one model, but .* other-1B"):
        lm_studio(folder, models)
    (pair(folder) / LLAVA.mmproj()).unlink()
    with pytest.raises(MinipovidError, match="but .* holds llava-1.5-7B-minipovid-v1.0-Q4_K_M.gguf, "):
        lm_studio(folder, models)
    with pytest.raises(MinipovidError, match="There is no folder .*nowhere; start LM Studio once"):
        lm_studio(folder, models / "nowhere")
