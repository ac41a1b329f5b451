"""File names and `general.` keys by ggml's convention (docs/gguf.md): llava-1.5-7B-minipovid-beta02-v1.0-Q8_0.gguf.

Behind base and size stands which run it was, so that two runs from one base do not meet in another program's folder.

What is not known is left out, never guessed: a licence stands in the base's README.md or nowhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minipovid.common.append_only import objects
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe, StageSection

VERSION = "v1.0"
FINETUNE = "minipovid"
NAME_LETTERS = 60  # of a run's name; what it and the base's make together must be a file's name
# The convention's parts in their order. Its published check allows no dot in the base's name, which llava-1.5, Qwen2.5
# and most others have, and which ggml's own tools write.
FILE_NAME = re.compile(
    r"""(?:(?P<sidecar>mmproj|mtp)-)?
    (?P<base>[A-Za-z0-9.\s]+(?:-[A-Za-z0-9.\s]+)*?)
    -(?P<size>(?:\d+x)?\d+(?:\.\d+)?[A-Za-z](?:-[A-Za-z]+\d+(?:\.\d+)?[A-Za-z])?)
    (?:-(?P<finetune>[A-Za-z0-9\s-]+?))?
    -(?P<version>v\d+(?:\.\d+)*)
    (?:-(?P<encoding>(?!LoRA|vocab)\w+))?
    (?:-(?P<type>LoRA|vocab))?
    (?:-(?P<shard>\d{5}-of-\d{5}))?
    \.gguf""",
    re.VERBOSE,
)


class Origin(NamedTuple):
    """What is known of where the weights came from, beyond their name."""

    license: str | None = None  # as the base's README.md spells it: "llama2"
    license_name: str | None = None  # where `license` is "other"
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    revision: str | None = None  # of the base on the Hub
    dataset: str | None = None  # the name of the file of pairs
    tags: tuple[str, ...] = ()


UNKNOWN = Origin()


class Title(NamedTuple):
    """What the files are called."""

    base: str  # llava-1.5
    size: str  # 7B
    finetune: str  # minipovid-beta02
    source: str = ""  # the Hub id that the base came from, if it did

    @property
    def stem(self) -> str:
        return f"{self.base}-{self.size}-{self.finetune}-{VERSION}"

    def text(self, quant: str) -> str:
        return f"{self.stem}-{quant.upper()}.gguf"

    def lora(self, quant: str = "f16") -> str:
        return f"{self.stem}-{quant.upper()}-LoRA.gguf"

    def mmproj(self, quant: str = "f16") -> str:
        return f"mmproj-{self.stem}-{quant.upper()}.gguf"

    def metadata(self, kind: str, origin: Origin = UNKNOWN) -> dict[str, Any]:
        """The `general.` keys; `kind` is "model", "mmproj" or "adapter"."""
        keys: dict[str, Any] = {
            "general.type": kind,
            "general.name": f"{self.base} {self.size} {self.finetune}",
            "general.basename": self.base,
            "general.size_label": self.size,
            "general.finetune": self.finetune,
            "general.version": VERSION,
            "general.quantized_by": "minipovid",
            "general.tags": ["image-text-to-text", *origin.tags],
            "general.languages": list(origin.languages),
            "general.license": origin.license,
            "general.license.name": origin.license_name,
            "general.license.link": origin.license_link,
        }
        if self.source:
            keys["general.base_model.count"] = 1
            keys["general.base_model.0.name"] = self.source.rpartition("/")[2]
            keys["general.base_model.0.organization"] = self.source.partition("/")[0]
            keys["general.base_model.0.version"] = origin.revision
            keys["general.base_model.0.repo_url"] = f"https://huggingface.co/{self.source}"
        if origin.dataset:
            keys["general.dataset.count"] = 1
            keys["general.dataset.0.name"] = origin.dataset
        return {key: value for key, value in keys.items() if value}


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


def finetune(run: str) -> str:
    """A run's name as the convention can hold it: "llava7b_qlora" -> "minipovid-llava7b-qlora"."""
    clean = re.sub(r"[^A-Za-z0-9]+", "-", run)[:NAME_LETTERS].strip("-")
    return f"{FINETUNE}-{clean}" if clean else FINETUNE


def label(parameters: int) -> str:
    """1,310,000 -> "1.3M"; 7,063,000,000 -> "7B"."""
    scale, unit = next((pair for pair in ((10**9, "B"), (10**6, "M")) if parameters >= pair[0]), (10**3, "K"))
    return f"{parameters / scale:.1f}".removesuffix(".0") + unit


def origin(model: Path, recipe: Recipe | None = None) -> Origin:
    """What the base's folder and the recipe tell. A Hub download may lack the README.md, where the licence stands."""
    card = _front_matter(model / "README.md")
    texts = {key: card[key] for key in ("license", "license_name", "license_link") if isinstance(card.get(key), str)}
    languages = card.get("language") or ()
    languages = [languages] if isinstance(languages, str) else languages
    base = Origin(**texts, languages=tuple(each for each in languages if isinstance(each, str)))
    if recipe is None:
        return base
    losses = dict.fromkeys(str(stage.loss["name"]) for stage in recipe.stages)
    return base._replace(revision=recipe.model.revision, dataset=Path(recipe.data.path).name, tags=tuple(losses))


def _front_matter(card: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of dashes of a model card; empty where there is none."""
    try:
        text = card.read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?\n)---\s*(?:\n|$)", text, re.DOTALL)
        content = yaml.safe_load(match[1]) if match else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def provenance(recipe: Recipe, run: Path) -> dict[str, Any]:
    """The `minipovid.` keys that tell how the adapter came to be: recipe, losses, rates, steps and data of a run."""
    from minipovid.train import losses  # needs torch

    stage_losses = losses.of_stages(recipe)
    betas = [float(loss.beta) for loss in stage_losses if hasattr(loss, "beta")]
    keys: dict[str, Any] = {
        "minipovid.recipe": recipe.name,
        "minipovid.seed": recipe.seed,
        "minipovid.losses": [_spelling(*each) for each in zip(recipe.stages, stage_losses, strict=True)],
        "minipovid.betas": betas if len(betas) == len(stage_losses) else [],
        "minipovid.learning_rates": [float(s.learning_rate or recipe.train.learning_rate) for s in recipe.stages],
        "minipovid.batch_size": recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps,
        "minipovid.trained_in_4bit": recipe.model.load_in_4bit,
        "minipovid.data": Path(recipe.data.path).name,
        **_counts(run / run_folder.LOG),
    }
    if (run / run_folder.PAIRS).is_file():
        keys["minipovid.pairs_sha256"] = hashlib.sha256((run / run_folder.PAIRS).read_bytes()).hexdigest()
    return {key: value for key, value in keys.items() if value != []}


def _spelling(stage: StageSection, loss: Any) -> str:
    """A loss with all its settings, defaults included: "dpo beta=0.1 anchor=3.0"."""
    return " ".join([str(stage.loss["name"]), *(f"{key}={value}" for key, value in asdict(loss).items())])


def _counts(log: Path) -> dict[str, int]:
    """How many pairs the run trained on, and for how many optimiser steps."""
    lines = objects(log)
    counts = {"steps": [line["step"] for line in lines if "step" in line]}
    counts["pairs"] = [line["pairs"] for line in lines if line.get("event") == "data"]
    return {f"minipovid.{key}": max(values) for key, values in counts.items() if values}
