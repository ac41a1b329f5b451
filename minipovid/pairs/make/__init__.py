"""Pairs made of seeds: every row ends as a pair or as a recorded failure, and nobody is asked twice.

    counts = make(seeds, maker, Path("pairs/mine"), root=Path("photos"))

    TO/pairs.jsonl       the pairs, in the order of the seeds
       failures.jsonl    what became no pair, with every reason; rows that could not be read are among them
       make.json         counts, what it took, who made it
       journal.jsonl     what is finished (journal.py): the same command goes on from there
       images/           pictures that came inside the data file; `data.images` is then this folder

rows = pairs + failures + left; `left` are those that an interruption or a spent budget kept from being asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common import shelf
from minipovid.common.caches import cache_folder
from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone, finished
from minipovid.common.pool import Pool
from minipovid.images import embedded
from minipovid.images import load as images
from minipovid.images.embedded import Embedded, Store
from minipovid.inference.remote import Stopped, Usage
from minipovid.pairs.formats import jsonl
from minipovid.pairs.make.counts import MakeCounts, RowCounter
from minipovid.pairs.make.journal import NAME, Journal
from minipovid.pairs.make.makers import Maker, MakerInputs, Outcome, Seeds
from minipovid.pairs.make.progress import MakeProgress
from minipovid.pairs.pair import BadRow, Pair, Seed
from minipovid.recipe import run_folder
from minipovid.recipe.strict import validated

FAILURES = "failures.jsonl"

_log = logging.getLogger(__name__)


class Task(NamedTuple):
    """A seed and its picture's file, or why it has none."""

    seed: Seed
    picture: Path
    why: str = ""


class Estimate(NamedTuple):
    """Nothing of it is measured: tokens by rules of thumb, and every first answer taken as good."""

    rows: int
    finished: int  # they cost nothing any more
    requests: int
    prompt_tokens: int
    answer_tokens: int
    cost: float | None
    cost_if_all_asked_thrice: float | None


def maker(name: str, inputs: MakerInputs, options: Mapping[str, Any] | None = None) -> Maker:
    """The maker of a file on the shelf, with those of its options that are given.

    Raises MinipovidError for an unknown maker or option, a value that an option cannot have, and what the maker raises.
    """
    module = shelf.load("pairs.make.makers", name)
    known = [field.name for field in fields(module.Options)]
    for key in options or {}:
        if key not in known:
            flag = f"--{key.replace('_', '-')}"
            raise MinipovidError(f"The maker {name} has no option {key} ({flag}); it has {', '.join(known)}.")
    new: Maker = module.maker(inputs, validated(module.Options, options or {}, f"--maker {name}", f"the maker {name}"))
    return new


def answers() -> Path:
    """Where this user's teachers' answers are kept, whatever they are asked for."""
    return cache_folder() / "teacher" / "answers.sqlite"


def estimate(seeds: Seeds, maker: Maker, to: Path, *, root: Path) -> Estimate:
    """What `make` would still take; nothing is sent. Raises MinipovidError where no picture is found."""
    _look(seeds, root, to)
    rows, settled, usage = 0, 0, Usage()
    journal = Journal(to, maker.identity()) if (to / NAME).is_file() else None
    for row in seeds():
        rows += 1
        if isinstance(row, Seed) and journal is not None and journal.settled(row):
            settled += 1
        elif isinstance(row, Seed) and not (task := _task(row, root, None)).why:
            usage += maker.estimate(row, task.picture)
    if journal is not None:
        journal.close()
    cost = maker.cost(usage)
    thrice = None if cost is None else 3 * cost
    return Estimate(rows, settled, usage.requests, usage.prompt_tokens, usage.answer_tokens, cost, thrice)


def make(seeds: Seeds, maker: Maker, to: Path, *, root: Path, progress: bool = True) -> MakeCounts:
    """Make a pair of every seed that TO has none of yet; `root` is the pictures' folder, and where none of them is in
    it, MinipovidError is raised before anybody is asked.

    A budget that ended it is told in `MakeCounts.stopped`. Ctrl-C raises KeyboardInterrupt, and a server that cannot be
    used (key, model, address) MinipovidError, both when all that is finished has been written. Raises MinipovidError
    where another process makes pairs in TO.
    """
    with alone(to):
        return _made(seeds, maker, to, root, progress)


