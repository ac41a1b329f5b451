"""Data sets in and out: any format on the shelf formats/ becomes our own folder, and our pairs become TRL's columns.

    import_pairs(Path("RLAIF-V_000.parquet"), to=Path("mine"))       # mine/pairs.jsonl, mine/images/, mine/import.json
    export_trl(Path("mine/pairs.jsonl"), to=Path("mine.parquet"))    # for datasets.load_dataset and TRL's DPOTrainer

An imported folder stands alone: every picture is in it, named by the SHA-256 of its bytes, which are unchanged (a hard
link where it was a file already and the disk allows one). Killed and begun again, it reads anew and keeps the pictures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from minipovid.common.errors import MinipovidError
from minipovid.common.files import alone, finished, sweep
from minipovid.images.embedded import Embedded, Store, placed
from minipovid.images.load import inside, load
from minipovid.pairs import formats as shelf
from minipovid.pairs.formats import jsonl
from minipovid.pairs.pair import BadRow, Pair, Unpaired
from minipovid.pairs.reading import where
from minipovid.recipe import run_folder

PICTURES = "images"  # the folder of pictures below an import, or beside an export
GROUP_ROWS, GROUP_BYTES = 100, 32 << 20  # of parquet written at once, whichever comes first


class ImportCounts(NamedTuple):
    """What came out of an import: every row that the reader gave became a pair, a bad row or an unpaired one."""

    format: str
    pairs: int
    bad: int
    unpaired: int  # sound rows of which the format's own rule makes no pair
    pictures: int  # distinct ones
    picture_bytes: int


def import_pairs(
    path: Path,
    to: Path,
    format: str | None = None,
    images: Path | None = None,
    limit: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> ImportCounts:
    """Bring a data set into the folder `to`; `data.path: <to>/pairs.jsonl` then trains on it as it is.

    `format` is a file on the shelf formats/ (default: as recognised), `images` the folder of its picture paths
    (default: where it lies), `limit` a number of pairs and bad rows together; `progress` is called after each. Bad rows
    are left out and named in <to>/import.json. Raises MinipovidError where no row is usable, `to` holds anything else,
    or another process imports into it.
    """
    name = format or shelf.detect(path)
    begun = {"source": str(path.resolve()), "format": name}
    with alone(to):
        _claim(to, begun)
        work = _Import(images or (path if path.is_dir() else path.parent), to, progress)
        jsonl.write(to / run_folder.PAIRS, work.pairs(islice(shelf.reader(name).read(path), limit)))
        sizes = work.sizes.values()
        counts = ImportCounts(name, work.good, len(work.bad), len(work.unpaired), len(sizes), sum(sizes))
        bad, unpaired = ([row._asdict() for row in rows] for rows in (work.bad, work.unpaired))
        _note(to, {**begun, "finished": True, **counts._asdict(), "bad_rows": bad, "unpaired_rows": unpaired})
    if not counts.pairs:
        first = f" The first: {work.bad[0].where}: {work.bad[0].why}." if work.bad else ""
        raise MinipovidError(f"{path} holds no usable pair of format {name} among {len(work.bad)} rows.{first}")
    return counts


def _claim(to: Path, begun: dict[str, str]) -> None:
    """Make the folder this import's own, or raise MinipovidError where it is somebody else's."""
    note = to / "import.json"
    if note.is_file():
        try:
            theirs = json.loads(note.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise MinipovidError(f"{note} cannot be read ({error}); remove it, or choose another folder.") from None
        theirs = theirs if isinstance(theirs, dict) else {}
        if any(theirs.get(key) != value for key, value in begun.items()):
            raise MinipovidError(
                f"{to} holds the import of {theirs.get('source')} as {theirs.get('format')}; choose another folder."
            )
    elif to.exists() and not to.is_dir() or any((to / name).exists() for name in ("pairs.jsonl", PICTURES)):
        raise MinipovidError(f"{to} is in use and no import of minipovid's; choose another folder.")
    _note(to, {**begun, "finished": False})
    if (to / PICTURES).is_dir():
        sweep(to / PICTURES)


def _note(to: Path, content: dict[str, Any]) -> None:
    with finished(to / "import.json") as draft:
        draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Import:
    """Rows on their way in: pictures are brought into the folder, looked at, and each row's fate is counted."""

    def __init__(self, root: Path, to: Path, progress: Callable[[], object]) -> None:
        self.root, self.store, self.progress = root, Store(to / PICTURES), progress
        self.bad: list[BadRow] = []
        self.unpaired: list[BadRow] = []
        self.good = 0
        self.names: dict[str, str] = {}  # a picture as its row names it -> its name in the store
        self.whys: dict[str, str] = {}  # -> or why it is none
        self.sizes: dict[str, int] = {}  # bytes of each picture in the store

    def pairs(self, rows: Iterator[Pair | BadRow]) -> Iterator[Pair]:
        for number, row in enumerate(rows, 1):
            if isinstance(row, Pair):
                row = self._with_picture(row, number)
            if isinstance(row, Pair):
                self.good += 1
                yield row
            else:
                (self.unpaired if isinstance(row, Unpaired) else self.bad).append(row)
            self.progress()

    def _with_picture(self, pair: Pair, number: int) -> Pair | BadRow:
        key = str(pair.image)
        if key not in self.names and key not in self.whys:
            try:
                self.names[key] = self._bring(pair.image)
            except MinipovidError as error:
                self.whys[key] = str(error).rstrip(".")
        if key in self.whys:
            return BadRow(where(pair, number), self.whys[key])
        return replace(pair, image=f"{PICTURES}/{self.names[key]}")

    def _bring(self, image: str) -> str:
        """The name under which the picture now lies in the store. Raises MinipovidError where it is no good one."""
        if isinstance(image, Embedded):
            name = self.store.keep(image)
            file = self.store.folder / name
            try:
                if name not in self.sizes:  # a new one: its first bytes alone were seen, and a broken one is not kept
                    load(file)
            except MinipovidError:
                file.unlink()
                raise
        else:
            source = inside(self.root, placed(self.root, image))
            load(source)
            name = self.store.adopt(source)
        self.sizes[name] = (self.store.folder / name).stat().st_size
        return name


