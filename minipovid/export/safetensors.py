"""The merged model in Hugging Face layout: the base's folder with the adapter in its weights, for any other program.

    write_merged(pair, Path("runs/my-run/merged"), "original")

Names, types and files are those of the base. A tensor that the adapter leaves alone is copied byte for byte; one that
it changes is computed in float32, a block of rows at a time, and rounded once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType as Kind

from minipovid.common.errors import MinipovidError
from minipovid.common.files import finished, need_space, read_json
from minipovid.common.threads import ahead, one_core_each
from minipovid.export.merge import Merged
from minipovid.export.writer import encode
from minipovid.models.hub import SETTINGS
from minipovid.models.parts import Place
from minipovid.models.stored_tensors import INDEX, StoredTensor

if TYPE_CHECKING:
    from minipovid.export.folder import Progress
    from minipovid.export.gguf_pair import GgufPair

KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16}
CHUNK = 2**23  # bytes of an unchanged tensor that are copied at a time
RECORD = "minipovid.json"  # what the folder was made of

Shards = Mapping[str, Mapping[str, StoredTensor]]  # file name -> canonical name -> tensor, in the order of the data


def write_merged(
    pair: GgufPair, folder: Path, merge_base: str, progress: Progress | None = None, max_shard_bytes: int = 5 * 2**30
) -> Path:
    """Write base plus adapter to `folder`, which appears when all of it is there; one made of the same is kept.

    `merge_base` is "original" or "nf4". `progress` is called with (shard, bytes written, bytes in all). Raises
    MinipovidError where the disk is too small, a number does not fit the base's type or `folder` holds something else.
    """
    settings = _settings(pair.model)
    names = sorted(tensor.name for tensor in pair.base.values())
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in settings}
    stamp = pair.stamp({"merge_base": merge_base, "names": names, "settings": digests})
    if _is_finished(folder, stamp):
        return folder
    merged = pair.merged(merge_base)
    shards = _shards(pair.base, max_shard_bytes)
    total = sum(tensor.n_bytes for tensor in pair.base.values())
    need_space(folder, total)
    with finished(folder) as draft:
        draft.mkdir()
        _copy_settings(settings, draft)
        for shard, tensors in shards.items():
            blocks = (data for name in tensors for data in _blocks(merged, name, pair.places.get(name)))
            with finished(draft / shard) as path:
                _write_shard(path, tensors, blocks, partial(progress, shard) if progress else None)
        if len(shards) > 1:
            where = {tensor.name: shard for shard, tensors in shards.items() for tensor in tensors.values()}
            _write_json(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
        _write_json(draft / RECORD, {"inputs": stamp, "merge_base": merge_base})
        merged.check_used(pair.factors)
    return folder


def _shards(base: Mapping[str, StoredTensor], max_bytes: int) -> Shards:
    """The base's tensors in the order in which they are stored, cut where a file would grow beyond `max_bytes`."""
    shards: list[dict[str, StoredTensor]] = [{}]
    room = max_bytes
    for name, tensor in sorted(base.items(), key=lambda item: (item[1].file.name, item[1].offset)):
        if tensor.n_bytes > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = tensor
        room -= tensor.n_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _blocks(merged: Merged, name: str, place: Place | None) -> Iterator[memoryview]:
    """One tensor's data as its base stores it; `place` is None for what has none in a GGUF, and no adapter changes."""
    tensor = merged.base[name]
    rounded = merged.nf4 is not None and place is not None and place.in_4bit
    if place is None or not (rounded or name in merged.factors):
        for start in range(0, tensor.n_bytes, CHUNK):
            yield tensor.raw(start, min(start + CHUNK, tensor.n_bytes)).data
        return
    for rows in merged.blocks(name, place._replace(heads=0)):  # transformers keeps rotate-half rows
        yield encode(rows, KINDS[tensor.dtype], tensor.name).reshape(-1).view(np.uint8).data


def _write_shard(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    blocks: Iterator[memoryview],
    progress: Callable[[int, int], None] | None,
) -> None:
    """8 bytes of header length, the JSON header, filled up with spaces to a multiple of 8, and the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    done = total = 0
    for tensor in tensors.values():
        start, total = total, total + tensor.n_bytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, total]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, one_core_each():
        file.write(len(text).to_bytes(8, "little") + text)
        for data in ahead(blocks):
            file.write(data)
            done += len(data)
            if progress is not None:
                progress(done, total)
        file.flush()
        os.fsync(file.fileno())


def _settings(model: Path) -> list[Path]:
    """Configuration, tokenizer and processor files."""
    files = sorted({path for pattern in SETTINGS for path in model.glob(pattern)})
    return [path for path in files if not path.name.endswith(".index.json") and path.name != RECORD]


def _copy_settings(files: Sequence[Path], folder: Path) -> None:
    """The merged weights are in no 4-bit form, whatever the base's config.json says of its own."""
    for source in files:
        if source.name != "config.json":
            shutil.copyfile(source, folder / source.name)
            continue
        config = read_json(source)
        config.pop("quantization_config", None)
        _write_json(folder / source.name, config)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _is_finished(folder: Path, stamp: str) -> bool:
    """Does it stand there already, made of the same? Raises MinipovidError for a folder that is not ours to replace."""
    if (folder / RECORD).is_file():
        return read_json(folder / RECORD).get("inputs") == stamp
    if folder.exists():
        raise MinipovidError(f"{folder} exists and holds no model that minipovid merged; choose another folder.")
    return False
