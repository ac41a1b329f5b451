"""The noised-image cache: how fast are noised pictures made, kept and read again, and what do they take on disk?

    python perf/noise.py                                  # 300 pictures of 640 x 480, every domain, 1 and 2 processes
    python perf/noise.py --pictures 1000 --processes 1 4 --folder /mnt/disk

The pictures are JPEGs of gradients, discs and grain, as large as a camera's of that size. They and the cache lie in the
operating system's memory, so the disk's own speed does not show. `made` decodes, noises, scales to 336 x 336 and keeps;
`read` finds the result again, hashing the JPEG as a run does. Pictures per second are the best of the repeats, which is
the one that other work on the machine disturbed least; beside them CPU milliseconds per picture, which it disturbs
little. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image, ImageDraw

from minipovid.images.transform import ImageTransform
from minipovid.images.views.noised import Domain, Noiser, Settings, opened

CLIP = ImageTransform(336, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SIZE = (640, 480)


def draw(path: Path, seed: int) -> None:
    """A picture that costs a JPEG decoder what a photograph costs: slopes, edges and grain, about 110 kB."""
    rng = np.random.default_rng(seed)
    slopes = np.linspace(0, 1, SIZE[0])[None, :, None] * rng.uniform(-120, 120, 3)
    slopes = slopes + np.linspace(0, 1, SIZE[1])[:, None, None] * rng.uniform(-120, 120, 3) + 128
    image = Image.fromarray(np.clip(slopes, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, radius = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(10, 120)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), tuple(rng.integers(0, 255, 3).tolist()))
    grain = np.asarray(image) + rng.normal(0, 9, (SIZE[1], SIZE[0], 1))
    Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(path, quality=90)


class Rate(NamedTuple):
    per_s: float  # pictures
    cpu_ms: float  # for each


def noise_all(paths: Sequence[Path], noiser: Noiser) -> float:
    """Ask for every picture's noised view; returns the CPU seconds that it took."""
    began = time.process_time()
    for path in paths:
        noiser(path, path.stem, 0)
    return time.process_time() - began


def rate(pool: Pool, processes: int, paths: Sequence[Path], noiser: Noiser) -> Rate:
    """With `processes` workers, each of which has its share of `paths`."""
    shares = [paths[index::processes] for index in range(processes)]
    began = time.perf_counter()
    busy = sum(pool.map(partial(noise_all, noiser=noiser), shares, 1))
    return Rate(len(paths) / (time.perf_counter() - began), 1000 * busy / len(paths))


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def measure(paths: Sequence[Path], domain: Domain, processes: int, folder: Path, repeats: int) -> dict[str, float]:
    """The best of pictures made and read per second, and bytes per picture on disk."""
    made, read, size = [], [], 0.0
    settings = Settings(domain=domain, cache_gib=1 + len(paths) / 1000)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        rate(pool, processes, paths[:processes], opened(Settings(cache_gib=0), CLIP, 0))  # imports
        for repeat in range(repeats):
            cache = folder / f"{domain}-{processes}-{repeat}"
            noiser = opened(settings, CLIP, 0, cache)
            made.append(rate(pool, processes, paths, noiser))
            read.append(rate(pool, processes, paths, noiser))
            size = kept_bytes(cache) / len(paths)
            shutil.rmtree(cache)
    return {
        "made_per_s": round(max(each.per_s for each in made), 1),
        "made_cpu_ms": round(min(each.cpu_ms for each in made), 2),
        "read_per_s": round(max(each.per_s for each in read), 1),
        "read_cpu_ms": round(min(each.cpu_ms for each in read), 3),
        "bytes_per_picture": round(size),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the cache lies; default: the system's temporary folder")
    given = parser.parse_args()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(given.pictures)]
        for number, path in enumerate(paths):
            draw(path, number)
        jpeg = round(sum(path.stat().st_size for path in paths) / len(paths))
        print(f"{len(paths)} JPEGs of {SIZE[0]} x {SIZE[1]}, {jpeg:,} bytes each\n")
        columns = ["made_per_s", "made_cpu_ms", "read_per_s", "read_cpu_ms", "bytes_per_picture"]
        print(f"| domain | processes | {' | '.join(columns)} |\n|---|---|" + "---|" * len(columns))
        for domain in get_args(Domain):
            figures[domain] = {}
            for processes in given.processes:
                line = measure(paths, domain, processes, Path(folder), given.repeats)
                figures[domain][str(processes)] = line
                cells = " | ".join(f"{line[column]:,g}" for column in columns)
                print(f"| {domain} | {processes} | {cells} |", flush=True)
    print(json.dumps({"pictures": given.pictures, "jpeg_bytes": jpeg, **figures}))


if __name__ == "__main__":
    main()
