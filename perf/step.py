"""One optimiser step, ours beside its peers: pairs per second and memory, in one process, taking turns.

    python perf/step.py --device cpu              # a random LLaVA of 97 M parameters at real geometry, float32
    python perf/step.py --device cuda             # random LLaVA-1.5-7B weights in NF4, r 128 and r 16
    python perf/step.py --device cuda --small     # the same tables of a toy model, on any machine: proves that they run

Plain DPO runs against TRL's DPOTrainer, POVID against the official code's structure (official.py). Every side trains
the same model on pairs of the same lengths, batch 1, and counts everything from the picture file to the changed
weights. In each round every side takes one step; a ratio is the median over rounds of the quotient in a round, given
with its least and greatest value: other work on the machine slows both sides of a quotient. Ours has its reference
cached before the clock starts, except where it says "first epoch": there it is computed in the step. On a CPU, peak
memory is that of a process per side (Linux), because one side reuses what another frees. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import bench_world
import torch
from accelerate.state import AcceleratorState
from official import Official
from resident import peak_above_idle
from sides import CompactTrl, Ours, Setting, Side, Trl

from minipovid.common.files import finished

GIB = 2**30
WARM_UP = 2  # steps before the clock: allocations, the optimiser's state, workers
ALONE = 4  # steps of a side in a process of its own
DPO = {"name": "dpo"}
VERSIONS = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes")
Make = Callable[[], Side]


@dataclass
class Timed:
    """A side's steps beside its peer's in the same rounds."""

    seconds: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    idle_gib: float | None = None  # GPU only: the model before its first step
    peak_gib: float | None = None  # GPU only: above that
    flop: float | None = None  # of one step, as minipovid plan counts them

    @property
    def ratios(self) -> list[float]:
        """How many times the peer's pairs per second, by round."""
        return [theirs / own for own, theirs in zip(self.seconds, self.peer, strict=True)]

    def as_dict(self) -> dict[str, Any]:
        found = {"seconds": spread(self.seconds), "peer_seconds": spread(self.peer), "ratio": spread(self.ratios)}
        kept = {"idle_gib": self.idle_gib, "peak_gib": self.peak_gib, "flop": self.flop}
        return found | {key: value for key, value in kept.items() if value is not None}


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "most": round(max(values), 4),
        "count": len(values),
    }


# --- who runs ---


def dpo_sides(setting: Setting) -> dict[str, Make]:
    """Plain DPO; the first is the peer of all."""

    def trl(name: str, kind: type[Trl], checkpointing: bool) -> Make:
        return lambda: kind(setting, name, checkpointing=checkpointing)

    peers: dict[str, Make] = {
        "TRL": trl("TRL", Trl, True),
        "TRL, answer rows only": trl("TRL, answer rows only", CompactTrl, True),
        "TRL, no checkpointing": trl("TRL, no checkpointing", Trl, False),
    }
    return peers | our_sides(setting, "ours", DPO)


def povid_sides(setting: Setting) -> dict[str, Make]:
    """POVID; the first is the peer of all."""
    sides: dict[str, Make] = {
        "official": lambda: Official(setting, "official", checkpointing=True),
        "official, no checkpointing": lambda: Official(setting, "official, no checkpointing", checkpointing=False),
    }
    for variant in ("proper", "code"):
        sides |= our_sides(setting, f"ours {variant}", {"name": "povid", "variant": variant})
    return sides


def our_sides(setting: Setting, title: str, loss: dict[str, Any]) -> dict[str, Make]:
    """With and without gradient checkpointing and a cached reference."""

    def ours(name: str, checkpointing: bool, cached: bool) -> Make:
        return lambda: Ours(setting, name, loss, checkpointing=checkpointing, cached=cached)

    return {
        title: ours(title, True, True),
        f"{title}, first epoch": ours(f"{title}, first epoch", True, False),
        f"{title}, no checkpointing": ours(f"{title}, no checkpointing", False, True),
        f"{title}, no checkpointing, first epoch": ours(f"{title}, no checkpointing, first epoch", False, False),
    }


