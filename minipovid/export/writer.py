"""A GGUF file written block by block, so that no more than one block of rows is ever in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGMLQuantizationType as Kind

from minipovid.common.errors import MinipovidError
from minipovid.common.threads import ahead, one_core_each

ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT  # each tensor's data begins at a multiple of so many bytes


@dataclass(frozen=True)
class TensorEntry:
    """One tensor to write: `blocks` yields its rows in float32, in order."""

    name: str
    shape: Sequence[int]  # rows first, as numpy counts
    kind: Kind
    blocks: Callable[[], Iterator[npt.NDArray[np.float32]]]

    @property
    def n_bytes(self) -> int:
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // per_block * block_bytes


def write(
    path: Path,
    metadata: Mapping[str, Any],
    entries: Sequence[TensorEntry],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the whole file; `progress` is called with (bytes written, bytes in all).

    Tensors stand in the order of their names, so that the file does not depend on how its sources were sharded.
    Raises MinipovidError for a number that the type cannot hold, OSError where the disk is full.
    """
    entries = sorted(entries, key=_by_number)
    _write_head(path, metadata, entries)
    done, total = 0, size(entries)
    with path.open("ab") as file, one_core_each():
        file.write(bytes(-file.tell() % ALIGNMENT))
        for data in ahead(_data(entries)):
            file.write(data)
            done += len(data)
            if progress is not None:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())


def size(entries: Iterable[TensorEntry]) -> int:
    """Bytes of the tensors in a file; before them stand the metadata, a few MB of vocabulary."""
    return sum(entry.n_bytes + -entry.n_bytes % ALIGNMENT for entry in entries)


def encode(block: npt.NDArray[np.float32], kind: Kind, name: str) -> npt.NDArray[Any]:
    """A block of rows as `kind` stores it, bit for bit as gguf.quants rounds. Raises MinipovidError on overflow."""
    if kind is Kind.F32:
        return np.ascontiguousarray(block)
    rows = torch.from_numpy(np.ascontiguousarray(block))
    if kind is Kind.F16:
        if rows.numel() and max(abs(float(end)) for end in rows.aminmax()) > LARGEST_F16:
            raise MinipovidError(f"{name} holds numbers beyond float16's 65,504; export it as bf16 or f32.")
        return rows.half().numpy()
    if kind is Kind.BF16:
        return rows.bfloat16().view(torch.int16).numpy()
    if kind is Kind.Q8_0:
        return _q8_0(rows.view(-1, 32))
    other: npt.NDArray[Any] = gguf.quants.quantize(block, kind)
    return other


LARGEST_F16 = 65504.0
PIECE = 2**12  # blocks of 32 at a time: larger ones' temporaries would each be fetched from the system anew
_HALF = torch.tensor(np.nextafter(np.float32(0.5), np.float32(0)))  # added and cut off, it rounds halves away from 0


def _q8_0(blocks: torch.Tensor) -> npt.NDArray[Any]:
    """32 numbers share a step of max / 127: 2 bytes of float16 step, then 32 of 8 bits (ggml's block_q8_0)."""
    packed = torch.empty(len(blocks), 34, dtype=torch.int8)
    for part, to in zip(blocks.split(PIECE), packed.split(PIECE), strict=True):
        step = part.abs().amax(1, keepdim=True) / 127
        scaled = part * torch.where(step == 0, 0, 1 / step)
        scaled += torch.copysign(_HALF, scaled)
        to[:, :2] = step.half().view(torch.int8)
        to[:, 2:] = scaled  # the cast cuts off
    return packed.numpy()


def _by_number(entry: TensorEntry) -> list[Any]:
    """blk.2 before blk.10: text and numbers of a name in turn."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", entry.name)]


def _write_head(path: Path, metadata: Mapping[str, Any], entries: Sequence[TensorEntry]) -> None:
    """Everything that stands before the tensors' data."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for entry in entries:
        byte_shape = gguf.quant_shape_to_byte_shape(entry.shape, entry.kind)
        writer.add_tensor_info(entry.name, byte_shape, np.dtype(np.uint8), entry.n_bytes, entry.kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    finally:
        writer.close()


def _data(entries: Sequence[TensorEntry]) -> Iterator[memoryview]:
    """The data section: every tensor's blocks, and zeros up to where the next tensor may begin."""
    for entry in entries:
        n_bytes = 0
        for block in entry.blocks():
            data = encode(block, entry.kind, entry.name).reshape(-1).view(np.uint8)
            n_bytes += len(data)
            yield data.data
        if n_bytes != entry.n_bytes:
            raise MinipovidError(f"{entry.name} has {n_bytes} bytes, not {entry.n_bytes}; a defect of minipovid.")
        if padding := -n_bytes % ALIGNMENT:
            yield memoryview(bytes(padding))


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A metadata key: bool, text, a list, a float as float32, and every number that counts something as uint32."""
    adders: dict[type, Any] = {
        bool: writer.add_bool,
        str: writer.add_string,
        int: writer.add_uint32,
        float: writer.add_float32,
    }
    adder = adders.get(type(value), writer.add_array)
    adder(key, value)


def stamp(path: Path, key: str) -> str | None:
    """A text key of a finished GGUF; None where there is no such file or key."""
    if not path.is_file():
        return None
    try:
        entry = gguf.GGUFReader(path).get_field(key)
    except (ValueError, IndexError):  # another program's file, or a damaged one: it will be written anew
        return None
    return None if entry is None else str(entry.contents())
