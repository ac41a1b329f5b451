"""Which files belong together, and what an mmproj file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.models.parts import mmproj
from minipovid.recipe import run_folder

MMPROJ = "mmproj"


def find_pair(folder: Path, quant: str | None = None) -> tuple[Path, Path]:
    """(text GGUF, mmproj GGUF) in RUN/gguf or in the folder itself. Raises MinipovidError, saying what is there.

    Without `quant` the largest, that is the most exact file. Files that others named are taken where the folder holds
    one file with mmproj in its name.
    """
    place = folder / run_folder.GGUF if (folder / run_folder.GGUF).is_dir() else folder
    texts = [path for path in sorted(place.glob("*.gguf")) if _is_text(path)]
    wanted = [path for path in texts if quant is None or _quant(path) == quant.lower()]
    if not folder.is_dir():
        raise run_folder.no_run(folder)
    if not wanted:
        there = f"only {', '.join(sorted(map(_quant, texts)))}" if texts else "no GGUF files"
        flag = f" --quant {quant}" if quant else ""
        raise MinipovidError(f"{place} holds {there}; write the files with `minipovid export {folder}{flag}`.")
    if len({_stem(path) for path in wanted}) > 1:
        raise MinipovidError(
            f"{place} holds the files of several models: {', '.join(sorted({_stem(p) for p in wanted}))}."
        )
    text = max(wanted, key=lambda path: path.stat().st_size)
    every = [path for path in place.glob("*.gguf") if MMPROJ in path.name.lower()]
    vision = [path for path in every if path.name.startswith(f"{MMPROJ}-{_stem(text)}-")] or every[: len(every) == 1]
    if not vision:
        raise MinipovidError(f"{place} holds no mmproj for {text.name}; write it with `minipovid export {folder}`.")
    return text, max(vision, key=lambda path: path.stat().st_size)


def _is_text(path: Path) -> bool:
    """A language model's file; an adapter's ends in -LoRA by the naming rule."""
    return MMPROJ not in path.name.lower() and not path.stem.lower().endswith("-lora")


def _quant(path: Path) -> str:
    return path.stem.rpartition("-")[2].lower()


def _stem(path: Path) -> str:
    return path.stem.rpartition("-")[0]


class Header:
    """The metadata and the tensor names of an mmproj file. Raises MinipovidError where it is none, or is damaged."""

    def __init__(self, path: Path) -> None:
        import gguf

        try:
            reader = gguf.GGUFReader(path)
        except (ValueError, IndexError):
            raise MinipovidError(f"{path} is no GGUF file, or is damaged; export it again.") from None
        self.keys: dict[str, Any] = {name: entry.contents() for name, entry in reader.fields.items()}
        self.tensors = {tensor.name for tensor in reader.tensors}
        if mmproj.IMAGE_SIZE not in self.keys:
            raise MinipovidError(f"{path} is no mmproj file: it holds no vision tower.")
