"""The step on a real card, in eight minutes, start included: does it run, what does it take, how fast is it?

    python perf/gpu.py --out OUT                # one card of 24 GB or more (an H200: 6 minutes expected)
    python perf/gpu.py --out OUT --dry-run      # toy shapes on any machine: proves that the script runs

Random weights of LLaVA-1.5-7B's shapes are drawn where it runs. Every part is a process of its own with a limit, and
its figures are in OUT/gpu.json as soon as it has them, so that a run that is cut off still tells; OUT/log.txt says why
one failed.

    card       matrix product and copy rates; attention over one pair, dense and split
    recipe24   recipes/llava7b_qlora.yaml through the project's own training, DPO then POVID, the card held to 24 GiB
    recipe8    the same of recipes/llava7b_8gb.yaml, held to 8 GiB
    rate       eight pairs at once with nothing held back: how near to the card's rate a full card comes
    trl        TRL's DPOTrainer on pairs of the same lengths
    eval       answers of `eval --backend hf`: tokens per second for one question, and for eight about one picture

Of a stage stand there, with the reference computed and with it kept: seconds of a step, pairs per second, the main
thread's share of that, and the share of the card's rate; the peak beside the prediction of `minipovid plan` for these
pairs, and what the allocator reserved; waits and kernels of a step, how busy the card was, and its longest kernels.

A held part sees a card of that size: the allocator's limit, what mem_get_info tells, and the attention kernels of a
consumer card (cuDNN's, which a Hopper prefers, is off).

It needs the repository, torch with CUDA and transformers, and from the package index about 49 MB: bitsandbytes (43),
pydantic with pydantic_core, annotated-types and typing-inspection (3), peft, accelerate, sentencepiece, gguf,
filelock, psutil; for `trl` also trl, datasets with pyarrow (about 50 more), dill and multiprocess.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

GIB = 2**30
CONTEXT = 0.5 * GIB  # what CUDA itself takes on a consumer card, outside of the allocator
PARTS = {  # seconds that a part is expected to take; it is cut at twice of that
    "weights": 60,
    "card": 25,
    "recipe24": 75,
    "recipe8": 75,
    "rate": 45,
    "trl": 75,
    "eval": 40,
}
PAIRS = 6  # of a stage: its first steps compute the reference, later ones find it
TOP = 15  # kernels that are named


# --- the parts, one after the other ---


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--work", type=Path, help="for 20 GB of weights and runs (default: /dev/shm, where it has room)"
    )
    parser.add_argument("--seconds", type=float, default=440, help="no part begins that would not end by then")
    parser.add_argument("--only", nargs="*", choices=[*PARTS], default=[*PARTS])
    parser.add_argument("--dry-run", action="store_true", help="toy shapes, on a CPU as well")
    parser.add_argument("--part", choices=[*PARTS], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        return child(given)
    given.out.mkdir(parents=True, exist_ok=True)
    given.work = given.work or roomy(1 if given.dry_run else 34)
    given.work.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"command": sys.argv[1:], "seconds": {}, "parts": {}}
    began = time.monotonic()
    try:
        for part in dict.fromkeys(["weights", *given.only]):
            left, start = given.seconds - (time.monotonic() - began), time.monotonic()
            if left < PARTS[part] and not given.dry_run:
                report["parts"][part] = {"skipped": f"{left:.0f} s were left, {PARTS[part]} are expected"}
            else:
                report["parts"][part] = in_child(given, part, max(left, 1) if not given.dry_run else 3600)
            report["seconds"][part] = round(time.monotonic() - start, 1)
            (given.out / "gpu.json").write_text(json.dumps(report, indent=1))
    finally:
        shutil.rmtree(given.work, ignore_errors=True)
    show(report)


def roomy(gib: float) -> Path:
    """A new folder where there is room for so much, in memory if possible."""
    memory = Path("/dev/shm")
    fits = memory.is_dir() and shutil.disk_usage(memory).free > gib * GIB
    return Path(tempfile.mkdtemp(prefix="minipovid-gpu-", dir=memory if fits else None))


def in_child(given: argparse.Namespace, part: str, left: float) -> dict[str, Any]:
    """The part's figures, and how it ended where that was not well."""
    command = [sys.executable, __file__, "--out", str(given.out), "--work", str(given.work), "--part", part]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path), "XDG_CACHE_HOME": str(given.work / f"cache-{part}")}
    log = given.out / "log.txt"
    with log.open("ab") as file:
        file.write(f"=== {part}\n".encode())
        file.flush()
        try:
            limit = min(left, 2 * PARTS[part] + 30) if not given.dry_run else left
            code: Any = subprocess.run(
                command + ["--dry-run"] * given.dry_run,
                env={**os.environ, **paths},
                stdout=file,
                stderr=file,
                timeout=limit,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"cut after {limit:.0f} s"
    figures = given.work / f"{part}.json"
    found: dict[str, Any] = json.loads(figures.read_text()) if figures.is_file() else {}
    if code:
        lines = log.read_text(errors="replace").rpartition(f"=== {part}\n")[2].strip().splitlines()
        found["failed"] = {"code": code, "said": lines[-8:]}
    return found


def show(report: dict[str, Any]) -> None:
    """What a reader wants first."""
    columns = ("s_step", "pairs_per_s", "of_rate", "peak_gib", "predicted_gib", "reserved_gib", "waits", "kernels")
    print(f"{'part':10}{'stage':16}" + "".join(f"{column:>15}" for column in columns))
    for part, found in report["parts"].items():
        for stage, figures in found.get("stages", {}).items():
            print(f"{part:10}{stage:16}" + "".join(f"{figures.get(column, '')!s:>15}" for column in columns))
        if "failed" in found or "skipped" in found:
            print(f"{part:10}{found.get('failed') or found.get('skipped')}")
    print(json.dumps({"card": report["parts"].get("card"), "seconds": report["seconds"]}))


# --- one part ---


def child(given: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    part = Part(given)
    PROGRAMS[given.part](part)
    sys.stdout.flush()
    os._exit(0)  # no farewell of threads and workers: the next part waits


class Part:
    """A part's place, device and figures."""

    def __init__(self, given: argparse.Namespace) -> None:
        import bench_world
        import torch

        from minipovid.models.device import prepare_allocator

        prepare_allocator()  # as training does, and before anything here asks the card
        self.name, self.work, self.is_dry = given.part, given.work, given.dry_run
        self.on_gpu = torch.cuda.is_available()
        if not (self.on_gpu or self.is_dry):
            raise SystemExit("torch finds no GPU here; --dry-run proves on a CPU that this script runs.")
        self.device = "cuda" if self.on_gpu else "cpu"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.geometry = bench_world.SMALL if self.is_dry else bench_world.LLAVA_7B
        self.figures: dict[str, Any] = {}

    def tell(self, **figures: Any) -> None:
        """Written at once: the next line may be the last."""
        self.figures.update(figures)
        (self.work / f"{self.name}.json").write_text(json.dumps(self.figures))

    def wait(self) -> None:
        import torch

        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, act: Callable[[], object], times: int = 1) -> float:
        """Of one of several in a row."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            act()
        self.wait()
        return (time.perf_counter() - start) / times

    def hold(self, gib: float) -> None:
        """From here on the card has `gib` and a consumer card's attention kernels."""
        import torch

        if self.on_gpu:
            room = int(gib * GIB - CONTEXT)
            torch.cuda.set_per_process_memory_fraction(room / torch.cuda.mem_get_info()[1])
            torch.backends.cuda.enable_cudnn_sdp(False)
            torch.cuda.mem_get_info = lambda *_: (room - torch.cuda.memory_reserved(), int(gib * GIB))

    def rate(self) -> float:
        """FLOP per second of one large product."""
        import torch

        size = 8192 if self.on_gpu else 512
        a, b = (torch.randn(size, size, device=self.device).to(self.dtype) for _ in range(2))
        torch.mm(a, b)
        return 2 * size**3 / min(self.seconds(lambda: torch.mm(a, b), 3) for _ in range(3))


def weights(part: Part) -> None:
    """The random checkpoint and the pairs."""
    import bench_world

    count = bench_world.build_checkpoint(part.work / "model", part.geometry, part.dtype, part.device)
    bench_world.write_pairs(part.work / "pairs", PAIRS, 1, part.geometry)
    part.tell(parameters=count)


def card(part: Part) -> None:
    """Who it is, its rates, and the two ways through attention."""
    import torch

    name = torch.cuda.get_device_name() if part.on_gpu else "CPU"
    gib = torch.cuda.mem_get_info()[1] / GIB if part.on_gpu else 0.0
    part.tell(name=name, gib=round(gib, 1), torch=torch.__version__, matmul_tflops=round(part.rate() / 1e12, 2))
    block = torch.empty((2 << 30) if part.on_gpu else (32 << 20), dtype=torch.uint8, device=part.device)
    other = torch.empty_like(block)
    other.copy_(block)
    part.tell(copy_gb_per_s=round(2 * block.numel() / part.seconds(lambda: other.copy_(block), 3) / 1e9))
    script = [sys.executable, str(Path(__file__).with_name("attention.py")), "--device", part.device, "--no-flex"]
    shape = (
        ["--heads", "2", "--head-dim", "8", "--rounds", "1"] if part.is_dry else ["--heads", "32", "--head-dim", "128"]
    )
    done = subprocess.run([*script, *shape], stdout=subprocess.PIPE, text=True, check=True)
    part.tell(attention_ms=json.loads(done.stdout.splitlines()[-1])["milliseconds"])


def recipe24(part: Part) -> None:
    recipe(part, "llava7b_qlora", 24)


def recipe8(part: Part) -> None:
    recipe(part, "llava7b_8gb", 8)


def rate(part: Part) -> None:
    more = ("train.per_device_train_batch_size=8", "train.micro_batch=8", "train.gradient_checkpointing=false")
    run = opened(part, "llava7b_qlora", *more)
    part.tell(stages={"dpo, 8 at once": measured(part, run, 0)})


def recipe(part: Part, name: str, gib: float) -> None:
    """Both stages of a shipped recipe on a card of `gib`."""
    import torch

    part.hold(gib)
    start = time.perf_counter()
    run = opened(part, name)
    train = run.recipe.train
    settled = {key: getattr(train, key) for key in ("micro_batch", "gradient_checkpointing", "dataloader_num_workers")}
    part.tell(held_gib=gib, open_s=round(time.perf_counter() - start, 1), settled=settled)
    if part.on_gpu:
        part.tell(idle_gib=round(torch.cuda.memory_allocated() / GIB, 3))
    stages: dict[str, Any] = {}
    for number, title in enumerate(("dpo", "povid")):
        stages[title] = measured(part, run, number)
        part.tell(stages=stages)


def opened(part: Part, name: str, *more: str) -> Any:
    """The shipped recipe's run on the pairs here."""
    from minipovid.recipe import read as recipes
    from minipovid.train.bench import on_random_inputs
    from minipovid.train.run import Run

    recipe = recipes.read(recipes.find(name), settings(part, *more))
    return Run.open(on_random_inputs(recipe, part.work / "model", part.work / "pairs"), part.work / f"run-{part.name}")


def settings(part: Part, *more: str) -> tuple[str, ...]:
    toy = ("lora.r=8", "lora.alpha=16", "data.max_length=256", "train.dataloader_num_workers=0") if part.is_dry else ()
    return ("noise.cache_gib=1", "train.logging_steps=1", *toy, *more)


def measured(part: Part, run: Any, number: int) -> dict[str, Any]:
    """One stage: its steps with the reference computed and kept, its memory, then one step each under scrutiny."""
    import torch

    from minipovid.train.bench import predicted
    from minipovid.train.checkpoint import Position
    from minipovid.train.stage import Stage

    run.position = Position(stage=number)
    if part.on_gpu:
        torch.cuda.empty_cache()
    stage = Stage(run, number)
    steps = stage.steps()

    def step() -> object:
        return next(steps)

    step()
    pairs = run.recipe.train.pairs_per_step
    new = max(PAIRS // pairs - 2, 0)  # steps whose reference is still to be computed
    found: dict[str, Any] = {}
    if new:
        step()
        found["s_step_first_epoch"] = round(part.seconds(step, new), 4)
    step()
    host = time.thread_time()
    seconds = part.seconds(step, 10)
    found |= {"s_step": round(seconds, 4), "host_s": round((time.thread_time() - host) / 10, 4)}
    flop, gib = predicted(run, number)
    found |= {"pairs_per_s": round(pairs / seconds, 3), "of_rate": round(flop * pairs / seconds / part.rate(), 3)}
    if part.on_gpu:
        memory = {"peak_gib": torch.cuda.max_memory_allocated(), "reserved_gib": torch.cuda.max_memory_reserved()}
        found |= {key: round(value / GIB, 3) for key, value in memory.items()}
    found["predicted_gib"] = round(gib, 3)
    found |= waits(part, step)
    found |= profiled(part, step)
    stage.objective.close()
    stage.optimizer.state.clear()
    stage.optimizer.zero_grad()
    return found


def waits(part: Part, step: Callable[[], object]) -> dict[str, Any]:
    """Calls of a step that made the host wait, as torch's own debug mode sees them, and where."""
    import torch

    if not part.on_gpu:
        step()
        return {}
    with warnings.catch_warnings(record=True) as caught, _debugging(torch.cuda):
        warnings.simplefilter("always")
        step()
    places = [f"{Path(each.filename).name}:{each.lineno}" for each in caught if "synchroniz" in str(each.message)]
    return {"waits": len(places), "waits_at": places}


@contextmanager
def _debugging(cuda: Any) -> Iterator[None]:
    cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        cuda.set_sync_debug_mode("default")


def profiled(part: Part, step: Callable[[], object]) -> dict[str, Any]:
    """Kernels of a step, the share of its time that the card computed (the profiler slows the host), the longest."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * part.on_gpu]
    with profile(activities=kinds) as profiler:
        seconds = part.seconds(step)
    device = "CUDA" if part.on_gpu else "CPU"
    kernels: Any = [each for each in profiler.key_averages() if device in str(each.device_type)]

    def own(each: Any) -> float:
        return float(each.self_device_time_total if part.on_gpu else each.self_cpu_time_total)

    longest = sorted(kernels, key=own, reverse=True)[:TOP]
    return {
        "kernels": sum(each.count for each in kernels),
        "busy": round(sum(map(own, kernels)) / 1e6 / seconds, 3),
        "longest": [[each.key[:100], each.count, round(own(each) / 1000, 3)] for each in longest],
    }


def trl(part: Part) -> None:
    """TRL's trainer at rank 128, gradient checkpointing on (its default) and off."""
    import torch
    from sides import Setting, Trl

    setting = Setting(
        part.work, part.work / "model", part.geometry, part.device, part.on_gpu, 8 if part.is_dry else 128, 12, 10
    )
    stages: dict[str, Any] = {}
    for title, checkpointing in (("TRL", True), ("TRL, none", False)):
        if part.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        side = Trl(setting, title, checkpointing=checkpointing)
        side.step()
        side.step()
        seconds = part.seconds(side.step, 5)
        stages[title] = {"s_step": round(seconds, 4), "pairs_per_s": round(1 / seconds, 3)}
        if part.on_gpu:
            stages[title]["peak_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 3)
        part.tell(stages=stages)
        side.close()
        del side


def answering(part: Part) -> None:
    """Tokens per second of answers in transformers."""
    from minipovid.inference import backends
    from minipovid.inference.backends import Question
    from minipovid.recipe import read as recipes
    from minipovid.recipe import run_folder
    from minipovid.train.bench import on_random_inputs

    run = part.work / "run-eval"
    run.mkdir()
    recipe = recipes.read(recipes.find("llava7b_8gb"), settings(part))
    recipes.write(on_random_inputs(recipe, part.work / "model", part.work / "pairs"), run / run_folder.RECIPE)
    picture, tokens = part.work / "pairs" / "0.jpg", 8 if part.is_dry else 48
    with backends.opened("hf", run, {"weights": "base"}) as backend:
        backend._ends = set()  # type: ignore[attr-defined] - random weights end when they like
        for count in (1, 8):
            asked = [Question(str(n), "0.jpg", f"What is {'it ' * n}there?", {}, tokens) for n in range(count)]

            def answer(asked: list[Question] = asked) -> object:
                return list(backend.answers(asked, picture))

            answer()
            part.tell(**{f"{count} at once, tokens/s": round(count * tokens / part.seconds(answer), 1)})


PROGRAMS: dict[str, Callable[[Part], None]] = {
    "weights": weights,
    "card": card,
    "recipe24": recipe24,
    "recipe8": recipe8,
    "rate": rate,
    "trl": trl,
    "eval": answering,
}


if __name__ == "__main__":
    main()
