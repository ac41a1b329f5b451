"""A file or folder appears under its name only when it is finished: whoever is killed leaves no half-written one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; it takes the name `path` when the block ends well.

    A folder that stands there is replaced. What an earlier, killed writer left behind is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    remove(draft)
    yield draft
    if draft.is_dir():
        remove(path)
    os.replace(draft, path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
