"""What an export knows of a model before it opens its weights: configuration, words, conversation, adapter, names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.export import naming, vocabulary, writer
from minipovid.export.naming import FILE_NAME, VERSION, Title
from minipovid.models import adapter as lora
from minipovid.models import chat_template, families
from minipovid.models.adapter import Factor
from minipovid.models.chat_template import IMAGE, Chat
from minipovid.models.hub import configuration, settings
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe

ADAPTER = "minipovid.adapter_sha256"


class ExportSource:
    """A base model's folder, and the adapter on it. `name` is what the user calls the base: a Hub id or a folder.

    `adapter` is a folder in PEFT's layout, or None for the base as it is; `recipe` and `run` are those that trained it.
    `texts` are prompts and answers on which tokenizer and llama.cpp must agree, beside the built-in probes. `called` is
    the run's name in the files' names; without it they keep the name that they have in the run's folder, or bear that
    of the folder itself. Raises MinipovidError where the adapter holds what cannot be exported.
    """

    def __init__(
        self,
        model: Path,
        adapter: Path | None,
        name: str,
        recipe: Recipe | None = None,
        run: Path | None = None,
        texts: Sequence[str] = (),
        called: str | None = None,
    ):
        self.model, self.adapter, self.name = model, adapter, name
        self.recipe, self.run, self.texts, self.called = recipe, run, texts, called
        self.family_name = str(settings(model / "config.json").get("model_type"))
        self.family = families.of(self.family_name)
        self.config = configuration(model)
        self.factors: dict[str, Factor] = lora.read(adapter, self.family.canonical) if adapter else {}
        self._check_adapter()
        # What the model never runs, as the tower's last layer: an adapter by PEFT's "all-linear" is on it, too.
        self.left_out = sorted(name for name in self.factors if self.family.place(name, self.config) is None)
        self.factors = {name: factor for name, factor in self.factors.items() if name not in self.left_out}
        if adapter and not self.factors:
            raise MinipovidError(f"The adapter {adapter} changes only what {name} never runs; there is nothing to add.")

    def _check_adapter(self) -> None:
        """Every adapted weight must be one of the model's: nothing trained is silently lost."""
        foreign = self.factors and sorted(set(self.factors) - self.weights)
        if foreign:
            raise MinipovidError(
                f"The adapter {self.adapter} changes {foreign[0]}"
                + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else "")
                + f", which {self.model} has not: it was trained on another model."
            )

    @cached_property
    def weights(self) -> set[str]:
        """The canonical names of all that the model computes with; a tied head is no weight of its own."""
        return {self.family.canonical(name) for name, _ in self.skeleton.named_parameters()}

    @cached_property
    def words(self) -> tuple[Any, vocabulary.Spacing]:
        """The tokenizer that training used, and where it adds spaces."""
        tokenizer = vocabulary.load(self.model)
        return tokenizer, vocabulary.spacing(tokenizer, chat_template.placeholder(tokenizer, self._image_token_id))

    @property
    def _image_token_id(self) -> int:
        return self.family.image_token_id(self.config)

    @cached_property
    def chat(self) -> Chat:
        """How this model writes a conversation down."""
        return chat_template.of(self.model, self.words[0], self._image_token_id)

    def check_vocabulary(self, vocabulary_gguf: Path) -> None:
        """Raises MinipovidError where llama.cpp reads a text otherwise than the tokenizer that training used."""
        tokenizer, spaces = self.words
        image = chat_template.placeholder(tokenizer, self._image_token_id)
        prompt = self.chat.prompt("What is this?").replace(IMAGE, image)
        vocabulary.check(vocabulary_gguf, tokenizer, prompt, image, spaces, self.texts)

    @cached_property
    def adapter_sha256(self) -> str | None:
        return lora.sha256(self.adapter, self.family.canonical) if self.adapter else None

    @cached_property
    def title(self) -> Title:
        if self.adapter is None:
            return naming.title(self.name, self.parameters(), "base")
        run = self.called or (self.run.resolve().name if self.run is not None else "")
        title = naming.title(self.name, self.parameters(), naming.finetune(run))
        return title if self.called else title._replace(finetune=self._standing(title) or title.finetune)

    def _standing(self, title: Title) -> str | None:
        """The name of this adapter's files that an earlier export, or an earlier version, left in the run's folder."""
        folder = self.run / run_folder.GGUF if self.run is not None else None
        for path in sorted(folder.glob("*.gguf")) if folder is not None else ():
            parts = FILE_NAME.fullmatch(path.name)
            if (
                parts is not None
                and (parts["base"], parts["size"], parts["version"]) == (title.base, title.size, VERSION)
                and writer.stamp(path, ADAPTER) == self.adapter_sha256
            ):
                return parts["finetune"]
        return None

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
