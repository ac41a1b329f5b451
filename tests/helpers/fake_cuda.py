"""A card that is not there: tensors that claim to be on CUDA in a torch without it, and what they would cost there.

    library = fake_cuda.build(folder)          # None where there is no compiler
    subprocess.run(..., env=... | fake_cuda.environment(library))      # torch asks for its hooks once, when it begins
    card = fake_cuda.FakeCard(gib=24)          # in that process
    with card:                                 # shapes, types and devices are real; numbers are not
        ...
    card.kernels, card.waits, card.peak, card.flop, card.attention

A device guard (fake_cuda.cpp) makes autograd and autocast believe in one card, torch's FakeTensorMode gives the shapes
and refuses operations across devices, and a dispatch mode counts. Attention is chosen as torch chooses it on a consumer
card (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). One card a process: nothing of this can be taken back.

Live bytes are those of storages on the card, rounded up to 512 as its allocator does, and what kernels take inside: a
dequantised matrix in bitsandbytes' 4-bit product, dQ in float32 in attention's backward pass. A kernel is an operation
that is no view; where CUDA has one for a list of tensors, fake mode counts one for each.
"""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
import sysconfig
import traceback
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

GIB = 2**30
SOURCE = Path(__file__).with_suffix(".cpp")
ROUNDING = 512  # bytes, of torch's allocator
SLOW_FROM = 512  # rows from which on bitsandbytes dequantises a matrix and lets cuBLAS multiply
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "slice", "select", "expand", "unsqueeze", "squeeze"),
    *(
        "detach",
        "alias",
        "as_strided",
        "split",
        "unbind",
        "reshape",
        "_reshape_alias",
        "split_with_sizes",
        "lift_fresh",
    ),
    *("unfold", "view_as", "diagonal", "chunk", "device", "empty", "empty_like", "new_empty", "empty_strided"),
    *("is_pinned", "_local_scalar_dense", "set_", "sym_size", "sym_numel", "sym_stride", "resize_", "is_same_size"),
    "_has_compatible_shallow_copy_type",
}
OTHER_FLOP = {  # of what torch's counter has no formula for
    "addmm_": lambda base, a, b: 2 * a.numel() * b.shape[1],
    "gemm_4bit": lambda a, b, shape, *_: 2 * a.numel() * shape[0],
}
SHAPED_BY_DATA = {"nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero"}


