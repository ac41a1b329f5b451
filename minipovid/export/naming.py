"""File names and `general.` keys by ggml's convention: llava-1.5-7B-minipovid-v1.0-Q8_0.gguf."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "v1.0"


class Title(NamedTuple):
    """What the files are called."""

    base: str  # llava-1.5
    size: str  # 7B
    finetune: str  # minipovid
    source: str = ""  # the Hub id that the base came from, if it did

    @property
    def stem(self) -> str:
        return f"{self.base}-{self.size}-{self.finetune}-{VERSION}"

    def text(self, quant: str) -> str:
        return f"{self.stem}-{quant.upper()}.gguf"

    def mmproj(self, quant: str = "f16") -> str:
        return f"mmproj-{self.stem}-{quant.upper()}.gguf"

    def metadata(self, kind: str) -> dict[str, Any]:
        """The `general.` keys; `kind` is "model" or "mmproj"."""
        keys: dict[str, Any] = {
            "general.type": kind,
            "general.name": f"{self.base} {self.size} {self.finetune}",
            "general.basename": self.base,
            "general.size_label": self.size,
            "general.finetune": self.finetune,
            "general.version": VERSION,
            "general.quantized_by": "minipovid",
            "general.tags": ["image-text-to-text", "povid", "dpo"],
        }
        if self.source:
            keys["general.base_model.count"] = 1
            keys["general.base_model.0.name"] = self.source.rpartition("/")[2]
            keys["general.base_model.0.organization"] = self.source.partition("/")[0]
            keys["general.base_model.0.repo_url"] = f"https://huggingface.co/{self.source}"
        return keys


def title(model: str, parameters: int, finetune: str) -> Title:
    """From the model's Hub id or folder: "llava-hf/llava-1.5-7b-hf" is base llava-1.5, size 7B.

    Where the name tells no size, it is the number of the language model's parameters: 1.3M, 7B.
    """
    is_local = model.count("/") != 1 or Path(model).expanduser().is_dir()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", Path(model).name).strip("-.")
    name = re.sub(r"-hf$", "", name)
    size = re.search(r"(?:^|-)(\d+(?:\.\d+)?[bBmM])(?=-|$)", name)
    if size:
        name = (name[: size.start()] + name[size.end() :]).strip("-")
    return Title(name or "model", size[1].upper() if size else label(parameters), finetune, "" if is_local else model)


def label(parameters: int) -> str:
    """1,310,000 -> "1.3M"; 7,063,000,000 -> "7B"."""
    scale, unit = next((pair for pair in ((10**9, "B"), (10**6, "M")) if parameters >= pair[0]), (10**3, "K"))
    return f"{parameters / scale:.1f}".removesuffix(".0") + unit
