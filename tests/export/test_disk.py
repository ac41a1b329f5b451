"""Disks that are full, read-only or gone, and killed exports: one sentence, exit code 2, nothing half-written kept."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_llava
from click.testing import CliRunner

from minipovid.cli import main
from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, need_space
from minipovid.export import export, export_merged, open_pair
from minipovid.export.gguf_pair import GgufPair
from minipovid.export.safetensors import write_merged
from minipovid.recipe import read as recipes

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(sys.modules["minipovid"].__path__[0])
NOBODY = 65534
MODEL = "wide-7b"
STEM = "wide-7B-minipovid-run-v1.0"
RECIPE = """
name: tiny
model: {{path: {base}, load_in_4bit: false, dtype: float32}}
data: {{path: pairs.jsonl}}
stages: [{{loss: {{name: dpo}}}}]
export: {{quants: [f16, q4_k_m]}}
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that K-quants fit, and its adapter."""
    folder = tmp_path_factory.mktemp("template")
    tiny_llava.build(folder / MODEL, hidden=256, ffn=512, heads=8, kv_heads=4)
    tiny_llava.adapter(folder / MODEL, folder / "adapter")
    for path in (folder, *folder.rglob("*")):  # whoever `read_only` becomes may read it
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    return folder


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(template / "adapter", run / "adapter")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(base=template / MODEL))
    recipes.write(recipes.read(tmp_path / "recipe.yaml"), run / "recipe.yaml")
    return run


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and stderr of `minipovid ...`."""
    done = CliRunner().invoke(main, [str(each) for each in arguments])
    return done.exit_code, done.stderr.rstrip()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def ggufs(run: Path) -> set[str]:
    return {name for name in names(run / "gguf") if name.endswith(".gguf") and not name.startswith(".")}


def times(run: Path) -> dict[str, int]:
    """When each of the models was written."""
    return {name: (run / "gguf" / name).stat().st_mtime_ns for name in ggufs(run)}


@contextmanager
def limit(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes: the system refuses the write, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """As a user who may read all of the folder and write nothing; root, whom no permission stops, becomes nobody."""
    mode, is_root = folder.stat().st_mode, os.geteuid() == 0
    above = {*folder.parents, *PACKAGE.parents, PACKAGE} if is_root else set()
    modes = {parent: parent.stat().st_mode for parent in above}
    for parent, before in modes.items():
        parent.chmod(before | 0o055)
    folder.chmod(0o555)
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(mode)
        for parent, before in modes.items():
            parent.chmod(before)


# --- too little room ---

Usage = namedtuple("Usage", "total used free")


def test_need_space_says_both_numbers(tmp_path: Path, monkeypatch: Any) -> None:
    """3.5 GiB wanted of 2 GiB; the folder itself need not be there yet."""
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(0, 0, 2 * 2**30))
    need_space(tmp_path, 2 * 2**30)
    with pytest.raises(
        MinipovidError, match=r"new/gguf needs 3.5 GiB of disk for this and 2.0 GiB are free; make room"
    ):
        need_space(tmp_path / "new" / "gguf", 7 * 2**29)
    assert asked == [tmp_path, tmp_path]


def test_an_export_that_does_not_fit_is_refused_before_it_begins(run: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 2**20))
    for work in (export, export_merged):
        with pytest.raises(MinipovidError, match=r"needs [\d.]+ MiB of disk for this and 1.0 MiB are free"):
            work(run)
    assert not ggufs(run) and not (run / "merged").exists()


def test_what_an_export_takes_is_what_it_asked_for(run: Path, monkeypatch: Any) -> None:
    """What was asked for holds the files and the F16 draft of a K-quant, and is not far beyond; then nothing is."""
    asked: list[int] = []
    monkeypatch.setattr("minipovid.export.folder.need_space", lambda _, n_bytes: asked.append(n_bytes))
    written: dict[str, int] = {}
    files = export(run, ["q8_0", "q4_k_m"], progress=lambda name, _, total: written.update({name: total}))
    total = sum(file.stat().st_size for file in files) + next(n for name, n in written.items() if name.startswith("."))
    vocabularies = 4 * 16 * 2**20
    assert total <= asked[0] <= 1.5 * total + vocabularies
    export(run, ["q8_0", "q4_k_m"])
    assert asked[1] == 0


def test_the_disk_fills_up_under_our_writer(run: Path) -> None:
    """Exit code 2 and one sentence with the file's name; the next call goes on behind what was finished."""
    mmproj = f"mmproj-{STEM}-F16.gguf"
    with limit(900_000):
        code, said = command("export", run, "--quant", "f16")
    assert code == 2 and len(said.splitlines()) == 1, said
    assert said.startswith(f"{run}/gguf/{STEM}-F16.gguf: File too large."), said
    assert names(run / "gguf") == {mmproj}
    before = times(run)
    export(run, ["f16"])
    assert ggufs(run) == {mmproj, f"{STEM}-F16.gguf"}
    assert before.items() <= times(run).items()