def export_trl(pairs: Path, to: Path, images: Path | None = None) -> int:
    """Write our pairs (jsonl) in TRL's columns, as `to`'s suffix says, and return how many there were.

    .parquet holds the pictures' bytes (datasets' Image feature); .jsonl names them relative to itself, and those that
    lie elsewhere are brought beside it. `images` is the folder of the picture paths (default: where the pairs lie).
    Raises MinipovidError for a row that is no pair and a picture that is not there: an export is whole or not at all.
    """
    root = images or pairs.parent
    writers = {".parquet": _write_parquet, ".jsonl": _write_jsonl}
    if to.suffix not in writers:
        raise MinipovidError(f"{to} must end in .parquet or .jsonl; these two hold TRL's columns.")
    if to.resolve() == pairs.resolve():
        raise MinipovidError(f"{to} is the file that is exported; name another.")
    count = 0

    def counted() -> Iterator[Pair]:
        nonlocal count
        for row in jsonl.read(pairs):
            if isinstance(row, BadRow):
                raise MinipovidError(f"{pairs.name}: {row.where}: {row.why}. Mend or remove the row.")
            count += 1
            yield row

    writers[to.suffix](counted(), root, to)
    return count


def _columns(pair: Pair, image: object) -> dict[str, Any]:
    """One row of TRL's: conversational, so that each model's own template places the picture."""
    return {
        "id": str(pair.id),
        "images": [image],
        "prompt": [{"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def _write_jsonl(pairs: Iterator[Pair], root: Path, to: Path) -> None:
    folder, store = to.parent.resolve(), Store(to.parent / PICTURES)
    with finished(to) as draft, draft.open("w", encoding="utf-8") as file:
        for pair in pairs:
            if isinstance(pair.image, Embedded):
                picture = folder / PICTURES / store.keep(pair.image)
            elif not (picture := _picture(root, pair)).is_relative_to(folder):
                picture = folder / PICTURES / store.adopt(picture)
            row = _columns(pair, picture.relative_to(folder).as_posix())
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(pairs: Iterator[Pair], root: Path, to: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    message = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts = [(side, message) for side in ("prompt", "chosen", "rejected")]
    schema = pyarrow.schema([("id", pyarrow.string()), ("images", pyarrow.list_(image)), *texts])
    with (
        finished(to) as draft,
        pyarrow.parquet.ParquetWriter(draft, schema.with_metadata({"huggingface": _FEATURES})) as writer,
    ):
        for group in _groups(pairs, root):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=writer.schema))


def _groups(pairs: Iterator[Pair], root: Path) -> Iterator[list[dict[str, Any]]]:
    """Rows with their pictures' bytes, as many as are written at once."""
    group, size = list[dict[str, Any]](), 0
    for pair in pairs:
        image = pair.image
        picture = Path(image) if isinstance(image, Embedded) else _picture(root, pair)
        data = image.data if isinstance(image, Embedded) else picture.read_bytes()
        group.append(_columns(pair, {"bytes": data, "path": picture.name}))
        size += len(data)
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _picture(root: Path, pair: Pair) -> Path:
    path = inside(root, placed(root, pair.image))
    if not path.is_file():
        raise MinipovidError(f"There is no picture {path} (row with id {pair.id}); check the image folder.")
    return path


_TEXT = {"dtype": "string", "_type": "Value"}
_MESSAGES = [{"role": _TEXT, "content": _TEXT}]
_TYPES = {"id": _TEXT, "images": [{"_type": "Image"}], **dict.fromkeys(["prompt", "chosen", "rejected"], _MESSAGES)}
# What datasets keeps beside a table's schema, in the notation that its old and new versions read.
_FEATURES = json.dumps({"info": {"features": _TYPES}})