def build(folder: Path) -> Path | None:
    """The compiled guard, in `folder`; None where there is no C++ compiler. Takes half a minute, once."""
    from torch.utils.cpp_extension import include_paths, library_paths

    compiler, library = shutil.which("c++"), folder / "fake_cuda.so"
    if compiler is None:
        return None
    includes = [f"-I{path}" for path in (*include_paths(), sysconfig.get_path("include"))]
    links = [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-w", abi]
    command = [compiler, *flags, *includes, str(SOURCE), "-o", str(library), *links, "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """What a process wants in its environment to have the guard."""
    return {"LD_PRELOAD": str(library)}


@contextmanager
def real() -> Iterator[None]:
    """Within: no card, real numbers."""
    with unset_fake_temporarily(), _disable_current_modes():
        yield


class FakeCard(TorchDispatchMode):
    """Enter it to run on the card; `reset` begins a new count."""

    current: FakeCard

    def __init__(self, gib: float, capability: tuple[int, int] = (8, 9)) -> None:
        super().__init__()
        import bitsandbytes  # noqa: F401 - before CUDA seems to be there: its CUDA kernels want a CUDA build

        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.live, self.sizes = 0, dict[int, int]()
        FakeCard.current = self
        self.reset()
        _pretend(int(gib * GIB), capability)
        self._stack = ExitStack()

    def reset(self) -> None:
        self.peak, self.kernels, self.flop = self.live, 0, 0
        self.waits: list[str] = []
        self.attention: collections.Counter[str] = collections.Counter()
        self.operations: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> FakeCard:
        self._stack.enter_context(self.mode)
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def wait(self, why: str) -> None:
        """The host waits for the card."""
        self.waits.append(f"{why} at {_place()}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            if args[0].is_cuda:
                self.wait("item")
            return _number(args[0])
        if name in ("_to_copy", "copy_"):
            args = tuple(self._faked(value) for value in args)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        result = func(*args, **kwargs)
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        if any(value.is_cuda for value in (*given, *made)):
            self._count(name, func, args, kwargs, result, made)
        return result

    def _faked(self, value: Any) -> Any:
        """A real tensor on its way to the card; a fake one's constant would be computed on a card that is not there."""
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            value = self.mode.from_tensor(value)
        if isinstance(value, FakeTensor):
            value.constant = None
        return value

    def _count(self, name: str, func: Any, args: Any, kwargs: Any, result: Any, made: Sequence[Tensor]) -> None:
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            if source.is_cuda and not made[0].is_cuda:
                self.wait(f"copy of {tuple(source.shape)} to the host")
        if name in SHAPED_BY_DATA or (name.startswith("index") and _has_mask(args)):
            self.wait(name)
        if name not in VIEWS:
            self.kernels += 1
            self.operations[name] += 1
        if func._overloadpacket in flop_registry:
            self.flop += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        elif name in OTHER_FLOP:
            self.flop += OTHER_FLOP[name](*args)
        for value in made:
            self._hold(value)
        self.peak = max(self.peak, self.live + _inside(name, args))

    def _hold(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        key = storage._cdata
        if value.is_cuda and key not in self.sizes:
            self.sizes[key] = -(-storage.nbytes() // ROUNDING) * ROUNDING
            self.live += self.sizes[key]
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def _inside(name: str, args: Any) -> int:
    """Bytes that a kernel takes while it runs."""
    if name == "gemm_4bit" and args[0].numel() // args[0].shape[-1] > SLOW_FROM:
        weights = args[2][0] * args[2][1]
        return int(weights * args[0].element_size() + weights // 64 * 8)  # and the scales, in float32
    if name == "_scaled_dot_product_efficient_attention_backward":
        return int(args[1].numel() * 4)
    return 0


def _has_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(isinstance(each, Tensor) and (each.dtype == torch.bool or not each.is_cuda) for each in indices)


def _place() -> str:
    """The innermost line of the project that led here, or of a library where there is none."""
    frames = [frame for frame in traceback.extract_stack() if "fake_cuda" not in frame.filename]
    ours = [frame for frame in frames if "/minipovid/" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _number(value: Tensor) -> Any:
    return 1.0 if value.is_floating_point() else value.dtype == torch.bool or 1


# --- what torch is made to believe ---


def _pretend(total: int, capability: tuple[int, int]) -> None:
    """torch.cuda, tensors' ways to the host and attention as they are where there is a card of `total` bytes."""

    class Properties:
        name, total_memory, multi_processor_count = "fake card", total, 128
        major, minor = capability

    cuda: Any = torch.cuda
    answers: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "_lazy_init": None, "device_count": 1, "current_device": 0,
        "set_device": None, "is_bf16_supported": capability >= (8, 0), "mem_get_info": (total, total),
        "empty_cache": None,
        "get_device_properties": Properties, "get_device_capability": capability, "get_device_name": "fake card",
        "manual_seed": None, "manual_seed_all": None, "set_rng_state": None, "reset_peak_memory_stats": None,
        "max_memory_reserved": 0,
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    cuda.synchronize = lambda *_: FakeCard.current.wait("synchronize")
    cuda.max_memory_allocated = lambda *_: FakeCard.current.peak
    cuda.memory_allocated = lambda *_: FakeCard.current.live
    FakeTensor.tolist = _tolist
    Tensor.numpy = _numpy  # type: ignore[method-assign]
    Tensor.pin_memory = lambda self, *_: self  # type: ignore[assignment,method-assign]
    nn.Module._apply = _apply  # type: ignore[method-assign,assignment]
    torch.tensor = _tensor  # type: ignore[assignment]
    F.scaled_dot_product_attention = _attention  # type: ignore[assignment]
    F.rms_norm = _rms_norm  # type: ignore[assignment]


def _tolist(self: Tensor) -> Any:
    if self.is_cuda:
        FakeCard.current.wait(f"tolist of {tuple(self.shape)}")
    return np.full(tuple(self.shape), _number(self)).tolist()


_real_numpy, _real_tensor = Tensor.numpy, torch.tensor
_real_attention, _real_rms_norm = F.scaled_dot_product_attention, F.rms_norm


def _numpy(self: Tensor, **named: Any) -> Any:
    if isinstance(self, FakeTensor):
        return np.zeros(tuple(self.shape), str(self.dtype).removeprefix("torch."))
    return _real_numpy(self, **named)


def _tensor(data: Any, *, device: Any = None, **named: Any) -> Tensor:
    """torch copies what comes from pageable memory at once, behind all that the card has to do before."""
    made = _real_tensor(data, **named)
    if device is None or torch.device(device).type != "cuda":
        return made
    FakeCard.current.wait("torch.tensor(..., device=cuda)")
    return torch.empty(made.shape, dtype=made.dtype, device=device)


def _apply(self: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
    """Module.to; torch's own would swap tensors, which fake ones refuse."""
    for child in self.children() if recurse else ():
        child._apply(change)
    for key, value in self._parameters.items():
        if value is not None:
            with torch.no_grad():
                new = change(value)
            if (new.device, new.dtype) != (value.device, value.dtype):
                self._parameters[key] = nn.Parameter(new, value.requires_grad)
    self._buffers.update({key: change(value) for key, value in self._buffers.items() if value is not None})
    return self


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """As CUDA would choose: flash without a mask, memory-efficient with one, and plain matrices where neither can."""
    if not query.is_cuda:
        named = {"scale": scale, "enable_gqa": enable_gqa}
        return _real_attention(query, key, value, attn_mask, dropout_p, is_causal, **named)  # type: ignore[arg-type]
    chosen = FakeCard.current.attention
    if torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = (each.to(dtype) if each.dtype == torch.float32 else each for each in (query, key, value))
    is_half, width = query.dtype in (torch.float16, torch.bfloat16), query.shape[-1]
    if attn_mask is None and is_half and width % 8 == 0 and width <= 256:
        chosen["flash"] += 1
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]  # type: ignore[no-any-return]
    if width % (8 if is_half else 4):
        chosen["math"] += 1
        return _real_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    wants_grad = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    bias = None if attn_mask is None else _aligned(attn_mask, query, chosen)
    if bias is not None:
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    chosen["efficient"] += 1
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, bias, wants_grad, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]


def _aligned(mask: Tensor, query: Tensor, chosen: collections.Counter[str]) -> Tensor:
    """The mask as the efficient kernel wants it: additive, and each of its rows beginning at a multiple of 8."""
    if mask.dtype == torch.bool:
        chosen["mask converted"] += 1
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
    assert mask.dtype == query.dtype, f"a mask of {mask.dtype} for queries of {query.dtype}"
    if mask.stride(-1) != 1 or any(stride % 8 for stride in mask.stride()[:-1]):
        chosen["mask padded"] += 1
        columns = mask.shape[-1]
        mask = F.pad(mask, (0, 8 - columns % 8))[..., :columns]
    return mask


class _RmsNorm(torch.autograd.Function):
    """CUDA's fused kernels, for which a torch without CUDA takes seven: input and scales [rows] are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        FakeCard.current.kernels += 1
        ctx.save_for_backward(x, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        FakeCard.current.kernels += 1
        return torch.empty_like(ctx.saved_tensors[0])


def _rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    if not x.is_cuda:
        return _real_rms_norm(x, shape, weight, eps)
    return _RmsNorm.apply(x.float() if torch.is_autocast_enabled("cuda") else x)  # type: ignore[no-any-return]


# --- weights of no numbers ---


def nf4(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    """bitsandbytes' NF4 layer with double quantisation, of the linear layer's shape."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    rows, columns = linear.out_features, linear.in_features
    settings = {"bias": False, "compute_dtype": dtype, "quant_type": "nf4", "device": "meta"}
    with real():  # bitsandbytes' parameter is a subclass of Tensor, as fake ones are: the two do not mix
        layer = Linear4bit(columns, rows, **settings)

    def empty(count: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(count, dtype=kind, device="cuda")

    scales = rows * columns // 64
    second = QuantState(empty(-(-scales // 256)), code=empty(256), blocksize=256, dtype=torch.float32)
    state = QuantState(
        empty(scales, torch.uint8), torch.Size([rows, columns]), empty(16), 64, "nf4", dtype, empty(1)[0], second
    )
    weight: Any = nn.Parameter(empty(rows * columns // 2, torch.uint8)[:, None], requires_grad=False)
    weight.quant_state, weight.bnb_quantized, weight.compress_statistics = state, True, True
    weight.quant_type, weight.blocksize, weight.quant_storage = "nf4", 64, torch.uint8
    layer._parameters["weight"] = weight
    layer.quant_state = state
    return layer  # type: ignore[no-any-return]


def llava(folder: Path, text_model: Any, dtype: torch.dtype, in_4bit: bool) -> nn.Module:
    """The model that a folder's config.json describes, on the card, its language model in NF4 if so asked."""
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    with torch.device("cuda"), no_init_weights():
        base = AutoModelForImageTextToText.from_config(
            AutoConfig.from_pretrained(folder), dtype=dtype, attn_implementation="sdpa"
        )
    if in_4bit:
        for module in list(text_model(base).modules()):
            for key, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    module._modules[key] = nf4(child, dtype)
        base.is_loaded_in_4bit = True
    return base.requires_grad_(False)  # type: ignore[no-any-return]


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