def test_the_disk_fills_up_under_llama_cpp(run: Path) -> None:
    export(run, ["f16"])
    before = times(run)
    with limit(500_000):
        code, said = command("export", run)
    assert code == 2 and len(said.splitlines()) == 1, said
    assert said.startswith(f"llama.cpp could not write {STEM}-Q4_K_M.gguf") and "Traceback" not in said
    assert times(run) == before
    assert f"{STEM}-Q4_K_M.gguf" in {file.name for file in export(run)}
    assert before.items() <= times(run).items()


def test_the_disk_fills_up_under_merged_safetensors(run: Path) -> None:
    with limit(900_000), pytest.raises(OSError, match="File too large") as raised:
        export_merged(run)
    assert raised.value.filename.endswith("model.safetensors")
    assert not [name for name in names(run) if "merged" in name]
    export_merged(run)
    assert (run / "merged" / "model.safetensors").is_file()


# --- killed ---

KILLED = """
import os, signal, sys
from pathlib import Path
from minipovid import export
def die(name, done, total):
    if sys.argv[2] in name and 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)
getattr(export, sys.argv[3])(Path(sys.argv[1]), progress=die)
"""


@pytest.mark.parametrize(
    ("at", "work", "left"),
    [
        (f".{STEM}-F16-original.gguf.draft", "export", {f"mmproj-{STEM}-F16.gguf"}),
        pytest.param("model.safetensors", "export_merged", set(), marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle(run: Path, at: str, work: str, left: set[str]) -> None:
    """Only drafts and whole files remain; the next call keeps the whole ones and sweeps the drafts away."""
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("- f16\n", ""))  # so that llama.cpp's source is a draft
    process = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), at, work],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert ggufs(run) == left
    assert not (run / "merged").exists()
    kept = times(run)
    export(run) if work == "export" else export_merged(run)
    assert kept.items() <= times(run).items()
    assert not [path for path in run.rglob(".*")]


# --- no access, no base ---


def test_a_read_only_folder(run: Path) -> None:
    open_pair(run).metadata("text", "f16")  # imports what another user perhaps may not
    with read_only(run):
        code, said = command("export", run, "--quant", "f16")
    assert (code, said) == (2, f"{run}/gguf: Permission denied. What was finished is kept.")
    export(run, ["f16"])
    before = times(run)
    with read_only(run / "gguf"):
        code, said = command("export", run, "--quant", "q8_0")
    assert code == 2 and said.endswith(": Permission denied. What was finished is kept."), said
    assert times(run) == before


def test_a_file_where_the_folder_should_be(run: Path) -> None:
    (run / "gguf").write_text("mine")
    code, said = command("export", run, "--quant", "f16")
    assert (code, said) == (2, f"{run}/gguf: File exists. What was finished is kept.")
    assert (run / "gguf").read_text() == "mine"


@pytest.mark.parametrize("gone", ["folder", "shard"])
def test_the_base_is_missing(run: Path, template: Path, tmp_path: Path, gone: str) -> None:
    base = tmp_path / MODEL
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace(str(template / MODEL), str(base)))
    if gone == "shard":
        shutil.copytree(template / MODEL, base)
        (base / "model.safetensors").unlink()
    code, said = command("export", run, "--quant", "f16")
    assert code == 2 and len(said.splitlines()) == 1, said
    expected = f"There is no model {base}" if gone == "folder" else f"The model folder {base} lacks model.safetensors"
    assert said.startswith(expected)
    assert not (run / "gguf").exists()


def test_the_base_is_cut_short_while_it_is_read(run: Path, template: Path, tmp_path: Path) -> None:
    """After the headers were read and found whole."""
    base = shutil.copytree(template / MODEL, tmp_path / MODEL)
    pair = GgufPair(base, run / "adapter", str(base), "float32")
    with (base / "model.safetensors").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) - 1000)
    with pytest.raises(MinipovidError, match="model.safetensors was cut short while .* was read; fetch it again"):
        write_merged(pair, tmp_path / "merged", "original")
    assert not [name for name in names(tmp_path) if "merged" in name]


def test_a_system_error_gets_the_files_name(tmp_path: Path) -> None:
    """A full disk names no file; one that is named already keeps its name."""
    with pytest.raises(OSError, match="No space left") as raised, finished(tmp_path / "a") as draft:
        draft.write_text("half")
        raise OSError(28, "No space left on device")
    assert raised.value.filename == str(tmp_path / "a")
    with pytest.raises(FileNotFoundError) as missing, finished(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert missing.value.filename == str(tmp_path / "b") and not names(tmp_path)


@pytest.mark.slow
def test_the_benchmark_runs_and_leaves_nothing(tmp_path: Path) -> None:
    """perf/export.py on a toy: every row is measured, the last line is JSON, the folder is empty again."""
    words = [sys.executable, str(ROOT / "perf" / "export.py"), "--small", "--layers", "2", "--out", str(tmp_path / "x")]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["layers"] == figures["peft_layers"] == 2
    assert 0.2 < figures["peak_rss_gib"] < 1 and figures["peft_peak_rss_gib"] > 0.2
    assert all(figures[f"{name}_s"] > 0 for name in ("f16", "q8_0", "copy_f16", "copy_q8_0", "q4_k_m", "nf4", "peft"))
    assert figures["time_over_copy"] > 0 and not names(tmp_path / "x")
