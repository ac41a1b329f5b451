"""A GGUF file written block by block, so that no more than one block of rows is ever in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from minipovid.errors import MinipovidError


@dataclass(frozen=True)
class Entry:
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
    entries: Sequence[Entry],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the whole file; `progress` is called with (bytes written, bytes in all).

    Raises MinipovidError for a number that the type cannot hold.
    """
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for entry in entries:
        byte_shape = gguf.quant_shape_to_byte_shape(entry.shape, entry.kind)
        writer.add_tensor_info(entry.name, byte_shape, np.dtype(np.uint8), entry.n_bytes, entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    done, total = 0, sum(entry.n_bytes for entry in entries)
    for entry in entries:
        writer.write_padding(file, file.tell())
        for block in entry.blocks():
            data = _encode(block, entry)
            data.tofile(file)
            done += data.nbytes
            if progress is not None:
                progress(done, total)
        writer.write_padding(file, file.tell())
    file.flush()
    os.fsync(file.fileno())
    writer.close()


def _encode(block: npt.NDArray[np.float32], entry: Entry) -> npt.NDArray[Any]:
    if entry.kind is Kind.F16 and np.abs(block).max(initial=0) > np.finfo(np.float16).max:
        raise MinipovidError(f"{entry.name} holds numbers beyond float16's 65,504; export it as bf16 or f32.")
    encoded: npt.NDArray[Any] = np.ascontiguousarray(gguf.quants.quantize(block, entry.kind))
    return encoded


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
