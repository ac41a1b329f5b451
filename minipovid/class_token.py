"""The remedy for llama.cpp's order of CLIP's class token, watched into its compute graph by ctypes alone."""

from __future__ import annotations

import ctypes

import numpy as np

# bool callback(struct ggml_tensor * node, bool ask, void * user_data)
EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)


class ClassToken:
    """Puts CLIP's class embedding where it belongs while llama.cpp encodes a picture.

    tools/mtmd/models/llava.cpp concatenates (patches, class token), but the position embeddings and the rows taken at
    the end expect (class token, patches): every patch gets its neighbour's position and patch 0 is lost
    (ggml-org/llama.cpp issue 25814). The remedy waits for that very concatenation and rolls its rows by one. Where
    llama.cpp concatenates in the right order, the class embedding is the first operand and nothing is found to mend.

    `ggml_base` is the library that reads and writes the numbers of a tensor, wherever it lies.
    """

    def __init__(self, ggml_base: ctypes.CDLL) -> None:
        self._base = ggml_base
        self.moved = False  # did the last picture need it?
        # ctypes frees a callback that nobody holds, and llama.cpp would call into nothing.
        self.callback = EvalCallback(self._on_node)

    def begin(self) -> None:
        """A new picture is about to be encoded."""
        self.moved = False

    def _on_node(self, address: int, ask: bool, _: object) -> bool:
        """llama.cpp asks for each node whether we want to see it, and shows those that we do."""
        if ask:
            return not self.moved and self._is_misplaced(_GgmlTensor.from_address(address))
        self._roll(address, _GgmlTensor.from_address(address))
        self.moved = True
        return True

    @staticmethod
    def _is_misplaced(node: _GgmlTensor) -> bool:
        if not node.src[1]:
            return False
        second = _GgmlTensor.from_address(node.src[1])
        return bool(second.name == b"v.class_embd" and node.ne[0] == second.ne[0])

    def _roll(self, address: int, node: _GgmlTensor) -> None:
        rows = np.empty((node.ne[1], node.ne[0]), np.float32)
        at, size = ctypes.c_void_p(rows.ctypes.data), ctypes.c_size_t(rows.nbytes)
        self._base.ggml_backend_tensor_get(ctypes.c_void_p(address), at, ctypes.c_size_t(0), size)
        rows[:] = np.roll(rows, 1, axis=0)
        self._base.ggml_backend_tensor_set(ctypes.c_void_p(address), at, ctypes.c_size_t(0), size)


class _GgmlTensor(ctypes.Structure):
    """struct ggml_tensor of ggml/include/ggml.h, as far as it is read here."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    ]
