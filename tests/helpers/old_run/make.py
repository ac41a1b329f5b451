"""How the old run was made: a run that the code of commit 3c92b16 began, was killed in, ended, exported and examined.

    git worktree add /tmp/old 3c92b16
    PYTHONPATH=/tmp/old:/tmp/old/tests python tests/helpers/old_run/make.py

writes, beside this file:

    run.tar.xz    recipe.yaml     as a user writes it, everything that may be on auto
                  hub/            the base model, in the layout of the Hub's cache: a LLaVA of 0.1 million weights
                  data/           21 pairs, their pictures, and pictures with what is in them to be examined on
                  cache/          $XDG_CACHE_HOME as the kill left it: reference scores and noised pictures
                  killed/         the run folder as the kill left it, in stage 2, while checkpoint-16 took its name
                  finished/       what the old code made of a copy: trained to the end, exported, verified, examined
    made.json     on which machine and with which versions; how many entries the caches hold in the end

test_old_run.py puts all this somewhere, walks the same commands (`WALK`) with today's code and compares. Absolute paths
stand in killed/recipe.yaml, finished/recipe.yaml and finished/eval/*.json alone (here: `PLACE`); the base is a Hub id,
because verify knows the trained model's answers by its name. Times of writing are whole seconds: `eval` knows a GGUF by
its name, size and time.

When to make it anew: when constraints.txt moves on and the tests skip what depends on versions. What they find changed
otherwise is a key, a stamp or a file of the run folder, and somebody's old run is lost with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COMMIT = "3c92b16"
PLACE = b"@PLACE@"  # stands in the archive for the folder that it is unpacked in
WRITTEN = 1_700_000_000  # when every file was written, in seconds
MODEL = "minipovid/tiny-llava-hf"
SIZES = {"ffn": 64, "vision_hidden": 32, "vision_layers": 2, "image_size": 28, "patch_size": 14}
KILLED_AT = 16  # the checkpoint that was about to appear

RECIPE = """\
name: old
seed: 7
model: {path: minipovid/tiny-llava-hf, dtype: float32}
lora: {r: 2, alpha: 4}
data: {path: data/pairs.jsonl, images: data/pictures, max_length: 96}
noise: {cache_gib: 0.0005}
reference: {cache_gib: 0.01}
stages:
  - loss: {name: dpo, beta: 0.2, anchor: 0.5}
  - loss: {name: povid, variant: code, beta: 0.2}
    epochs: 2
    learning_rate: 4.0e-3
train:
  learning_rate: 8.0e-3
  weight_decay: 0.01
  max_grad_norm: 1.0
  gradient_accumulation_steps: 2
  logging_steps: 5
  save_steps: 4
