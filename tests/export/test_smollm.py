"""The whole road with a real language model: trained in NF4, merged, exported, verified, and asked what it knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import smollm
import torch
from twin import Twin, picture

from minipovid.export import export, export_merged
from minipovid.inference.llama_cpp import Runtime, Sampling
from minipovid.models.chat_template import Turn
from minipovid.recipe import read
from minipovid.train.loop import train
from minipovid.verify import verify

pytestmark = pytest.mark.slow
RECIPE = """
name: smollm
model: {{path: {base}, load_in_4bit: true, dtype: float32}}
lora: {{r: 4, alpha: 8}}
data: {{path: {pairs}, format: jsonl, max_length: 256, held_out: 10}}
train: {{max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1}}
stages: [{{learning_rate: 5.0e-3, loss: {{name: dpo}}}}]
export: {{quants: [f16]}}
"""
CAPITAL = [Turn("user", "What is the capital of France?")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained and exported; RUN/merged holds the safetensors."""
    top = tmp_path_factory.mktemp("smollm")
    base = smollm.build(top / "base")
    rows = []
    for number in range(100):  # of which a tenth is held out
        picture(number).save(top / f"{number}.png")
        row = {"id": str(number), "image": f"{number}.png", "prompt": f"What is in picture {number}?"}
        rows.append({**row, "chosen": "A grid of colours.", "rejected": "A dog beside a bicycle."})
    (top / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (top / "recipe.yaml").write_text(RECIPE.format(base=base, pairs=top / "pairs.jsonl"), encoding="utf-8")
    train(read.read(top / "recipe.yaml"), top / "run")
    export(top / "run")
    export_merged(top / "run")
    return top / "run"


@pytest.fixture(scope="module")
def runtime(run: Path) -> Iterator[Runtime]:
    with Runtime.open(run, kv_f32=True) as runtime:
        yield runtime


def test_it_is_written_as_smollm2_is(run: Path) -> None:
    """Byte-level BPE cut in SmolLM2's way, no head of its own, three heads of keys for nine of queries."""
    file = gguf.GGUFReader(next(path for path in (run / "gguf").glob("*-F16.gguf") if "mmproj" not in path.name))
    keys = {name: file.fields[name].contents() for name in file.fields if "token" not in name.rpartition(".")[2]}
    assert (keys["tokenizer.ggml.model"], keys["tokenizer.ggml.pre"]) == ("gpt2", "smollm")
    assert (keys["llama.attention.head_count"], keys["llama.attention.head_count_kv"]) == (9, 3)
    assert "output.weight" not in {tensor.name for tensor in file.tensors}


def test_the_file_answers_as_the_trained_model(run: Path) -> None:
    verdict = verify(run, pairs=10)
    assert verdict.ok, verdict.causes


def test_it_knows_the_capital_of_france(run: Path, runtime: Runtime) -> None:
    """Greedy tokens as transformers' own generate has them, from the merged safetensors."""
    twin = Twin(run / "merged")
    expected = twin.reply_ids(CAPITAL, 24)
    with runtime.say(CAPITAL, Sampling(24)) as reply:
        answer = "".join(reply)
    assert "Paris" in answer
    assert twin.tokenizer.decode(expected, skip_special_tokens=True).strip() == answer.strip()
    assert runtime.answer_ids(picture(0), "What is this?", 16) == twin.answer_ids(picture(0), "What is this?", 16)


def test_two_steps_moved_it(run: Path, runtime: Runtime) -> None:
    """Else the comparison above would say nothing of the adapter."""
    base = Twin(Path(read.read(run / "recipe.yaml").model.path))
    logps = base.logps(picture(0), "What is in picture 0?", "A grid of colours.")
    with torch.no_grad():
        moved = np.abs(np.array(runtime.logps(picture(0), "What is in picture 0?", "A grid of colours.")) - logps)
    assert moved.max() > 1e-2
