"""Does this build of llama.cpp misplace CLIP's class token, and does the remedy mend it? Asked when a model is loaded.

A tower of 4 patches and one layer with random weights looks at a picture in llama.cpp, with and without the remedy, and
both are compared with the same tower in numpy.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from minipovid.common.arrays import Floats
from minipovid.common.errors import MinipovidError
from minipovid.inference.llama_cpp.class_token import ClassToken
from minipovid.inference.llama_cpp.libraries import version
from minipovid.inference.llama_cpp.tower import Canvas, Tower, n_embd
from minipovid.models.parts import mmproj

ClassTokenOrder = Literal["moved", "not needed"]
TESTED = "0.3.36"  # of llama-cpp-python: moved
HIDDEN, FFN, HEADS, SIDE, PATCH = 16, 24, 2, 8, 4
EPS, MEAN, STD = 1e-5, 0.5, 0.25
CLOSE = (
    0.05  # of the features' own size: llama.cpp is good to 0.0003 here, and off by 0.4 where the class token comes last
)
_verdicts: dict[tuple[int, bool], ClassTokenOrder] = {}
Weights = dict[str, Floats]


def verdict(model: Any, use_gpu: bool) -> ClassTokenOrder:
    """What pictures need beside this language model; found out once per process and width of model.

    Raises MinipovidError where llama.cpp is right neither with nor without the remedy.
    """
    width = n_embd(model)
    if (width, use_gpu) not in _verdicts:
        weights, canvas = _draw(width)
        with TemporaryDirectory(prefix="minipovid-") as folder:
            path = Path(folder) / "mmproj.gguf"
            _write(path, weights)
            right, mended = _errors(path, model, use_gpu, canvas, forward(weights, canvas))
        _verdicts[width, use_gpu] = judge(right, mended)
    return _verdicts[width, use_gpu]


def judge(plain: float, mended: float) -> ClassTokenOrder:
    """The verdict from the relative errors of llama.cpp's features without and with the remedy."""
    if plain < CLOSE:
        return "not needed"
    if mended < CLOSE:
        return "moved"
    raise MinipovidError(
        f"llama.cpp (llama-cpp-python {version()}) computes picture features that are {plain:.0%} wrong, and "
        f"{mended:.0%} with minipovid's remedy for its class token; install the tested version: "
        f"`pip install llama-cpp-python=={TESTED}`."
    )


def _errors(path: Path, model: Any, use_gpu: bool, canvas: Canvas, expected: Floats) -> tuple[float, float]:
    """How far llama.cpp's features are from the expected ones, without and with the remedy."""
    remedy = ClassToken()
    tower = Tower(path, model, use_gpu=use_gpu, n_threads=1, class_token=remedy)
    try:
        errors = []
        for remedy.enabled in (False, True):
            errors.append(float(np.linalg.norm(tower.encode(canvas) - expected) / np.linalg.norm(expected)))
    finally:
        tower.close()
    return errors[0], errors[1]


def _draw(width: int) -> tuple[Weights, Canvas]:
    """Weights of a pre-norm tower with one layer, a two-layer projector onto `width`, and a picture [8, 8, 3]."""
    rng = np.random.default_rng(0)
    tokens = (SIDE // PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        mmproj.CLASS_TOKEN: (HIDDEN,),
        "v.patch_embd.weight": (HIDDEN, 3, PATCH, PATCH),
        "v.position_embd.weight": (tokens, HIDDEN),
        "mm.0.weight": (HIDDEN, HIDDEN),
        "mm.0.bias": (HIDDEN,),
        "mm.2.weight": (width, HIDDEN),
        "mm.2.bias": (width,),
    }
    layer = {f"attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "out")}
    layer |= {"ffn_up": (FFN, HIDDEN), "ffn_down": (HIDDEN, FFN)}
    for name, shape in layer.items():
        shapes |= {f"v.blk.0.{name}.weight": shape, f"v.blk.0.{name}.bias": shape[:1]}
    for name in ("v.pre_ln", "v.blk.0.ln1", "v.blk.0.ln2"):
        shapes |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    weights = {}
    for name, sizes in shapes.items():
        fan_in = np.prod(sizes[1:]) if len(sizes) > 1 else 1.0  # so large that every patch's position matters
        weights[name] = (rng.standard_normal(sizes) / np.sqrt(fan_in)).astype(np.float32)
    return weights, rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _write(path: Path, weights: Weights) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, mmproj.ARCHITECTURE)
    writer.add_bool(mmproj.HAS_TOWER, True)
    writer.add_string(mmproj.PROJECTOR, mmproj.TWO_LINEAR)
    for key, number in (
        *(("image_size", SIDE), ("patch_size", PATCH), ("embedding_length", HIDDEN), ("feed_forward_length", FFN)),
        *(("block_count", 1), ("projection_dim", HIDDEN), ("attention.head_count", HEADS)),
    ):
        writer.add_uint32(mmproj.TOWER + key, number)
    writer.add_float32(f"{mmproj.TOWER}attention.layer_norm_epsilon", EPS)
    writer.add_array(mmproj.FEATURE_LAYER, [1])
    writer.add_array(mmproj.IMAGE_MEAN, [MEAN] * 3)
    writer.add_array(mmproj.IMAGE_STD, [STD] * 3)
    for name, weight in weights.items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def forward(weights: Weights, canvas: Canvas) -> Floats:
    """The tower as CLIP and LLaVA define it: features [4, width], the class token left out."""
    pixels = (canvas.astype(np.float32) / 255 - MEAN) / STD
    grid = SIDE // PATCH
    patches = pixels.reshape(grid, PATCH, grid, PATCH, 3).transpose(0, 2, 4, 1, 3).reshape(grid * grid, -1)
    patches = patches @ weights["v.patch_embd.weight"].reshape(HIDDEN, -1).T
    x = np.vstack([weights[mmproj.CLASS_TOKEN], patches]) + weights["v.position_embd.weight"]
    x = _norm(weights, "v.pre_ln", x)
    x = x + _attention(weights, _norm(weights, "v.blk.0.ln1", x))
    inner = _linear(weights, "v.blk.0.ffn_up", _norm(weights, "v.blk.0.ln2", x))
    x = x + _linear(weights, "v.blk.0.ffn_down", inner / (1 + np.exp(-1.702 * inner)))  # QuickGELU
    inner = _linear(weights, "mm.0", x[1:])
    gelu = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
    return _linear(weights, "mm.2", gelu)


def _attention(weights: Weights, x: Floats) -> Floats:
    q, k, v = (
        _linear(weights, f"v.blk.0.attn_{part}", x).reshape(len(x), HEADS, -1).swapaxes(0, 1)
        for part in ("q", "k", "v")
    )  # [heads, tokens, head_dim]
    scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(HIDDEN // HEADS))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return _linear(weights, "v.blk.0.attn_out", mixed.swapaxes(0, 1).reshape(len(x), HIDDEN))


def _linear(weights: Weights, name: str, x: Floats) -> Floats:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _norm(weights: Weights, name: str, x: Floats) -> Floats:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]
