"""Everything that users bring, spelled in many ways and damaged in more, held against slow independent readers.

    python perf/fuzz.py                              # 10,000 inputs of all kinds; some minutes
    python perf/fuzz.py --small                      # 300: proves that it runs
    python perf/fuzz.py --only rows --seed 7         # one kind, other inputs
    python perf/fuzz.py --only rows --seed 7 --case 31        # one input in full, with what was read and what was meant

What is brought stands in perf/fuzzing, one file per kind: data rows, recipes, answers of other programs, chat
templates, requests to the server, pictures. Each input is either a spelling of something that is known, or a damage of
it; beside what minipovid reads stands what an oracle reads, written from the documents and not from minipovid's code.
Counted are

    tracebacks       anything raised but minipovid's own one sentence
    hangs            what takes more than 10 seconds
    disagreements    accepted with another meaning than the oracle's, accepted where the oracle says that it must not
                     be, or refused though it is a documented spelling

Every kind of finding is told once, with its first input. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import re
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing.case import REFUSED, Case, shortened

KINDS = ("rows", "predictions", "recipes", "templates", "requests", "pictures")
INPUTS, SMALL = 10_000, 300
LIMIT = 10  # seconds for one input
GRACE = 60  # seconds more for a worker that does not listen to its alarm, or has to import torch first


class Verdict(NamedTuple):
    """What became of one input; `finding` is "" where all is well, else what the same findings have in common."""

    number: int
    fault: str  # "", "tracebacks", "hangs" or "disagreements"
    refused: bool = False
    finding: str = ""
    told: str = ""  # the input, and what was read of it


class _Hang(BaseException):
    """Not an Exception, so that nothing on the way takes it for its own."""


def made(kind: str, seed: int, number: int, folder: Path) -> Case:
    """The same input for the same seed, whatever ran before it."""
    case: Case = import_module(f"fuzzing.{kind}").case(random.Random(f"{seed}/{kind}/{number}"), folder)
    return case


def judged(case: Case, number: int, length: int = 300) -> Verdict:
    """Let minipovid read the case, then the oracle, and compare. Raises whatever the oracle raises."""
    from minipovid.common.errors import MinipovidError

    try:
        signal.alarm(LIMIT)
        got = case.act()
    except MinipovidError as error:
        got, refusal = REFUSED, str(error)
    except _Hang:
        return Verdict(number, "hangs", False, case.made, shortened(case.shown, length))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = next((frame for frame in reversed(frames) if "/minipovid/" in frame.filename), frames[-1])
        finding = general(f"{type(error).__name__} in {Path(where.filename).name}, {where.name}: {error}")
        return Verdict(number, "tracebacks", False, finding, f"{case.made}\n    {shortened(case.shown, length)}")
    finally:
        signal.alarm(0)
    want = case.want()
    if got is REFUSED:
        if case.may_refuse or want is REFUSED:
            return Verdict(number, "", True)
        told = f"{case.made}\n    {shortened(case.shown, length)}\n    refused: {shortened(refusal, length)}"
        return Verdict(number, "disagreements", True, general(f"sound, but refused: {refusal}"), told)
    why = "accepted, but no such thing" if want is REFUSED else case.differs(got, want)
    if not why:
        return Verdict(number, "")
    both = f"    read:  {shortened(got, length)}\n    meant: {shortened(want, length)}"
    told = f"{case.made}\n    {shortened(case.shown, length)}\n{both}"
    return Verdict(number, "disagreements", False, general(f"{case.made.split()[0]}: {why}"), told)


def general(sentence: str) -> str:
    """Without what differs from input to input: paths, numbers, texts in quotes."""
    for pattern in (r"/[\w./-]*", r"'[^']*'|\"[^\"]*\"", r"\d[\d.,]*"):
        sentence = re.sub(pattern, "#", sentence)
    return shortened(sentence, 160)


def work(kind: str, seed: int, numbers: range, pipe: Any) -> None:
    """A worker's life: one verdict after another into the pipe, until the first hang, which may have broken something
    in the middle."""

    def ring(*_: object) -> None:
        raise _Hang

    signal.signal(signal.SIGALRM, ring)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            verdict = judged(made(kind, seed, number, Path(folder)), number)
        pipe.send(verdict)
        if verdict.fault == "hangs":
            return


def verdicts(kind: str, seed: int, count: int) -> Iterator[Verdict]:
    """Of all inputs of a kind; a worker that dies or hangs for good is a verdict, and another goes on behind it."""
    context, number = multiprocessing.get_context("spawn"), 0
    while number < count:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(kind, seed, range(number, count), theirs), daemon=True)
        worker.start()
        theirs.close()
        try:
            while number < count and ours.poll(LIMIT + GRACE):
                yield ours.recv()
                number += 1
            if number < count:
                yield Verdict(number, "hangs", False, "deaf to the alarm", "")
                number += 1
        except EOFError:
            worker.join()
            if worker.exitcode == 1:  # a fault of this program: its traceback stands above
                sys.exit(
                    f"the oracle failed; python perf/fuzz.py --only {kind} --seed {seed} --case {number} repeats it"
                )
            if worker.exitcode:
                yield Verdict(number, "tracebacks", False, f"the process died ({worker.exitcode})", "")
                number += 1
        worker.kill()


def tell(kind: str, seed: int, number: int) -> None:
    """One input in full."""
    with tempfile.TemporaryDirectory() as folder:
        case = made(kind, seed, number, Path(folder))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        print(f"{case.made}\n{case.shown}\nmay be refused: {case.may_refuse}\nmeant: {case.want()}", flush=True)
        print(f"read:  {case.act()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--inputs", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--case", type=int, help="tell this input of the kind of --only in full")
    options = parser.parse_args()
    if options.case is not None:
        if options.only is None:
            parser.error("--case needs --only KIND")
        tell(options.only, options.seed, options.case)
        return
    kinds = (options.only,) if options.only else KINDS
    total = options.inputs or (SMALL if options.small else INPUTS)
    report = {"inputs": 0, "tracebacks": 0, "hangs": 0, "disagreements": 0}
    for place, kind in enumerate(kinds):
        found, first = Counter[tuple[str, str]](), dict[tuple[str, str], Verdict]()
        count = refused = 0
        for verdict in verdicts(kind, options.seed, total // len(kinds) + (place < total % len(kinds))):
            count, refused = count + 1, refused + verdict.refused
            if verdict.fault:
                found[verdict.fault, verdict.finding] += 1
                first.setdefault((verdict.fault, verdict.finding), verdict)
        report["inputs"] += count
        print(f"{kind:12} {count:6,} inputs, {refused:6,} refused, {found.total():5,} wrong", flush=True)
        for (fault, finding), times in found.most_common():
            report[fault] += times
            verdict = first[fault, finding]
            print(f"  {fault} {times} x {finding}\n    case {verdict.number}, {verdict.told}", flush=True)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
