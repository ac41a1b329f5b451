"""llama.cpp's libraries, loaded in silence; what they complain of is kept for our own sentences."""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError

GPU, SHARING_GPU = 1, 2  # of enum ggml_backend_dev_type: a card of its own, one that shares the computer's memory
ERROR = 4  # ggml_log_level: GGML_LOG_LEVEL_ERROR
NO_FLASH_ATTENTION = 0  # of enum llama_flash_attn_type
_complaints: deque[str] = deque(maxlen=3)


def listen() -> None:
    """Forget what llama.cpp complained of before."""
    _complaints.clear()


def reason() -> str:
    """What llama.cpp complained of since `listen`, for a sentence."""
    return f" ({' '.join(_complaints)})" if _complaints else ""


@cache
def libraries() -> tuple[ModuleType, ModuleType]:
    """llama.cpp and its multimodal half, both silent. Raises MinipovidError where they are not installed."""
    try:
        from llama_cpp import llama_cpp, mtmd_cpp
    except (ImportError, FileNotFoundError, RuntimeError, OSError) as error:
        raise MinipovidError(
            f"llama-cpp-python does not load ({error}); install it with `pip install llama-cpp-python "
            "--extra-index-url https://abetlen.github.io/llama-cpp-python/whl/cpu`."
        ) from None
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    mtmd_cpp.mtmd_log_set(_silent(), ctypes.c_void_p(0))
    mtmd_cpp.mtmd_helper_log_set(_silent(), ctypes.c_void_p(0))
    return llama_cpp, mtmd_cpp


def version() -> str:
    """Of llama-cpp-python, which brings llama.cpp with it."""
    import llama_cpp

    return str(llama_cpp.__version__)


@cache
def _silent() -> Any:
    """A log callback that prints nothing and remembers the last errors; held for ever, since ctypes would free it."""
    from llama_cpp import llama_cpp

    def remember(level: int, text: bytes, _: object) -> None:
        if level == ERROR:
            _complaints.append(text.decode(errors="replace").strip())

    return llama_cpp.llama_log_callback(remember)


@cache
def ggml(name: str = "ggml-base") -> ctypes.CDLL:
    """One of llama.cpp's libraries below it: `ggml-base` reads and writes the numbers of a tensor, wherever it lies,
    and `ggml` knows the devices."""
    import llama_cpp
    from llama_cpp._ctypes_extensions import load_shared_library

    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    return load_shared_library(name, Path(override or Path(llama_cpp.__file__).parent / "lib"))  # type: ignore


class Card(NamedTuple):
    """A GPU as llama.cpp sees it."""

    name: str
    free: int  # bytes


def devices() -> list[Card]:
    """The GPUs that this llama.cpp uses, by CUDA, ROCm, Metal or Vulkan: cards of their own where there are any."""
    libraries()
    base, registry = ggml(), ggml("ggml")
    registry.ggml_backend_dev_get.restype = ctypes.c_void_p
    registry.ggml_backend_dev_count.restype = ctypes.c_size_t
    base.ggml_backend_dev_description.restype = ctypes.c_char_p
    found: dict[int, list[Card]] = {GPU: [], SHARING_GPU: []}
    for index in range(registry.ggml_backend_dev_count()):
        device = ctypes.c_void_p(registry.ggml_backend_dev_get(ctypes.c_size_t(index)))
        kind = base.ggml_backend_dev_type(device)
        if kind in found:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            found[kind].append(Card(base.ggml_backend_dev_description(device).decode(), free.value))
    return found[GPU] or found[SHARING_GPU]


def bytes_of(fill: Callable[[Any, int], int], room: int = 256) -> bytes | None:
    """What `fill(buffer, room)` writes, however long; None where it answers with a negative number.

    For the functions that answer with the length that they would have written had there been room for it.
    """
    buffer = ctypes.create_string_buffer(room)
    length = fill(buffer, room)
    if length >= room:
        return bytes_of(fill, length + 1)
    return buffer.raw[:length] if length >= 0 else None


def rows(pointer: Any, count: int, width: int) -> Floats:
    """llama.cpp's own numbers [count, width]; valid until it computes again."""
    memory: Any = (ctypes.c_float * (count * width)).from_address(ctypes.addressof(pointer.contents))
    return np.frombuffer(memory, np.float32).reshape(count, width)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
