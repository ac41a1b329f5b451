"""A file or folder appears under its name only when it is finished: whoever is killed leaves no half-written one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError

DEEPEST = 100  # objects and lists within each other in a JSON file


@contextmanager
def finished(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, for a file or a folder; it takes the name `path` when the block ends well.

    A folder that stands there is replaced. What an earlier, killed writer left behind is removed. A system's error in
    the block (a full disk) names `path`, also where it named no file or the draft, or came from a library in Rust.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    remove(draft)
    try:
        yield draft
        if draft.is_dir():
            remove(path)
        os.replace(draft, path)
    except BaseException as error:
        remove(draft)
        refused = _by_system(error)
        if refused is None:
            raise
        name = str(path) if refused.filename is None else str(refused.filename).replace(str(draft), str(path))
        raise OSError(refused.errno, refused.strerror, name) from None


def _by_system(error: BaseException) -> OSError | None:
    """The operating system's refusal. What is written in Rust, as safetensors is, tells its number in the message."""
    if isinstance(error, OSError):
        return error if error.errno is not None else None
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


class BusyError(MinipovidError):
    """Another process writes there."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within: no other process of this machine that asks the same writes to `folder`. Raises BusyError where one does
    already. The system gives the lock back when a process ends, however it ends."""
    from filelock import FileLock, Timeout

    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"minipovid-{name}.lock", timeout=0, mode=0o666):
            yield
    except Timeout:
        raise BusyError(f"Another process is writing to {folder}; wait until it is done.") from None


def digest(path: Path) -> bytes:
    """SHA-256 of a file's content, 32 bytes, in memory that does not grow with it."""
    content = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            content.update(block)
    return content.digest()


def need_space(folder: Path, n_bytes: int) -> None:
    """Raise MinipovidError where the disk that holds `folder`, or will, has not so many bytes free."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if n_bytes > free:
        raise MinipovidError(
            f"{folder} needs {_gib(n_bytes)} of disk for this and {_gib(free)} are free; make room there, or write to "
            "another disk."
        )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one. A folder first loses its name, so that no half of it bears it."""
    if path.is_dir() and not path.is_symlink():
        grave = path.with_name(f".{path.name.strip('.')}.gone")
        shutil.rmtree(grave, ignore_errors=True)
        os.replace(path, grave)
        shutil.rmtree(grave)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what killed writers and removers of files of these names left in `folder`."""
    for leftover in (*folder.glob(f".{names}.draft"), *folder.glob(f".{names}.gone")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def read_json(path: Path, remedy: str = "") -> dict[str, Any]:
    """A JSON object. Raises MinipovidError, with the `remedy` at its end, where the file is missing or is not one."""
    end = f"; {remedy}." if remedy else "."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        deep = _is_deep(content)
    except FileNotFoundError:
        raise MinipovidError(f"{path} is missing{end}") from None
    except (OSError, ValueError) as error:
        raise MinipovidError(f"{path} cannot be read as JSON: {error}{end}") from None
    except RecursionError:
        deep = True
    if deep:
        raise MinipovidError(f"{path} is nested more than {DEEPEST} deep{end}")
    if not isinstance(content, dict):
        raise MinipovidError(f"{path} does not hold a JSON object{end}")
    return content


def _is_deep(content: Any) -> bool:
    """Deeper than DEEPEST: what is read further would exhaust Python's stack."""
    level = [content]
    for _ in range(DEEPEST):
        level = [child for each in level if isinstance(each, (dict, list)) for child in _children(each)]
    return bool(level)


def _children(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node
