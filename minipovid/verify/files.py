"""What is in a GGUF: is it whole, does it say of itself what the model says, are its weights the merged ones?

Nothing of llama.cpp is asked, and no more than some rows of each tensor are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf

from minipovid.models.parts import mmproj
from minipovid.verify import tensors, weights
from minipovid.verify.causes import Cause, listed
from minipovid.verify.expected import Expected


def opened(path: Path) -> gguf.GGUFReader | Cause:
    """The file's header, with its tensors mapped; the cause where it is not whole."""
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, OverflowError) as error:
        size = path.stat().st_size
        what = f"it ends after {size:,} bytes, before its tensors do, or is damaged ({str(error).splitlines()[0]})"
        return Cause.of(path.name, "truncated", what)


def value(reader: gguf.GGUFReader, key: str) -> Any:
    """A metadata key; None where there is no such."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def examine(name: str, reader: gguf.GGUFReader, expected: Expected, other: Expected | None) -> Iterator[Cause]:
    """Every fault that can be seen without running the file; `other` is the same model on the other base."""
    yield from _metadata(name, reader, expected.pair.settings(expected.file))
    yield from weights.examine(reader.tensors, expected, other, name)


def unread(name: str, reader: gguf.GGUFReader) -> Iterator[str]:
    """A note about weights that could not be looked into."""
    kinds = [tensor.tensor_type for tensor in reader.tensors if not tensors.is_readable(tensor.tensor_type)]
    if kinds:
        types = listed(sorted({kind.name for kind in kinds}))
        share = f"{len(kinds)} of {len(reader.tensors)} tensors"
        yield f"{name}: its weights of type {types} ({share}) were not looked into: gguf-py cannot read them."


def _metadata(name: str, reader: gguf.GGUFReader, wanted: Mapping[str, Any]) -> Iterator[Cause]:
    """Keys that the model's configuration settles and the file has otherwise."""
    odd = {key: value(reader, key) for key, each in wanted.items() if not _same(value(reader, key), each)}
    layer = odd.pop(mmproj.FEATURE_LAYER, wanted)
    if layer is not wanted:
        due = listed(wanted[mmproj.FEATURE_LAYER])
        now = "missing" if layer is None else layer
        what = f"{mmproj.FEATURE_LAYER} is {now}, but the model was trained with {due}"
        yield Cause.of(name, "wrong feature layer", what)
    if odd:
        pairs = (f"{key} is {'missing' if each is None else each}, not {wanted[key]}" for key, each in odd.items())
        yield Cause.of(name, "other settings", listed(pairs))


def _same(stored: Any, wanted: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        whole = isinstance(stored, list) and len(stored) == len(wanted)
        return whole and all(_same(*both) for both in zip(stored, wanted, strict=True))
    if isinstance(wanted, float) and isinstance(stored, (int, float)):
        return math.isclose(stored, wanted, rel_tol=1e-6)
    return bool(stored == wanted)
