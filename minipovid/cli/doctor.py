"""`minipovid doctor`: what this machine has, what is missing, and the exact command that mends it.

Native libraries are tried in a child process each: one that crashes on import is then a finding, not the end.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

import click

from minipovid.cli.output import JSON, print_json

PATIENCE_S = 120
# What builds llama.cpp for a card: a program that comes with it, whose it is, CMake's switch, what that needs.
LLAMA_BUILDS = (
    ("nvidia-smi", "NVIDIA", "GGML_CUDA", "nvcc, of the CUDA toolkit"),
    ("rocminfo", "AMD", "GGML_HIP", "hipcc, of ROCm"),
    ("vulkaninfo", "Vulkan", "GGML_VULKAN", "glslc, of the Vulkan SDK"),
)
BFLOAT16 = (8, 0)  # compute capability from which on a card has it
CUDA_TORCH = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"

TORCH = """
import torch
name = "CPU"
if torch.cuda.is_available():
    kind = "ROCm" if torch.version.hip else "compute capability %d.%d" % torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB, {kind}"
elif torch.backends.mps.is_available():
    name = "CPU beside an Apple GPU"
print(f"{torch.__version__} on {name}, {torch.get_num_threads()} threads")
"""
# NF4 there and back: the codes are at most 0.152 apart on either side of a weight, relative to its block's largest.
BITSANDBYTES = """
import bitsandbytes, torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.linspace(-1, 1, 4096, device=device).reshape(64, 64)
back = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4", compress_statistics=True))
worst = (weight - back).abs().max().item()
assert worst < 0.2, f"NF4 is off by {worst:.2f}"
print(f"{bitsandbytes.__version__}, NF4 works on {device}")
"""
LLAMA = """
import llama_cpp, llama_cpp.mtmd_cpp
offload = "with GPU" if llama_cpp.llama_supports_gpu_offload() else "CPU only"
print(f"{llama_cpp.__version__}, {offload}, mtmd ready")
"""


@click.command()
@JSON
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine has and lacks.

    What is missing comes with the exact command that mends it, and exit code 1.
    """
    findings = examine()
    if as_json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            click.echo(f"{finding.state:8}{finding.name:14}{finding.found}")
            if finding.remedy:
                click.echo(f"{'':8}{'':14}-> {finding.remedy}")
    if any(finding.state == "missing" for finding in findings):
        ctx.exit(1)


class Check(NamedTuple):
    """One line of the report. `missing` is a need; `note` only says what would be better."""

    name: str
    state: Literal["ok", "note", "missing"]
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    """Every finding, the needs of the demo first."""
    torch = _try("torch", TORCH, "pip install 'torch>=2.8'")
    llama = _try("llama.cpp", LLAMA, "pip install --force-reinstall --no-deps --no-binary :all: llama-cpp-python")
    return [
        _python(),
        _packages(),
        torch,
        _gpu(torch.found),
        _try("bitsandbytes", BITSANDBYTES, "pip install --force-reinstall --no-deps bitsandbytes"),
        _llama(llama),
        _memory(),
        _disk(Path.cwd()),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < (3, 10):  # noqa: UP036 - somebody may have forced the installation
        return Check("python", "missing", found, "install Python 3.10 or newer and make a virtual environment with it")
    return Check("python", "ok", found)


def _packages() -> Check:
    """Every package that minipovid declares is installed."""
    try:
        requirements = [line for line in requires("minipovid") or [] if "extra ==" not in line]
    except PackageNotFoundError:
        return Check("packages", "missing", "minipovid itself is not installed", "pip install -c constraints.txt .")
    missing = [line for line in requirements if not _is_installed(_package(line))]
    if missing:
        names = " ".join(f"'{line}'" for line in missing)
        return Check("packages", "missing", f"without {', '.join(map(_package, missing))}", f"pip install {names}")
    return Check("packages", "ok", f"all {len(requirements)} are installed")


def _package(requirement: str) -> str:
    """'torch>=2.8' -> 'torch'."""
    return re.match(r"[\w.-]*", requirement).group()  # type: ignore[union-attr]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _try(name: str, program: str, remedy: str) -> Check:
    """Run a few lines of Python in a child process; its last line of output is what was found."""
    try:
        child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Check(name, "missing", f"did not answer within {PATIENCE_S} s", remedy)
    if child.returncode < 0:
        return Check(name, "missing", f"crashed with signal {-child.returncode}", remedy)
    line = (child.stdout if child.returncode == 0 else child.stderr).strip().split("\n")[-1]
    return Check(name, "ok", line) if child.returncode == 0 else Check(name, "missing", line, remedy)


def _gpu(torch_found: str) -> Check:
    """A GPU is no need of the demo, but of 7B training; a driver without a torch that uses it is worth a word."""
    driver = shutil.which("nvidia-smi") is not None
    card = torch_found.partition(" on ")[2]
    if card.startswith("CPU beside an Apple GPU"):
        found = "Apple's: exported models answer on it (llama.cpp, Metal); torch computes on the CPU, training with it"
        return Check("GPU", "note", found)
    if ", ROCm," in card:
        return Check("GPU", "note", f"{card}; training takes the way of CUDA, and nobody has tried it on ROCm")
    capability = re.search(r"compute capability (\d+)\.(\d+)", card)
    if capability and tuple(map(int, capability.groups())) < BFLOAT16:
        found = f"{card}; it has no bfloat16, in which training computes; exported models answer on it"
        return Check("GPU", "note", found, "train on a card of 8.0 or more, or with --set model.dtype=float32")
    if card and not card.startswith("CPU"):
        return Check("GPU", "ok", card)
    if driver:
        return Check("GPU", "note", "there is an NVIDIA driver, but this torch does not use it", CUDA_TORCH)
    return Check("GPU", "note", "none; the tiny world needs none, a 7B model trains on an NVIDIA GPU")


def _llama(found: Check) -> Check:
    """A llama.cpp that uses the CPU alone, beside a card, is worth a word, and a build."""
    build = next((build for build in LLAMA_BUILDS if shutil.which(build[0])), None)
    if found.state != "ok" or "CPU only" not in found.found or build is None:
        return found
    _, maker, switch, needs = build
    release = found.found.partition(",")[0]
    arguments, install = f'CMAKE_ARGS="-D{switch}=on"', "pip install --force-reinstall --no-deps --no-cache-dir"
    if sys.platform == "win32":
        arguments = f'set "CMAKE_ARGS=-D{switch}=on" &&'
    command = f"{arguments} {install} --no-binary llama-cpp-python llama-cpp-python=={release}"
    return Check(
        "llama.cpp",
        "note",
        f"{found.found}, though there is an {maker} card; with {needs}, it builds for that",
        command,
    )


def _memory() -> Check:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Check("memory", "note", "this system does not say how much it has")
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if gib < 3:
        return Check("memory", "missing", f"{gib:.1f} GiB", "use a machine with at least 4 GiB of memory")
    return Check("memory", "ok", f"{gib:.1f} GiB")


def _disk(folder: Path) -> Check:
    gib = shutil.disk_usage(folder).free / 2**30
    found = f"{gib:.1f} GiB free at {folder}"
    if gib < 1:
        return Check("disk", "missing", found, "free at least 1 GiB; the demo writes its run there")
    if gib < 40:
        return Check("disk", "note", found, "`minipovid plan RECIPE` says what a recipe needs; a 7B one about 40 GiB")
    return Check("disk", "ok", found)
