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
    try:
        yield draft
        if draft.is_dir():
            remove(path)
        os.replace(draft, path)
    except BaseException:
        remove(draft)
        raise


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one. A folder first loses its name, so that no half of it bears it."""
    if path.is_dir() and not path.is_symlink():
        grave = path.with_name(f".{path.name.strip('.')}.gone")
        shutil.rmtree(grave, ignore_errors=True)
        os.replace(path, grave)
        shutil.rmtree(grave)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed writers and removers left in `folder`."""
    for leftover in (*folder.glob(".*.draft"), *folder.glob(".*.gone")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