# --- time ---


class Entrant:
    """A side in the race, with the accelerate state that it was opened in: the library keeps one per process."""

    def __init__(self, make: Make, device: str) -> None:
        self.device = device
        AcceleratorState._reset_state(reset_partial_state=True)
        before = allocated(device)
        self.side = make()
        self.idle_gib = (allocated(device) - before) / GIB
        self._state = dict(AcceleratorState._shared_state)

    def step(self) -> float:
        """Seconds of one step, the device's work included."""
        AcceleratorState._shared_state.update(self._state)
        begin = time.perf_counter()
        self.side.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def warm_up(self) -> float:
        """The first steps; returns the GiB that they took above the idle model (GPU only, else 0)."""
        before = allocated(self.device)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(WARM_UP):
            self.step()
        return (torch.cuda.max_memory_allocated() - before) / GIB if self.device == "cuda" else 0.0

    def close(self) -> None:
        self.side.close()
        del self.side
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def race(sides: dict[str, Make], rounds: int, held: int, device: str) -> dict[str, Timed]:
    """Every side against the first, `held` models in memory at once, the first's among them."""
    names = list(sides)
    peer = Entrant(sides[names[0]], device)
    table = {names[0]: Timed(idle_gib=peer.idle_gib or None, peak_gib=peer.warm_up() or None)}
    for group in chunks(names[1:], held - 1):
        entrants = {}
        for name in group:
            tell(f"opening: {name}")
            entrants[name] = Entrant(sides[name], device)
            table[name] = Timed(idle_gib=entrants[name].idle_gib or None, peak_gib=entrants[name].warm_up() or None)
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}: {', '.join(group)}")
            base = peer.step()
            table[names[0]].seconds.append(base)
            table[names[0]].peer.append(base)
            for name, entrant in entrants.items():
                table[name].seconds.append(entrant.step())
                table[name].peer.append(base)
        for name, entrant in entrants.items():
            if isinstance(entrant.side, Ours):
                table[name].flop = entrant.side.flop()
            entrant.close()
    peer.close()
    return table