export: {quants: [f16, q8_0, q6_k], imatrix: 3}
"""

POPE = ["pope=data/exam/pictures.jsonl", "--set", "pope.each=1", "--set", "pope.max_tokens=4"]
CHAIR = ["chair=data/exam/pictures.jsonl", "--set", "chair.max_tokens=6"]
EXAMS = ["--images", "data/pictures", "--json"]
TOLD = ["--predictions", "data/exam/pope.told.jsonl"], ["--predictions", "data/exam/chair.told.jsonl"]
RESUME = ["train", "recipe.yaml", "--out", "killed"]
# What the old code did to the finished run once it was trained.
USE: dict[str, list[str]] = {
    "export": ["export", "finished"],
    "lora": ["export", "finished", "--lora-only"],
    "merged": ["export", "finished", "--merged"],
    "verify": ["verify", "finished", "--quant", "f16", "--quant", "q8_0", "--json"],
    "eval": ["eval", "finished", *POPE, *CHAIR, *EXAMS],
    "eval hf": ["eval", "finished", *POPE, *CHAIR, *EXAMS, "--backend", "hf"],
    "eval told pope": ["eval", "finished", *POPE, *EXAMS, *TOLD[0]],
    "eval told chair": ["eval", "finished", *CHAIR, *EXAMS, *TOLD[1]],
}
# What a test does in a new place: {name: command}.
WALK: dict[str, list[str]] = {
    "resume": RESUME,
    "again": ["train", "finished/recipe.yaml", "--out", "again"],
    "train": ["train", "finished/recipe.yaml", "--out", "finished"],
    **USE,
}

# Runs commands one after the other in one process, which imports torch once; results as JSON: {name: [code, stdout]}.
WALKER = """
import contextlib, io, json, runpy, sys, traceback
import minipovid
told = json.loads(sys.argv[1])
minipovid.__version__ = told["version"]  # a part of the reference's key: another release computes its scores anew
results = {}
for name, command in told["commands"].items():
    sys.argv, out, code = ["minipovid", *command], io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_module("minipovid", run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except Exception:
        traceback.print_exc()
        code = 1
    results[name] = [code, out.getvalue()]
from importlib.metadata import version
import platform
import torch
names = ("accelerate", "bitsandbytes", "llama-cpp-python", "numpy", "peft", "pillow", "torch", "transformers")
facts = {
    "python": platform.python_version(),
    "versions": {name: version(name) for name in names},
    "machine": platform.machine(),
    "system": platform.system(),
    "capability": torch.backends.cpu.get_cpu_capability(),
    "threads": torch.get_num_threads(),
}
print(json.dumps({"results": results, "facts": facts}))
"""

# Kills itself while a checkpoint is about to take its name: the folder is whole, and nobody will ever look at it.
KILLER = f"""
import os, runpy, signal, sys
replace = os.replace
def killed(source, target, **named):
    if os.path.basename(target) == "checkpoint-{KILLED_AT}":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **named)
