"""The tensors of a folder in Hub layout, read row by row without torch.

    tensors = Tensors(folder)
    tensors["lm_head.weight"].rows(0, 2048)  # float32, straight from the shard

A safetensors file is 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, and the raw data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minipovid.common.errors import MinipovidError
from minipovid.common.files import read_json

INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
SAMPLE = 64 * 1024  # bytes of each tensor that enter the fingerprint


def shards(folder: Path) -> list[str]:
    """File names of the weights, as the index says; a folder without an index has one file."""
    index = folder / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    names = sorted(set(read_json(index).get("weight_map", {}).values()))
    foreign = [name for name in names if name != Path(name).name]
    if foreign:
        raise MinipovidError(f"{index} points to {foreign[0]!r}, outside its own folder.")
    return names


@dataclass(frozen=True)
class StoredTensor:
    """One tensor on disk: nothing is read before it is asked for."""

    name: str
    file: Path
    dtype: str  # as safetensors spells it: "F32", "F16", "BF16", ...
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    n_bytes: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def raw(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.uint8]:
        """Bytes [start, stop) of the data as they are stored. Raises MinipovidError where the file ends before."""
        stop = self.n_bytes if stop is None else stop
        with self.file.open("rb") as file:
            file.seek(self.offset + start)
            data = np.fromfile(file, np.uint8, stop - start)
        if len(data) != stop - start:
            raise MinipovidError(f"{self.file} was cut short while {self.name} was read; fetch it again.")
        return data

    def rows(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Rows [start, stop) along the first axis as float32; a 1-D tensor's rows are its numbers.

        Raises MinipovidError where the tensor holds something else than 16- or 32-bit floats.
        """
        if self.dtype not in DTYPES:
            raise MinipovidError(
                f"{self.file} holds {self.name} as {self.dtype}; only {', '.join(DTYPES)} can be used."
            )
        stop = self.shape[0] if stop is None else min(stop, self.shape[0])
        row = self.n_bytes // self.shape[0]
        flat: npt.NDArray[Any] = self.raw(start * row, stop * row).view(DTYPES[self.dtype])
        if self.dtype == "BF16":  # bfloat16 is the upper half of a float32
            wide = np.zeros((len(flat), 2), "<u2")
            wide[:, 1] = flat
            flat = wide.view("<f4")
        rows: npt.NDArray[np.float32] = flat.astype(np.float32, copy=False).reshape(stop - start, *self.shape[1:])
        return rows


class Tensors(Mapping[str, StoredTensor]):
    """Every tensor of a folder's safetensors (or of one such file) by its stored name, over all shards.

    Raises MinipovidError for a missing or damaged file.
    """

    def __init__(self, path: Path):
        files = [path / name for name in shards(path)] if path.is_dir() else [path]
        self._tensors = {tensor.name: tensor for file in files for tensor in _header(file)}

    def __getitem__(self, name: str) -> StoredTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def fingerprint(self) -> str:
        """That of all of them, under their stored names."""
        return fingerprint(self)


def fingerprint(tensors: Mapping[str, StoredTensor]) -> str:
    """SHA-256 over names, shapes and the first 64 KiB of every tensor: quick for 13 GB, new after training.

    Shards and order do not enter it; nor do spellings where the names that `tensors` goes by are canonical.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.raw(0, min(SAMPLE, tensor.n_bytes)).data)
    return digest.hexdigest()


def _header(file: Path) -> Iterator[StoredTensor]:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size - 8:
                raise MinipovidError(f"{file} is damaged or cut short; fetch it again.")
            header = json.loads(stream.read(length))
    except FileNotFoundError:
        raise MinipovidError(f"The weights {file} are missing.") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise MinipovidError(f"{file} is damaged or no safetensors file; fetch it again.") from None
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        tensor = StoredTensor(name, file, entry["dtype"], tuple(entry["shape"]), 8 + length + start, stop - start)
        itemsize = DTYPES[tensor.dtype].itemsize if tensor.dtype in DTYPES else 0
        if 8 + length + stop > size or (itemsize and tensor.n_bytes != tensor.size * itemsize):
            raise MinipovidError(f"{file} is damaged or cut short: {name} does not fit; fetch it again.")
        yield tensor
