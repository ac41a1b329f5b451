"""Export of a LLaVA-1.5-7B-shaped checkpoint with a rank 128 adapter: time and memory, beside cp and peft.

    python perf/export.py --layers 2          # a minute or two: two of 32 decoder layers, all else as it is
    python perf/export.py                     # all 32: twenty minutes, 36 GB of disk below --out

    copy f16    reading base and adapter, writing as many bytes as the F16 pair has, fsync: what cp would do
    f16         minipovid.export.export of a run to F16, text and mmproj
    q4_k_m      the same to Q4_K_M, which llama.cpp makes of that F16 file; it maps the file, whose pages count here
    copy q8_0, q8_0    likewise; the mmproj that stands there is kept, as it is in a user's run
    nf4         to Q8_0 on the base as 4-bit training saw it (merge_base: nf4)
    peft        merge_and_unload and save_pretrained of the same files, in the base's type

Each is a process of its own that finds its inputs on the disk, not in the page cache. Seconds are those of the whole
process; `peak` is its VmHWM, imports included, and `own` what of its memory is no file's pages (sampled). An output is
deleted when nothing more is made of it. The last line is one JSON object; its `peak_rss_gib` and `time_over_copy` are
the worse of f16 and q8_0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

RANK, ALPHA = 128, 256.0
SHARD = 5 * 10**9  # bytes, the Hub's usual cut
POOL = 2**24  # random numbers that every tensor is cut from
CHUNK = 2**23  # bytes that cp moves at a time
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPE = """
name: perf
model: {{path: {base}, load_in_4bit: true, dtype: bfloat16}}
data: {{path: pairs.jsonl}}
stages: [{{loss: {{name: dpo}}}}]
lora: {{r: {rank}, alpha: {alpha}}}
"""
LEFT = ("llava-1.5-7b", "run", "recipe.yaml", "made.json", "copy", "merged", "peft")  # what this script makes
Shapes = Mapping[str, Sequence[int]]


# --- the checkpoint and the run: written block by block, as they are read ---


def prepare(folder: Path, layers: int, dtype: str, small: bool) -> None:
    """folder/llava-1.5-7b in Hub layout, and folder/run with recipe and adapter."""
    from minipovid.recipe import read as recipes

    base, run = folder / "llava-1.5-7b", folder / "run"
    shapes = _configure(base, layers, dtype, small)
    shards = list(_cut(shapes))
    weight_map = {}
    for number, part in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(base / name, part, dtype)
        weight_map.update(dict.fromkeys(part, name))
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (run / "adapter").mkdir(parents=True)
    _write_adapter(run / "adapter", shapes)
    (folder / "recipe.yaml").write_text(RECIPE.format(base=base, rank=RANK, alpha=ALPHA))
    recipes.write(recipes.read(folder / "recipe.yaml"), run / "recipe.yaml")


def _configure(base: Path, layers: int, dtype: str, small: bool) -> Shapes:
    """Everything but the weights; returns their shapes by stored name."""
    import torch
    from bench_world import LLAVA_7B, SMALL
    from tiny_llava import hub_name
    from transformers import LlavaConfig

    from minipovid.models.shapes import skeleton
    from minipovid.train import random_inputs

    geometry = replace(SMALL if small else LLAVA_7B, layers=layers)
    config = random_inputs.write_settings(base, geometry.config(), getattr(torch, dtype))
    model = skeleton(LlavaConfig(**config))
    return {hub_name(name): tuple(value.shape) for name, value in model.named_parameters()}


def _cut(shapes: Shapes) -> Iterator[Shapes]:
    """The tensors of each shard, at two bytes a number."""
    part: dict[str, Sequence[int]] = {}
    for name, shape in shapes.items():
        if part and 2 * sum(map(math.prod, [*part.values(), shape])) > SHARD:
            yield part
            part = {}
        part[name] = shape
    yield part


def _write_adapter(folder: Path, shapes: Shapes) -> None:
    """In PEFT's layout and float32, as minipovid saves one."""
    from peft import LoraConfig

    from minipovid.models.families.llava import LORA_TARGETS

    halves = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight").replace("language_model.model.", "model.language_model.")
        if module.startswith("model.language_model.") and module.endswith(ADAPTED):
            halves[f"base_model.model.{module}.lora_A.weight"] = (RANK, shape[1])
            halves[f"base_model.model.{module}.lora_B.weight"] = (shape[0], RANK)
    _write_safetensors(folder / "adapter_model.safetensors", halves, "float32", scale=0.01)
    LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LORA_TARGETS, task_type="CAUSAL_LM").save_pretrained(folder)


