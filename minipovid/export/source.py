"""What an export knows of a model before it opens its weights: configuration, words, conversation, adapter, names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from minipovid.common.files import read_json
from minipovid.export import naming, vocabulary
from minipovid.export.naming import Title
from minipovid.models import adapter as lora
from minipovid.models import chat_template, families
from minipovid.models.adapter import Factor
from minipovid.models.chat_template import IMAGE, Chat
from minipovid.recipe.schema import Recipe

ADAPTER = "minipovid.adapter_sha256"


class ExportSource:
    """A base model's folder, and the adapter on it. `name` is what the user calls the base: a Hub id or a folder.

    `adapter` is a folder in PEFT's layout, or None for the base as it is; `recipe` and `run` are those that trained it.
    `texts` are prompts and answers on which tokenizer and llama.cpp must agree, beside the built-in probes. Raises
    MinipovidError where the adapter holds what cannot be exported.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        name: str,
        recipe: Recipe | None = None,
        run: Path | None = None,
        texts: Sequence[str] = (),
    ):
        from transformers import AutoConfig

        self.model, self.adapter, self.name = model, adapter, name
        self.recipe, self.run, self.texts = recipe, run, texts
        self.family_name = str(read_json(model / "config.json").get("model_type"))
        self.family = families.of(self.family_name)
        # With the defaults that a config.json from the Hub leaves out.
        self.config: Any = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        self.factors: dict[str, Factor] = lora.read(adapter, self.family.canonical) if adapter else {}

    @cached_property
    def words(self) -> tuple[Any, vocabulary.Spacing]:
        """The tokenizer that training used, and where it adds spaces."""
        tokenizer = vocabulary.load(self.model)
        return tokenizer, vocabulary.spacing(tokenizer, IMAGE)

    @cached_property
    def chat(self) -> Chat:
        """How this model writes a conversation down."""
        return chat_template.of(self.model, self.words[0])

    @cached_property
    def adapter_sha256(self) -> str | None:
        return lora.sha256(self.adapter, self.family.canonical) if self.adapter else None

    @cached_property
    def title(self) -> Title:
        return naming.title(self.name, self.parameters(), "minipovid" if self.adapter else "base")

    def parameters(self) -> int:
        """Weights of the language model, counted on its empty skeleton."""
        modules = self.family.vision_modules(self.skeleton)
        vision = {id(weight) for part in modules for weight in part.parameters()}
        return sum(weight.numel() for weight in self.skeleton.parameters() if id(weight) not in vision)

    @cached_property
    def skeleton(self) -> Any:
        """The model's modules without their weights."""
        from minipovid.models.shapes import skeleton

        return skeleton(self.config)

    def named_as(self, kind: str) -> dict[str, Any]:
        """The `general.` keys; `kind` is "model", "mmproj" or "adapter"."""
        return self.title.metadata(kind, naming.origin(self.model, self.recipe))

    def provenance(self) -> dict[str, Any]:
        """The `minipovid.` keys: what a file was made of."""
        keys: dict[str, Any] = {"minipovid.family": self.family_name}
        if self.adapter:
            factor = next(iter(self.factors.values()))
            keys[ADAPTER] = self.adapter_sha256
            keys["minipovid.lora_rank"] = factor.a.shape[0]
            keys["minipovid.lora_scale"] = float(factor.scale)
        if self.recipe is not None and self.run is not None:
            keys |= naming.provenance(self.recipe, self.run)
        return keys

    def chat_keys(self) -> dict[str, Any]:
        """The keys that tell the runtime how to ask."""
        return {"minipovid.chat": self.chat.dumps(), "minipovid.first": self.words[1].first}