def chunks(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def matmul_rate(device: str, dtype: torch.dtype, size: int) -> float:
    """FLOP per second of one large square product: the most that any step could reach."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        begin = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


# --- memory on a CPU ---


def child(side: Side, steps: int) -> dict[str, float]:
    """In a process of its own: resident GiB of the idle model, the most above it, and how its steps ran in a row."""
    seconds = []

    def in_a_row() -> None:
        for _ in range(steps):
            begin = time.perf_counter()
            side.step()
            seconds.append(time.perf_counter() - begin)

    found = peak_above_idle(side.model, in_a_row)._asdict() | {"seconds": statistics.median(seconds[1:])}
    if isinstance(side, Ours):
        found["predicted_gib"] = side.predicted_gib()
    return found | ({"data_wait": statistics.mean(side.waits()[1:])} if isinstance(side, (Ours, Trl)) else {})


def alone(name: str, world: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """`child` of a side by name, as it runs everywhere; and `in_use_gib`, its peak where glibc gives every larger
    buffer back at once: what the step needs, without what the C library keeps in case it is wanted again."""
    plain = in_child(name, world, arguments, {})
    return plain | {"in_use_gib": in_child(name, world, arguments, {"MALLOC_MMAP_THRESHOLD_": "1048576"})["peak_gib"]}


def in_child(name: str, world: Path, arguments: argparse.Namespace, extra: dict[str, str]) -> dict[str, float]:
    """`child` of a side by name; the checkpoint is there already."""
    command = [sys.executable, __file__, "--device", arguments.device, "--only", name, "--world", str(world)]
    tell(f"memory: {name}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **extra}
    done = subprocess.run(
        command + ["--small"] * arguments.small, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed in a process of its own:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# --- what is said of it ---


def show(title: str, table: dict[str, Timed], rate: float) -> None:
    """One line per side: seconds, ratio with spread, memory where it was measured here, share of the device's rate."""
    print(f"\n{title}\n{'':44}{'s/step':>9}{'ratio':>8}  {'least-most':14}{'peak GiB':>9}{'of matmul rate':>16}")
    for name, timed in table.items():
        ratio, seconds = spread(timed.ratios), statistics.median(timed.seconds)
        between = f"{ratio['least']:.2f}-{ratio['most']:.2f}"
        peak = f"{timed.peak_gib:.2f}" if timed.peak_gib is not None else ""
        share = f"{timed.flop / seconds / rate:.0%}" if timed.flop else ""
        print(f"{name:44}{seconds:9.3f}{ratio['median']:8.2f}  {between:14}{peak:>9}{share:>16}")


def ratio(table: dict[str, Timed], name: str) -> float:
    return round(statistics.median(table[name].ratios), 3)


def against(table: dict[str, Timed], name: str, peer: str) -> float:
    """The ratio to another than the first, over the same rounds."""
    pairs = zip(table[name].seconds, table[peer].seconds, strict=True)
    return round(statistics.median([theirs / own for own, theirs in pairs]), 3)


def dpo_headline(dpo: dict[str, Timed], memory: dict[str, Any]) -> dict[str, float]:
    """The figures that the project is held to, against TRL."""
    if memory:
        peak = memory["ours"]["peak_gib"] / memory["TRL"]["peak_gib"]
    else:
        peak = (dpo["ours"].peak_gib or 0) / (dpo["TRL"].peak_gib or 1)
    return {
        "pairs_per_s_ratio": ratio(dpo, "ours"),
        "pairs_per_s_ratio_no_gc": ratio(dpo, "ours, no checkpointing"),
        "pairs_per_s_ratio_first_epoch": ratio(dpo, "ours, first epoch"),
        "pairs_per_s_ratio_compact_peer": against(dpo, "ours", "TRL, answer rows only"),
        "peer_unfused_scoring_share": round(1 - 1 / ratio(dpo, "TRL, answer rows only"), 3),
        "peak_ratio": round(peak, 4),
    }


def povid_headline(povid: dict[str, Timed]) -> dict[str, float]:
    """And against the official structure."""
    return {
        "povid_ratio": ratio(povid, "ours proper"),
        "povid_ratio_code": ratio(povid, "ours code"),
        "povid_ratio_no_gc": ratio(povid, "ours proper, no checkpointing"),
        "povid_ratio_first_epoch": ratio(povid, "ours proper, first epoch"),
    }


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def processor() -> str:
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return found[0].partition(": ")[2] if found else platform.processor()


# --- the run ---


def arguments_of(line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--small", action="store_true", help="a toy model, few steps, on any machine")
    parser.add_argument("--rounds", type=int, help="turns that every side takes (default 5; small: 2)")
    parser.add_argument("--method", choices=["dpo", "povid"], help="this table alone (default: both)")
    parser.add_argument("--held", type=int, help="models in memory at once (default: all on a CPU, 2 on a GPU)")
    parser.add_argument("--only", help="one side by name, in a row: its memory and the share of time it waits for data")
    parser.add_argument("--profile", help="one side by name: where its time goes, by torch's profiler")
    parser.add_argument("--world", type=Path, help="a folder for checkpoint and data, kept (default: a temporary one)")
    arguments = parser.parse_args(line)
    if arguments.device == "cuda" and not torch.cuda.is_available() and not arguments.small:
        parser.error("torch finds no CUDA GPU on this machine; --small proves on a CPU that the script runs.")
    return arguments


def settings_of(arguments: argparse.Namespace, world: Path, rounds: int) -> list[Setting]:
    """What to race over: one setting on a CPU; ranks 128 and 16 in NF4 on a GPU."""
    on_gpu = arguments.device == "cuda"
    full = bench_world.LLAVA_7B if on_gpu else bench_world.CPU
    geometry = bench_world.SMALL if arguments.small else full
    device = "cuda" if on_gpu and torch.cuda.is_available() else "cpu"
    checkpoint = world / f"model-{arguments.device}{'-small' * arguments.small}"
    if not checkpoint.is_dir():
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        with finished(checkpoint) as draft:
            count = bench_world.build_checkpoint(draft, geometry, dtype, device)
        tell(f"model: {count / 1e6:.1f} M parameters")
    folder = world / f"run-{os.getpid()}"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # no cache of another run may help
    pairs = max(WARM_UP + rounds + 2, ALONE + 1)
    ranks = (128, 16) if on_gpu else (16,)
    logging_steps = 1 if arguments.only else 10  # both libraries' default
    return [Setting(folder, checkpoint, geometry, device, on_gpu, rank, pairs, logging_steps) for rank in ranks]


def profile(side: Side, steps: int = 3) -> None:
    """Print where a side's time goes, operators and shapes, without the first steps."""
    for _ in range(WARM_UP):
        side.step()
    with torch.profiler.profile(record_shapes=True) as profiler:
        for _ in range(steps):
            side.step()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=by, row_limit=25))
    print(profiler.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=25))


