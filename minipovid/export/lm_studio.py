"""LM Studio's folder layout: <models>/<publisher>/<model>/, the text files and their mmproj side by side."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished
from minipovid.export import writer
from minipovid.export.naming import FILE_NAME
from minipovid.export.source import ADAPTER

PUBLISHER, MMPROJ = "minipovid", "mmproj-"


def lm_studio(folder: Path, home: Path) -> Path:
    """Put the GGUF pair of `folder` into LM Studio's models folder `home`; returns the folder that it lists as a model.

    Files are hard-linked where both lie on one disk, so that they take no room twice, else copied. What is there and
    unchanged is left; what an earlier export of this adapter put there and this one has not is removed. Raises
    MinipovidError where there is no pair, no models folder, or where files of another adapter have that name.
    """
    if not home.is_dir():
        raise MinipovidError(f"There is no folder {home}; start LM Studio once, or name its models folder.")
    files = {path.name: path for path in sorted(folder.glob("*.gguf")) if _is_of_a_pair(path.name)}
    stems = {name.removeprefix(MMPROJ).rpartition("-")[0] for name in files}
    if len(stems) != 1 or len({name.startswith(MMPROJ) for name in files}) != 2:
        names = ", ".join(files) or "no GGUF files"
        raise MinipovidError(f"LM Studio needs the text and the mmproj file of one model, but {folder} holds {names}.")
    place = home / PUBLISHER / stems.pop()
    own = {writer.stamp(path, ADAPTER) for path in files.values()}
    if any(writer.stamp(path, ADAPTER) not in own for path in place.glob("*.gguf")):
        raise MinipovidError(
            f"{place} holds the files of another run, or of this one before it was trained again; export under another "
            "name (--name), or remove that folder."
        )
    place.mkdir(parents=True, exist_ok=True)
    for stale in place.glob("*.gguf"):
        if stale.name not in files:
            stale.unlink()
    for name, path in files.items():
        to = place / name
        if to.exists() and _is_same(path, to):
            continue
        with finished(to) as draft:
            try:
                os.link(path, draft)
            except OSError:  # another disk, or one that knows no links
                shutil.copy2(path, draft)
    return place


def _is_of_a_pair(name: str) -> bool:
    """Not a LoRA, which LM Studio cannot load, and not a file that follows no convention."""
    parts = FILE_NAME.fullmatch(name)
    return parts is not None and parts["type"] is None


def _is_same(path: Path, to: Path) -> bool:
    """The same file under another name, or a copy of it as it is now."""
    a, b = path.stat(), to.stat()
    return path.samefile(to) or (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)
