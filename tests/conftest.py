"""What holds for every test: no network, no Hub, one thread, a cache folder of this process; and the built-in world."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory(prefix="minipovid-tests-")  # goes when the session ends
os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch; more make no small model faster
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_INTERNET = (socket.AF_INET, socket.AF_INET6)


def _refuse_outside(host: Any) -> None:
    """Raise RuntimeError unless `host` is this machine."""
    if host in (None, "", "localhost", b"localhost"):
        return
    try:
        inside = ipaddress.ip_address(host if isinstance(host, str) else host.decode()).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise RuntimeError(f"a test wants the network: {host}")


class _LoopbackSocket(socket.socket):
    """A socket that connects to this machine only."""

    def connect(self, address: Any) -> None:
        if self.family in _INTERNET:
            _refuse_outside(address[0])
        super().connect(address)

    def connect_ex(self, address: Any) -> int:
        if self.family in _INTERNET:
            _refuse_outside(address[0])
        return super().connect_ex(address)


_getaddrinfo = socket.getaddrinfo


def _loopback_getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
    _refuse_outside(host)
    return _getaddrinfo(host, *rest, **named)


socket.socket = _LoopbackSocket  # type: ignore[misc]
socket.getaddrinfo = _loopback_getaddrinfo


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` of setup.cfg means: one process a core, as the memory allows (each takes up to 2 GB).

    At most four, because a file's tests stay together and the longest file is a tenth of all. None, so that the tests
    run in pytest's own process, where a file is named or nothing is captured (-s): whoever tries one thing waits for no
    process to start and sees what is printed. `-n N` on the command line is N.
    """
    if config.option.capture == "no" or any(each.split("::")[0].endswith(".py") for each in config.args):
        return 0
    processes = min(4, os.cpu_count() or 1, psutil.virtual_memory().available // 2**31)
    return processes if processes > 1 else 0


OnceForAll = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once_for_all(tmp_path_factory: pytest.TempPathFactory) -> OnceForAll:
    """`once_for_all(name, build)` is a path that `build` fills in the first process that asks, for all processes of
    these tests. `build` lets its path appear when it is whole; nobody changes it afterwards."""
    own = tmp_path_factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def path(name: str, build: Callable[[Path], object]) -> Path:
        with FileLock(place / f"{name}.lock"):
            if not (place / name).exists():
                build(place / name)
        return place / name

    return path


@pytest.fixture(scope="session")
def drawn_world(once_for_all: OnceForAll) -> Path:
    """The built-in world on disk, as it is drawn."""
    from minipovid import tinyworld

    return once_for_all("world", tinyworld.materialise)


@pytest.fixture(scope="session")
def built_in_pairs(drawn_world: Path, once_for_all: OnceForAll) -> tuple[Path, Path]:
    """The built-in world and its pairs in the cache folder of this process: (the file of pairs, the world's folder)."""
    from minipovid import tinyworld
    from minipovid.common.caches import cache_folder
    from minipovid.common.files import finished
    from minipovid.pairs.make import builtin

    def build(cache: Path) -> None:
        with finished(cache) as draft, pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(draft))
            shutil.copytree(drawn_world, cache_folder() / tinyworld.NAME, copy_function=os.link)
            builtin.pairs()

    ours = cache_folder() / tinyworld.NAME
    ours.parent.mkdir(exist_ok=True)
    ours.symlink_to(once_for_all("built-in", build) / ours.parent.name / ours.name)
    return builtin.pairs()