def measure(arguments: argparse.Namespace, world: Path) -> None:
    rounds = arguments.rounds or (2 if arguments.small else 5)
    settings = settings_of(arguments, world, rounds)
    device = settings[0].device
    named = dpo_sides(settings[0]) | povid_sides(settings[0])
    if arguments.profile:
        return profile(named[arguments.profile]())
    if arguments.only:
        return print(json.dumps(child(named[arguments.only](), ALONE)))
    memory = {}
    if arguments.device == "cpu" and arguments.method != "povid":
        memory = {name: alone(name, world, arguments) for name in ("TRL", "ours", "ours, no checkpointing")}
    rate = matmul_rate(device, settings[0].dtype, 8192 if device == "cuda" else 1024)
    held = arguments.held or (2 if device == "cuda" else 16)
    report: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for setting in settings:
        figures: dict[str, float] = {}
        timed: dict[str, Timed] = {}
        if arguments.method != "povid":
            dpo = race(dpo_sides(setting), rounds, held, device)
            show(f"plain DPO, r {setting.rank}, against TRL {version('trl')} with gradient checkpointing", dpo, rate)
            figures, timed = dpo_headline(dpo, memory), dpo
        if arguments.method != "dpo":
            povid = race(povid_sides(setting), rounds, held, device)
            show(f"POVID, r {setting.rank}, against the official structure with gradient checkpointing", povid, rate)
            figures, timed = figures | povid_headline(povid), timed | povid
        tables[f"r{setting.rank}"] = {name: side.as_dict() for name, side in timed.items()}
        report = report or figures  # the first rank's
    for name, found in memory.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        print(f"{name}, alone: {figures}")
    report |= {"raw": tables, "alone": memory, "matmul_tflops": round(rate / 1e12, 3)} | circumstances(arguments)
    if arguments.small:
        print("\nsmall: not a measurement")
    print(json.dumps(report))


def circumstances(arguments: argparse.Namespace) -> dict[str, Any]:
    on_gpu = torch.cuda.is_available()
    return {
        "small": arguments.small,
        "command": " ".join(["python", *sys.argv]),
        "device": torch.cuda.get_device_name() if on_gpu else processor(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
    }


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and TRL, of each other
    arguments = arguments_of()
    if arguments.world is not None:
        arguments.world.mkdir(parents=True, exist_ok=True)
        return measure(arguments, arguments.world)
    with TemporaryDirectory(prefix="minipovid-step-") as world:
        measure(arguments, Path(world))


if __name__ == "__main__":
    main()
