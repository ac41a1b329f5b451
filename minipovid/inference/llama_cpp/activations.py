"""What goes into every matrix product of the language model, for whoever gathers an importance matrix."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from minipovid.common.arrays import Floats
from minipovid.inference.llama_cpp.ggml import Tensor, Watch, read
from minipovid.inference.llama_cpp.libraries import ggml

Observe = Callable[[str, Floats], None]  # (name of the weight, its inputs [rows, columns])


def watch_products(observe: Observe) -> Watch:
    """A watch for a llama_context that hands each product's inputs to `observe`; what that raises, `check` raises.

    Products of two activations (attention) and those with an adapter's own factors have no named weight and are left
    out; weights may be quantised and lie on any device.
    """
    base = ggml()
    base.ggml_op_name.restype, base.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int]

    def weight(node: Tensor) -> bytes:
        first = node.source(0)
        return first.name if first is not None else b""

    def wanted(node: Tensor) -> bool:
        return weight(node).endswith(b".weight") and base.ggml_op_name(node.op) == b"MUL_MAT"

    def look(node: Tensor) -> None:
        inputs = node.source(1)
        assert inputs is not None  # a product has two
        if all(inputs.ne):  # nothing goes into the head where no logits are wanted
            observe(weight(node).decode(), read(base, inputs))

    return Watch(wanted, look)
