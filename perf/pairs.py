"""Making pairs by a slow teacher: wall time beside the ideal, memory, and what a kill costs.

    python perf/pairs.py                          # 1,000 rows, 200 ms a request, 16 at once: a minute
    python perf/pairs.py --rows 200 --seconds 0.05

Every row sends a picture of 640 x 480 (scaled, encoded and hashed within the measured time) to a server of our own on
loopback, tests/helpers/bad_server.py, which answers well and counts. Three processes are made of this file:
- one that makes all pairs: `time_over_ideal` is the seconds of `make`, cache and journal included, over
  ceil(rows / concurrency) x seconds; `rss_growth_mib` is resident memory at the end above that after a tenth of them;
- one that is killed (SIGKILL) at a random moment, and a third that ends its work. `repeated_after_kill` counts the
  questions that the first had an answer to in its cache and that the server was asked again; `written_not_kept` those
  asked again whose answer the server had written when the signal was sent: their bytes were on the way. All others that
  were asked again were in the server's hands.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).parent.parent
PICTURES = 50  # distinct ones; rows take turns


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.2, help="what the server takes for an answer")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--seed", type=int, help="of the moment of the kill; random unless given")
    parser.add_argument("--make", metavar="FOLDER", type=Path, help=argparse.SUPPRESS)  # this is a process that makes
    options = parser.parse_args()
    if options.make:
        print(json.dumps(make(options.make, options.rows, options.concurrency)), flush=True)
        return
    with TemporaryDirectory(prefix="minipovid-perf-") as folder:
        draw(Path(folder) / "photos")
        result = steady(Path(folder), options) | killed(Path(folder), options)
    for name, value in result.items():
        print(f"{name:24}{value:.4g}" if isinstance(value, float) else f"{name:24}{value}")
    print(json.dumps({"rows": options.rows, "seconds": options.seconds, "concurrency": options.concurrency, **result}))


def steady(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run without trouble."""
    with teacher(options.seconds) as url:
        found = json.loads(start(folder, "steady", url, options).communicate()[0].splitlines()[-1])
        most = counts(url)["most_flying"]
    ideal = math.ceil(options.rows / options.concurrency) * options.seconds
    return {
        "ideal_s": ideal,
        "time_s": found["seconds"],
        "time_over_ideal": found["seconds"] / ideal,
        "pairs": found["pairs"],
        "most_in_flight": most,
        "cpu_s": found["cpu_seconds"],
        "rss_mib": found["rss_mib"][-1],
        "rss_growth_mib": found["rss_mib"][-1] - found["rss_mib"][0],
    }


def killed(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run that is killed while it works, and its rerun; what the server saw of both."""
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    with teacher(options.seconds) as url:
        process = start(folder, "killed", url, options)
        while not counts(url)["seen"]:
            time.sleep(0.02)
        work = math.ceil(options.rows / options.concurrency) * options.seconds
        time.sleep(random.Random(seed).uniform(0.1, 0.9) * work)
        process.send_signal(signal.SIGKILL)
        moment = time.time()
        process.communicate()
        time.sleep(2 * options.seconds)  # what is on its way ends at the server
        kept, before = answers(folder / "killed"), counts(url)["seen"]
        found = json.loads(start(folder, "killed", url, options).communicate()[0].splitlines()[-1])
        after = counts(url)
    # A row is one question here, so what was not kept had to be asked, and no more.
    needed = len({row for row, _ in after["seen"]}) - kept
    asked = Counter(content for _, content in after["seen"])
    written = {content for when, content in after["answered"] if when < moment}
    return {
        "kill_seed": seed,
        "asked_before_kill": len(before),
        "answers_kept_at_kill": kept,
        "asked_after_kill": len(after["seen"]) - len(before),
        "repeated_after_kill": len(after["seen"]) - len(before) - needed,
        "written_not_kept": sum(asked[content] > 1 for content in written),
        "pairs_after_kill": found["pairs"],
    }


def answers(folder: Path) -> int:
    """How many answers the killed process had put by."""
    with sqlite3.connect(folder / "answers.sqlite") as file:
        return int(file.execute("SELECT COUNT(*) FROM answers").fetchone()[0])


@contextmanager
def teacher(seconds: float) -> Iterator[str]:
    """The URL of a server in a process of its own."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "bad_server.py"), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def counts(url: str) -> dict[str, Any]:
    with build_opener(ProxyHandler({})).open(url + "/counts") as reply:
        told: dict[str, Any] = json.load(reply)
    return told


def start(folder: Path, name: str, url: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that makes the pairs into folder/name."""
    command = [sys.executable, __file__, "--make", str(folder / name), "--rows", str(options.rows)]
    command += ["--concurrency", str(options.concurrency)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "MINIPOVID_TEACHER_BASE_URL": url, "PYTHONPATH": paths}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def make(to: Path, rows: int, concurrency: int) -> dict[str, Any]:
    """Make the pairs in this process."""
    from minipovid.inference.remote.client import Teacher
    from minipovid.pairs import make as making
    from minipovid.pairs.formats import Seed
    from minipovid.pairs.make.makers import povid

    resident: list[float] = []

    def seeds() -> Iterator[Seed]:
        for n in range(rows):
            if n in (rows // 10, rows - 1) and len(resident) < 2:  # the first pass is the one that makes
                resident.append(resident_mib())
            answer = f"Two people walk along a quiet beach, and number {n} of them carries a red umbrella."
            yield Seed(str(n), f"{n % PICTURES}.jpg", f"Describe row {n}.", answer)

    with_cache = Teacher("slow", cache=to / "answers.sqlite", concurrency=concurrency)
    begun, cpu = time.monotonic(), time.process_time()
    counts = making.make(seeds, povid.Injector(with_cache), to, root=to.parent / "photos", progress=False)
    seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
    assert counts.rows == rows == counts.pairs
    return {"seconds": seconds, "cpu_seconds": cpu, "pairs": counts.pairs, "rss_mib": resident}


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def draw(folder: Path) -> None:
    """Pictures that are no flat colour: as dear to decode and encode as photographs."""
    from PIL import Image

    folder.mkdir()
    for n in range(PICTURES):
        noise = Image.frombytes("RGB", (80, 60), b"".join(_block(n, k) for k in range(450)))
        noise.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{n}.jpg", quality=90)


def _block(n: int, k: int) -> bytes:
    return hashlib.sha256(f"{n} {k}".encode()).digest()


if __name__ == "__main__":
    main()
