"""A run folder as training leaves it, without training."""

from __future__ import annotations

from pathlib import Path

import tiny_llava

from minipovid.recipe import read as recipes
from minipovid.tinyworld import CHECKPOINT

RECIPE = """
name: tiny
model: {{path: {base}, load_in_4bit: {in_4bit}, dtype: {dtype}}}
lora: {{r: 4, alpha: {alpha}}}
data: {{path: pairs.jsonl}}
stages: [{{loss: {{name: dpo}}}}]
export: {{merge_base: original}}
"""


def a_run(
    folder: Path, base: Path = CHECKPOINT, *, alpha: float = 2, in_4bit: bool = False, dtype: str = "float32"
) -> Path:
    """What training leaves behind, its adapter random: at alpha 2 the tiny world's answers change, and stay answers."""
    folder.mkdir(parents=True)
    named = "tinyworld" if base == CHECKPOINT else base
    content = RECIPE.format(base=named, in_4bit=str(in_4bit).lower(), dtype=dtype, alpha=alpha)
    (folder / "draft.yaml").write_text(content, encoding="utf-8")
    recipes.write(recipes.read(folder / "draft.yaml"), folder / "recipe.yaml")
    tiny_llava.adapter(base, folder / "adapter", r=4, alpha=alpha)
    return folder
