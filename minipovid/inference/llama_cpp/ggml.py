"""A look into llama.cpp's compute graph while it is computed, by ctypes alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from minipovid.common.arrays import Floats

F32 = 0  # of enum ggml_type
# bool callback(struct ggml_tensor * node, bool ask, void * user_data)
EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class Tensor(ctypes.Structure):
    """struct ggml_tensor of ggml/include/ggml.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),  # numbers along each axis, the fastest first
        ("nb", ctypes.c_size_t * 4),  # bytes from one to the next along each axis
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    ]

    def source(self, index: int) -> Tensor | None:
        """An operand of this node."""
        address = self.src[index]
        return Tensor.from_address(address) if address else None


class Watch:
    """A callback for llama.cpp that shows `look` every node that `wanted` asks for, as soon as it is computed.

    An exception in either ends the computation and is kept: ctypes would print and forget it. `check` raises it.
    """

    def __init__(self, wanted: Callable[[Tensor], bool], look: Callable[[Tensor], None]) -> None:
        self._wanted, self._look = wanted, look
        self._error: BaseException | None = None
        # ctypes frees a callback that nobody holds, and llama.cpp would call into nothing.
        self.callback = EvalCallback(self._on_node)

    def check(self) -> None:
        """Raise what was raised inside the callback since the last check."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        """llama.cpp asks for each node whether we want to see it, and then shows those that we do."""
        try:
            node = Tensor.from_address(address)
            if ask:
                return self._wanted(node)
            self._look(node)
        except BaseException as error:
            self._error = error
            return False
        return True


def read(base: ctypes.CDLL, tensor: Tensor) -> Floats:
    """The numbers [rows, columns] of a float32 tensor on any device, further axes laid out as rows; a copy.

    `base` is libggml-base. A view's gaps are read along with it and left out here.
    """
    if tensor.type != F32:
        raise ValueError(f"the tensor {tensor.name!r} has type {tensor.type}, not float32")
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    span = 4 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    raw = np.empty(span // 4, np.float32)
    base.ggml_backend_tensor_get(*_arguments(tensor, raw))
    return np.lib.stride_tricks.as_strided(raw, shape, strides).reshape(-1, shape[-1]).copy()


def write(base: ctypes.CDLL, tensor: Tensor, numbers: Floats) -> None:
    """Replace all numbers of a contiguous float32 tensor."""
    base.ggml_backend_tensor_set(*_arguments(tensor, np.ascontiguousarray(numbers)))


def _arguments(tensor: Tensor, numbers: Floats) -> tuple[object, ...]:
    address = ctypes.c_void_p(ctypes.addressof(tensor))
    return address, ctypes.c_void_p(numbers.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(numbers.nbytes)