def _write_safetensors(path: Path, shapes: Shapes, dtype: str, scale: float | None = None) -> None:
    """Random numbers scaled by each matrix's fan-in, or all by `scale`."""
    import numpy as np
    import torch

    kind = getattr(torch, dtype)
    pool = torch.from_numpy(np.random.default_rng(0).standard_normal(POOL, dtype=np.float32))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * kind.itemsize
        stored = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, shape in enumerate(shapes.values()):
            size, by = math.prod(shape), scale or (math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 1.0)
            numbers = (pool.roll(7919 * number) * by).to(kind)
            for start in range(0, size, POOL):
                file.write(numbers[: size - start].view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def inputs(folder: Path) -> list[Path]:
    return sorted([*folder.glob("llava-1.5-7b/*.safetensors"), *folder.glob("run/adapter/*.safetensors")])


# --- what is measured, each in a process of its own ---


def copy(folder: Path, n_bytes: str) -> None:
    left = int(n_bytes)
    with (folder / "copy").open("wb") as out:
        for path in inputs(folder):
            with path.open("rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    out.write(data[:left])
                    left -= min(left, len(data))
        out.flush()
        os.fsync(out.fileno())


def ours(folder: Path, quant: str, merge_base: str) -> None:
    from minipovid.export import export

    export(folder / "run", [quant], merge_base)


def peft(folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    base = folder / "llava-1.5-7b"
    dtype = getattr(torch, json.loads((base / "config.json").read_text())["dtype"])
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, folder / "run" / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")


WORK: dict[str, Callable[..., None]] = {"prepare": prepare, "copy": copy, "ours": ours, "peft": peft}


def measure(folder: Path, limit_gib: float, *job: Any) -> dict[str, float] | None:
    """{"s": seconds, "gib": peak resident memory, "own_gib": of it no file's pages, sampled} of a process that does one
    thing, with cold inputs. None where it was stopped, because its own memory grew beyond the limit."""
    drop_from_cache(inputs(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, __file__, "--out", str(folder), "--job", json.dumps(job)]
    own, began = 0.0, time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            own = max(own, _status_gib(process.pid, "RssAnon"))
            if own > limit_gib:
                process.kill()
                return None
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{job} failed.")
    return {"s": round(seconds, 2), "gib": round(float(said.split()[-1]), 3), "own_gib": round(own, 3)}


def _status_gib(pid: int | str, key: str) -> float:
    """0 where the process has just ended."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = status.partition(f"{key}:")[2].split()
    return int(found[0]) / 2**20 if found else 0.0


def drop_from_cache(files: Sequence[Path]) -> None:
    """Forget the files' pages, which must be on the disk already."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def child(folder: Path, job: str) -> None:
    folder.mkdir(exist_ok=True)
    name, *rest = json.loads(job)
    WORK[name](folder, *rest)
    print(_status_gib("self", "VmHWM"))


# --- the table ---


class Table:
    """Rows as they are measured, printed at once."""

    def __init__(self, folder: Path, limit_gib: float) -> None:
        self.folder, self.limit_gib = folder, limit_gib
        self.rows: dict[str, dict[str, float] | None] = {}
        print(f"{'':<12}{'seconds':>9}{'peak GiB':>10}{'own GiB':>9}{'GB out':>8}")

    def add(self, name: str, *job: Any, out: str, folder: Path | None = None) -> None:
        folder = folder or self.folder
        row = self.rows[name] = measure(folder, self.limit_gib, *job)
        if row is None:
            print(f"{name:<12}stopped: it held more than {self.limit_gib:.1f} GiB")
            return
        row["gb"] = round(size(folder, out) / 1e9, 2)
        print(f"{name:<12}{row['s']:>9.1f}{row['gib']:>10.3f}{row['own_gib']:>9.3f}{row['gb']:>8.2f}", flush=True)

    def fill(self) -> None:
        """Outputs come and go in the order that needs the least disk; a copy is as large as what it is compared to."""
        f16, q8_0, q4_k_m = (f"run/gguf/*{quant}.gguf" for quant in ("F16", "Q8_0", "Q4_K_M"))
        self.add("f16", "ours", "f16", "original", out=f16)
        written = size(self.folder, f16)
        self.add("q4_k_m", "ours", "q4_k_m", "original", out=q4_k_m)
        remove(self.folder, q4_k_m, "run/gguf/[!m]*F16.gguf")
        self.add("copy f16", "copy", written, out="copy")
        self.add("q8_0", "ours", "q8_0", "original", out=q8_0)
        written = size(self.folder, q8_0)
        remove(self.folder, q8_0)
        self.add("copy q8_0", "copy", written, out="copy")
        remove(self.folder, "copy")
        self.add("nf4", "ours", "q8_0", "nf4", out=q8_0)
        remove(self.folder, "run/gguf/*.gguf")

    def json(self, layers: int, peft_layers: int) -> dict[str, Any]:
        rows = {name.replace(" ", "_"): row for name, row in self.rows.items() if row}
        figures = {f"{name}_s": row["s"] for name, row in rows.items()}
        figures |= {f"{name}_peak_rss_gib": row["gib"] for name, row in rows.items()}
        return {
            "layers": layers,
            "peak_rss_gib": max(rows[name]["gib"] for name in ("f16", "q8_0")),
            "time_over_copy": round(max(rows[name]["s"] / rows[f"copy_{name}"]["s"] for name in ("f16", "q8_0")), 3),
            "peft_peak_rss_gib": rows["peft"]["gib"] if "peft" in rows else None,
            "peft_layers": peft_layers if "peft" in rows else None,
            **figures,
        }


def size(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern))


def remove(folder: Path, *patterns: str) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def available_gib() -> float:
    return int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32, help="decoder layers, of 32")
    parser.add_argument("--peft-layers", type=int, help="layers for peft, where memory does not hold them all; 0: none")
    parser.add_argument("--small", action="store_true", help="a toy's widths: proves that it runs")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16"], help="of the base's files")
    parser.add_argument("--limit", type=float, help="GiB at which a process is stopped  [default: free ones but one]")
    parser.add_argument("--out", type=Path, help="folder on the disk to be measured  [default: a temporary one]")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint in --out, for the next call")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        return child(arguments.out, arguments.job)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        try:
            print(json.dumps(everything(folder, arguments)))
        finally:
            if not arguments.keep:
                remove(folder, *LEFT)


def everything(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    made = {"layers": arguments.layers, "dtype": arguments.dtype, "small": arguments.small}
    limit = arguments.limit or available_gib() - 1
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "made.json"
    if not mark.is_file() or json.loads(mark.read_text()) != made:
        remove(folder, *LEFT)
        measure(folder, limit, "prepare", *made.values())
        mark.write_text(json.dumps(made))
    table = Table(folder, limit)
    table.fill()
    peft_layers = arguments.layers if arguments.peft_layers is None else arguments.peft_layers
    small = folder
    if peft_layers not in (0, arguments.layers):
        small = folder / "peft"
        measure(small, limit, "prepare", peft_layers, arguments.dtype, arguments.small)
    if peft_layers:
        table.add("peft", "peft", out="merged/*.safetensors", folder=small)
        remove(small, "merged")
    return table.json(arguments.layers, peft_layers)


if __name__ == "__main__":
    main()
