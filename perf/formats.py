"""What large foreign data sets cost: peak memory and rows per second of reading, importing and exporting them.

    python perf/formats.py              # 100,000 rows in each kind of file; some minutes and 3 GB of disk
    python perf/formats.py --small      # 2,000 rows: proves that it runs

Every measurement is a process of its own, beside one that only imports the code.

    read        every row to a Pair (a picture inside the file is named by its content), as a recipe's reader does it
    import      `minipovid pairs import`: every picture decoded and kept in the folder, pairs.jsonl written
    export      `minipovid pairs export --to trl` of what was imported, to parquet

The last line is one JSON object; peaks are resident memory in MiB (Linux), with all that Python and the libraries take.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

ROWS, SMALL = 100_000, 2_000
SIDE = 24  # pixels of a made-up picture: about 1.8 kB of noise as PNG
FILES = 500  # pictures beside the file, which its rows share
GROUP = 100  # rows of parquet together, as datasets writes pictures
WORDS = (
    "a",
    "the",
    "harbour",
    "boat",
    "dusk",
    "two",
    "red",
    "small",
    "fishing",
    "lies",
    "people",
    "near",
    "water",
    "is",
)
LIMIT_MIB = 500


def picture(seed: int) -> bytes:
    from PIL import Image

    file = BytesIO()
    noise = random.Random(seed).randbytes(3 * SIDE * SIDE)
    Image.frombytes("RGB", (SIDE, SIDE), noise).save(file, "PNG", compress_level=0)
    return file.getvalue()


def texts(row: int) -> tuple[str, str, str]:
    """Question and answers as long as POVID's: about 500 characters each answer."""
    dice = random.Random(row)
    chosen, rejected = (" ".join(dice.choices(WORDS, k=100)) for _ in range(2))
    return f"What is in picture {row}?", chosen, rejected


def beside(folder: Path) -> None:
    (folder / "photos").mkdir()
    for number in range(FILES):
        (folder / "photos" / f"{number}.png").write_bytes(picture(number))


def write_json(path: Path, count: int, row: Callable[[int], dict[str, Any]]) -> Path:
    """One JSON list, or lines where the name says so."""
    opening, between, closing = ("", "\n", "\n") if path.suffix == ".jsonl" else ("[\n", ",\n", "\n]")
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write((between if number else opening) + json.dumps(row(number)))
        file.write(closing)
    return path


def write_parquet(path: Path, count: int, group: int) -> Path:
    """RLAIF-V's columns, `group` rows in a row group; every picture another one."""
    import pyarrow
    import pyarrow.parquet

    def row(number: int) -> dict[str, Any]:
        prompt, chosen, rejected = texts(number)
        image = {"bytes": picture(number), "path": f"{number}.jpg"}
        return {"image": image, "question": prompt, "chosen": chosen, "rejected": rejected, "idx": str(number)}

    schema = pyarrow.Table.from_pylist([row(0)]).schema
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for start in range(0, count, group):
            numbers = range(start, min(start + group, count))
            writer.write_table(pyarrow.Table.from_pylist([row(n) for n in numbers], schema=schema), group)
    return path