def _made(seeds: Seeds, maker: Maker, to: Path, root: Path, progress: bool) -> MakeCounts:
    rows = _look(seeds, root, to)
    journal = Journal(to, maker.identity())
    bar = MakeProgress(maker, rows if progress else None)
    try:
        end = _make_all(_tasks(seeds, journal, bar, root, Store(to / "images")), maker, journal, bar)
        counts = _write(seeds, journal, maker, to, "" if end is None else str(end) or "interrupted")
    finally:
        bar.close()
        journal.close()
    if isinstance(end, KeyboardInterrupt):
        raise end
    if end is not None and end.mend:
        raise MinipovidError(f"{end} What was finished is kept; the same command goes on from there.")
    return counts


def _look(seeds: Seeds, root: Path, to: Path) -> int:
    """Look for all pictures, and return the number of rows. Raises MinipovidError where none is there, unless TO was
    begun when they were."""
    rows, whys = 0, list[str]()  # why each picture cannot be had; "" where it can
    for rows, row in enumerate(seeds(), 1):  # noqa: B007 - the last is their number
        if isinstance(row, Seed):
            whys.append(_task(row, root, None).why)
    if missing := [why for why in whys if why]:
        if len(missing) == len(whys) and not (to / NAME).is_file():
            raise MinipovidError(f"{missing[0]} No picture was found; name their folder with --images.")
        _log.warning("Of %d pictures %d cannot be had: their rows fail. %s", len(whys), len(missing), missing[0])
    return rows


def _tasks(seeds: Seeds, journal: Journal, bar: MakeProgress, root: Path, store: Store) -> Iterator[Task]:
    for row in seeds():
        if isinstance(row, BadRow) or journal.settled(row):
            bar.row(new=False)
        else:
            yield _task(row, root, store)


def _task(seed: Seed, root: Path, store: Store | None) -> Task:
    """A picture that came inside the data file gets a file in the store, if there is one."""
    if isinstance(seed.image, Embedded):
        return Task(seed, store.folder / store.keep(seed.image) if store else root / seed.image)
    try:
        picture = images.inside(root, embedded.placed(root, seed.image))
    except MinipovidError as error:
        return Task(seed, root, str(error))
    return Task(seed, picture, "" if picture.is_file() else f"There is no picture {picture}.")


def _make_all(
    tasks: Iterator[Task], maker: Maker, journal: Journal, bar: MakeProgress
) -> Stopped | KeyboardInterrupt | None:
    """Make them all, into the journal. Returns what ended it early."""

    def work(task: Task) -> tuple[Seed, Outcome | Stopped]:
        if task.why:
            return task.seed, Outcome(None, (task.why,), heals=True)
        try:
            return task.seed, maker.make(task.seed, task.picture)
        except Stopped as stopped:
            return task.seed, stopped

    end: Stopped | None = None
    try:
        with Pool(work, tasks, maker.workers, maker.stop) as pool:
            for seed, outcome in pool.results():
                if isinstance(outcome, Stopped):
                    pool.close()
                    end = outcome  # they all say why the first one stopped
                else:
                    journal.add(seed, outcome)
                    bar.row(new=True)
    except KeyboardInterrupt as interrupt:
        return interrupt
    return end


def _write(seeds: Seeds, journal: Journal, maker: Maker, to: Path, stopped: str) -> MakeCounts:
    """The three files, from the journal, in the order of the seeds."""
    counter = RowCounter()

    def pairs() -> Iterator[Pair]:
        for row in seeds():
            entry = counter.enter(row, None if isinstance(row, BadRow) else journal.get(row))
            if isinstance(entry, Pair):
                yield entry
            elif entry is not None:
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    with finished(to / FAILURES) as draft, draft.open("w", encoding="utf-8", errors="replace") as file:
        jsonl.write(to / run_folder.PAIRS, pairs())
    counts = counter.counts
    counts.stopped, counts.this_run = stopped, maker.spent()
    counts.cost, counts.cost_of_this_run = maker.cost(counts.usage), maker.cost(counts.this_run)
    with finished(to / "make.json") as draft:
        content = {**counts.as_dict(), "maker": maker.identity()}
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    return counts