os.replace = killed
sys.argv = ["minipovid", *sys.argv[1:]]
runpy.run_module("minipovid", run_name="__main__")
"""


def environment(place: Path) -> dict[str, str]:
    """One thread, no GPU, no network, and the place's own model and caches.

    And arithmetic that every x86-64 processor has: the key of a 4-bit base's scores otherwise depends on the processor,
    because bitsandbytes' table of 8-bit numbers comes from torch.linspace, whose last digits do.
    """
    ours = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(place / "hub"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **ours}


def walk(place: Path, commands: Mapping[str, Sequence[str]], version: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run `minipovid` commands in `place`: ({name: [exit code, stdout]}, facts about versions and machine).

    What they say besides goes to stderr. Raises RuntimeError where the process itself fails.
    """
    told = json.dumps({"commands": commands, "version": version})
    done = subprocess.run(
        [sys.executable, "-c", WALKER, told], cwd=place, env=environment(place), capture_output=True, text=True
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        raise RuntimeError(f"the walk ended with {done.returncode}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["results"], {**answer["facts"], "cpu": cpu()}


def cpu() -> str:
    """What the processor calls itself, family and model included; "" where nobody knows."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return ""
    wanted = ("vendor_id", "cpu family", "model", "model name")
    lines = (line.partition(":") for line in told.splitlines())
    return ", ".join(value.strip() for key, _, value in lines if key.strip() in wanted)


def unpack(place: Path) -> None:
    """Put the archive's files into the empty folder `place`."""
    with tarfile.open(HERE / "run.tar.xz") as archive:
        archive.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    for path in (*place.glob("*/recipe.yaml"), *place.glob("*/eval/*.json")):
        text = path.read_bytes()
        path.write_bytes(text.replace(PLACE, str(place).encode()))


def references(cache: Path) -> dict[str, set[bytes]]:
    """The keys in each reference's store, by the store's name. Opening one writes what is in its -wal to the store."""
    found = {}
    for path in sorted((cache / "minipovid" / "reference").glob("*.sqlite")):
        with sqlite3.connect(path) as db:
            found[path.stem] = {key for (key,) in db.execute("SELECT key FROM scores")}
        db.close()
    return found


def noised(cache: Path) -> list[str]:
    """The keys in the ring of noised pictures, in hex digits, one for each insertion that it counts."""
    (path,) = (cache / "minipovid").glob("noise-*.ring")
    ring = path.read_bytes()
    (count,) = struct.unpack_from("<Q", ring, 64)
    entries = (ring[start : start + 64] for start in range(4096, 4096 + 64 * count, 64))
    return [entry[:32].hex() for entry in entries]


# --- making it ---


def main() -> None:
    """Write run.tar.xz and made.json."""
    check_code()
    with tempfile.TemporaryDirectory(prefix="old-run-") as folder:
        work = Path(folder).resolve()
        killed, finished = work / "killed", work / "finished"
        begin(killed)
        kill(killed)
        version, facts = end(killed, finished)
        shutil.copytree(finished / "finished", killed / "finished")
        pack(killed)
        made = {"commit": COMMIT, "version": version, **facts, "caches": caches(finished / "cache")}
        (HERE / "made.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        check_again(work, finished, version)


def check_code() -> None:
    """Is it that commit's code that runs?"""
    import minipovid

    root = Path(minipovid.__file__).parent.parent
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    changes = subprocess.run([*git, "status", "--porcelain", "minipovid"], capture_output=True, text=True, check=True)
    if not head.startswith(COMMIT) or changes.stdout:
        sys.exit(f"{root} is not a clean checkout of {COMMIT}: see this file's first lines.")


def begin(place: Path) -> None:
    """Model, data and recipe."""
    import tiny_llava
    from PIL import Image

    repo = place / "hub" / f"models--{MODEL.replace('/', '--')}"
    revision = hashlib.sha1(b"old run").hexdigest()  # noqa: S324 - it only looks like a commit
    tiny_llava.build(repo / "snapshots" / revision, dtype="float16", **SIZES)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    dice = random.Random(0)
    pictures = place / "data" / "pictures"
    pictures.mkdir(parents=True)
    for number in range(8):
        patches = Image.frombytes("RGB", (7, 5), dice.randbytes(3 * 7 * 5))
        size = [(28, 28), (90, 40), (33, 120)][number % 3]
        patches.resize(size, Image.Resampling.NEAREST).save(pictures / f"{number}.png")
    pairs = (json.dumps(pair) + "\n" for pair in some_pairs(dice))
    (place / "data" / "pairs.jsonl").write_text("".join(pairs))
    exam = place / "data" / "exam"
    exam.mkdir()
    things = ["circle", "square", "dog", "cat", "table", "chair"]
    rows = [{"image": f"{number}.png", "objects": sorted(dice.sample(things, 2))} for number in range(4)]
    (exam / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (exam / "objects.txt").write_text("".join(f"{thing}\n" for thing in things))
    # What somebody else said: a random model says nothing in whose reading anything could go wrong.
    yes_no = ["Yes.", "No, there is none.", "no", "I see nothing.", "Yes, it is not red.", "There is one."] * 4
    captions = [f"A {thing} beside two {other}s." for thing, other in zip(things[:4], things[2:], strict=True)]
    for name, texts in (("pope", yes_no), ("chair", captions)):
        rows = [{"text": text} for text in texts]
        (exam / f"{name}.told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "recipe.yaml").write_text(RECIPE)


def some_pairs(dice: random.Random) -> Iterator[dict[str, Any]]:
    colours, things = ["red", "green", "blue", "yellow"], ["circle", "square", "dog", "cat", "table"]
    for number in range(21):
        prompt = ["What is this?", "Describe this image.", "Is there a dog?\nAnswer yes or no."][number % 3]
        one, two = dice.sample(things, 2)
        chosen, rejected = (f"A {dice.choice(colours)} {thing}." for thing in (one, two))
        row = {"id": f"pair {number}", "image": f"{number % 8}.png", "prompt": prompt, "chosen": chosen}
        end = len(rejected) - 1
        spans = [{"start": end - len(two), "end": end, "kind": "object"}]
        yield {**row, "rejected": rejected, "source": {"chosen": "ground truth", "rejected": "rule"}, "spans": spans}


def kill(place: Path) -> None:
    """Train until SIGKILL."""
    done = subprocess.run([sys.executable, "-c", KILLER, *RESUME], cwd=place, env=environment(place))
    assert done.returncode == -9, done.returncode
    left = sorted(path.name for path in (place / "killed").iterdir())
    assert left == [f".checkpoint-{KILLED_AT}.draft", "checkpoint-10", "checkpoint-12", *left[-3:]], left


def end(killed: Path, place: Path) -> tuple[str, dict[str, Any]]:
    """In a copy: train to the end, and use what came of it; returns the version and the facts."""
    import minipovid

    version = minipovid.__version__
    copy(killed, place)
    _, facts = checked(place, {"resume": RESUME}, version)
    (place / "killed").rename(place / "finished")
    files = [USE[name] for name in ("export", "lora", "merged")]
    checked(place, {str(number): command for number, command in enumerate(files)}, version)
    age(place / "finished")  # before `eval`, which knows files by their times
    checked(place, {name: command for name, command in USE.items() if command not in files}, version)
    age(place / "finished")
    return version, facts


def checked(place: Path, commands: Mapping[str, Sequence[str]], version: str) -> tuple[dict[str, Any], dict[str, Any]]:
    results, facts = walk(place, commands, version)
    assert all(code == 0 for code, _ in results.values()), results
    return results, facts


def copy(place: Path, to: Path) -> None:
    """The same files, and the same paths as if the run had begun there."""
    shutil.copytree(place, to)
    for path in to.glob("*/recipe.yaml"):
        path.write_text(path.read_text().replace(str(place), str(to)))


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (WRITTEN, WRITTEN))


def caches(cache: Path) -> dict[str, Any]:
    """How many entries there are when the old code is done."""
    return {
        "references": {name: len(keys) for name, keys in references(cache).items()},
        "noised": len(noised(cache)),
    }


def pack(place: Path) -> None:
    """run.tar.xz, the same bytes for the same files; absolute paths become PLACE."""
    tar, told = io.BytesIO(), []
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(place.rglob("*")):
            name = str(path.relative_to(place))
            content = b"" if path.is_dir() else path.read_bytes()
            for begun_in in (place, place.with_name("finished")):
                told += [name] if str(begun_in).encode() in content else []
                content = content.replace(str(begun_in).encode(), PLACE)
            entry = tarfile.TarInfo(name)
            entry.type = tarfile.DIRTYPE if path.is_dir() else tarfile.REGTYPE
            entry.mode, entry.mtime, entry.size = (0o755 if path.is_dir() else 0o644), WRITTEN, len(content)
            archive.addfile(entry, io.BytesIO(content))
            assert str(place.parent).encode() not in content, f"{name} holds a path"
    best = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]
    packed = lzma.compress(tar.getvalue(), filters=best)
    (HERE / "run.tar.xz").write_bytes(packed)
    print(f"{len(tar.getvalue()):,} bytes, packed {len(packed):,}; paths in {', '.join(told)}")


def check_again(work: Path, finished: Path, version: str) -> None:
    """Twice more from the archive: does the old code end with the same bytes each time?"""
    weights = Path("adapter", "adapter_model.safetensors")
    for name in ("one", "two"):
        (work / name).mkdir()
        unpack(work / name)
        checked(work / name, {"resume": RESUME}, version)
        assert (work / name / "killed" / weights).read_bytes() == (finished / "finished" / weights).read_bytes()
        assert caches(work / name / "cache") == caches(finished / "cache")


if __name__ == "__main__":
    main()