def turns(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<image>\n{prompt}"}, {"from": "gpt", "value": answer}]


def factory_row(number: int) -> dict[str, Any]:
    prompt, chosen, rejected = texts(number)
    asked, won = turns(prompt, chosen)
    _, lost = turns(prompt, rejected)
    return {"conversations": [asked], "chosen": won, "rejected": lost, "images": [f"{number % FILES}.png"]}


def trl_row(number: int) -> dict[str, Any]:
    prompt, chosen, rejected = texts(number)
    data = base64.b64encode(picture(number)).decode()
    return {"images": [{"bytes": data}], "prompt": prompt, "chosen": chosen, "rejected": rejected}


def povid_row(number: int) -> dict[str, Any]:
    prompt, chosen, rejected = texts(number)
    conversations = {"conversations": turns(prompt, chosen), "rejected_conversations": turns(prompt, rejected)}
    return {"id": number, "image": f"{number % FILES}.png", **conversations}


def our_row(number: int) -> dict[str, Any]:
    prompt, chosen, rejected = texts(number)
    image = f"{number % FILES}.png"
    return {"id": str(number), "image": image, "prompt": prompt, "chosen": chosen, "rejected": rejected}


# what is measured: (name, format, how its file is written, whether its pictures are files beside it)
CASES: list[tuple[str, str, Callable[[Path, int], Path], bool]] = [
    ("parquet, pictures inside", "rlaif_v", lambda f, n: write_parquet(f / "a.parquet", n, GROUP), False),
    ("parquet, one row group", "rlaif_v", lambda f, n: write_parquet(f / "b.parquet", n, n), False),
    ("JSON list, pictures inside", "trl", lambda f, n: write_json(f / "c.json", n, trl_row), False),
    ("JSON list, pictures beside", "llamafactory", lambda f, n: write_json(f / "d.json", n, factory_row), True),
    ("JSON list of POVID", "povid", lambda f, n: write_json(f / "e.json", n, povid_row), True),
    ("JSON lines, ours", "jsonl", lambda f, n: write_json(f / "f.jsonl", n, our_row), True),
]


def idle(*_: str) -> int:
    return 1


def read(path: str, name: str, *_: str) -> int:
    from minipovid.pairs import formats as pairs
    from minipovid.pairs.pair import Pair

    return sum(isinstance(row, Pair) for row in pairs.reader(name).read(Path(path)))


def bring(path: str, name: str, target: str, images: str) -> int:
    return convert().import_pairs(Path(path), Path(target), name, Path(images)).pairs


def export(path: str, name: str, target: str, images: str) -> int:
    return convert().export_trl(Path(target) / "pairs.jsonl", Path(target) / "trl.parquet")


def convert() -> Any:
    from minipovid.pairs import convert

    return convert


ACTS: dict[str, Callable[..., int]] = {"idle": idle, "read": read, "import": bring, "export": export}


def measured(act: str, *arguments: str) -> dict[str, float]:
    """One act in a process of its own: {"rows", "seconds", "peak_mib"}."""
    command = [sys.executable, __file__, "--act", act, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{act} {' '.join(arguments)}:\n{done.stderr}")
    return json.loads(done.stdout)


def act(name: str, arguments: list[str]) -> None:
    """The child's side of `measured`."""
    convert()
    begun = time.perf_counter()
    rows = ACTS[name](*arguments)
    seconds = time.perf_counter() - begun
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Linux's own high-water mark of this program; getrusage's begins with that of the program that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def figures(folder: Path, count: int) -> Iterator[tuple[str, str, dict[str, float]]]:
    """(case, act, what was measured); what a case wrote goes before the next."""
    beside(folder)
    for number, (case, name, write, has_files) in enumerate(CASES):
        path = write(folder, count)
        target = folder / f"mine{number}"
        for each in ("read", "import", "export"):
            images = folder / "photos" if has_files else folder
            found = measured(each, str(path), name, str(target), str(images))
            assert found["rows"] == count, (case, each, found)
            yield case, each, found
        subprocess.run(["rm", "-rf", str(path), str(target)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--act", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.act:
        act(options.act[0], options.act[1:])
        return
    count = SMALL if options.small else ROWS
    idle_mib = measured("idle")["peak_mib"]
    report: dict[str, Any] = {"rows": count, "idle_mib": round(idle_mib), "figures": {}}
    print(f"{count:,} rows; the code alone takes {idle_mib:.0f} MiB\n\n{'':28} {'':8} {'peak MiB':>9} {'rows/s':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for case, each, found in figures(Path(folder), count):
            rate = found["rows"] / found["seconds"]
            print(f"{case:28} {each:8} {found['peak_mib']:9.0f} {rate:9.0f}", flush=True)
            key = f"{case}: {each}"
            report["figures"][key] = {"peak_mib": round(found["peak_mib"]), "rows_per_s": round(rate)}
    report["largest_peak_mib"] = max(figure["peak_mib"] for figure in report["figures"].values())
    report["within_limit"] = report["largest_peak_mib"] < LIMIT_MIB
    print(json.dumps(report))


if __name__ == "__main__":
    main()
