"""The pictures: each is looked at once, a few at a time, beside the reading of the rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.images import load as images
from minipovid.images.embedded import Embedded, placed

WORKERS = 4
AHEAD = 16  # pictures in the works; those that lay inside the data file are in memory for as long


class PictureCheck:
    """Which pictures there are, which rows show them, and which of them nobody can see."""

    def __init__(self, root: Path, decode: bool) -> None:
        self.root, self.decode = root, decode
        self.pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="look")
        self.works: deque[tuple[str, Future[str | None]]] = deque()
        self.rows: dict[str, list[str]] = {}  # picture -> the rows that show it
        self.whys: dict[str, str] = {}  # broken picture -> why

    def __len__(self) -> int:
        return len(self.rows)

    def look(self, image: str, place: str) -> str:
        """The picture's plain name; what is wrong with it `broken` will say."""
        name = str(image) if isinstance(image, Embedded) else placed(self.root, image)
        if name not in self.rows:
            self.works.append((name, self.pool.submit(self._why, image if isinstance(image, Embedded) else name)))
            if len(self.works) > AHEAD:
                self._settle()
        self.rows.setdefault(name, []).append(place)
        return name

    def broken(self) -> Iterator[tuple[str, str]]:
        """(row, why) of every row whose picture cannot be seen."""
        while self.works:
            self._settle()
        self.pool.shutdown()
        yield from ((place, why) for name, why in self.whys.items() for place in self.rows[name])

    def _settle(self) -> None:
        name, work = self.works.popleft()
        if why := work.result():
            self.whys[name] = why

    def _why(self, image: str) -> str | None:
        try:
            if isinstance(image, Embedded):
                if self.decode:
                    images.decode(image.data, str(image))
            elif self.decode:
                images.load(images.inside(self.root, image))
            elif not images.inside(self.root, image).is_file():
                return f"There is no picture {self.root / image}"
        except MinipovidError as error:
            return str(error).rstrip(".")
        return None
