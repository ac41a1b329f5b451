"""The model: a base that never changes (load makes it), and float32 adapters on its language model that do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from minipovid.common.errors import MinipovidError
from minipovid.models import adapter
from minipovid.models.families import PHOTO, Family
from minipovid.models.tree_attention.forest import Forest
from minipovid.models.tree_attention.layers import ActiveAdapter, LastLayer
from minipovid.recipe import run_folder

POLICY, REFERENCE = "default", "reference"  # adapter names; peft saves "default" under plain names


class Model:
    """A loaded vision-language model with the adapter that is trained, and what the other rooms need to know of it."""

    def __init__(self, peft: PeftModel, family: Family, tokenizer: Any, folder: Path) -> None:
        self.peft = peft
        self.base: nn.Module = peft.get_base_model()
        self.family, self.tokenizer, self.folder = family, tokenizer, folder
        self.head: nn.Linear = self.base.get_output_embeddings()  # type: ignore[operator]
        self.image_token_id = family.image_token_id(self.base.config)
        self.image_tokens = family.image_tokens(self.base.config, PHOTO)  # of every picture: it becomes [3, S, S]
        self.active = ActiveAdapter(POLICY)
        self.last_layer = LastLayer(family.text_model(self.base), family.COLUMNWISE)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def image_features(self, pixels: Tensor) -> Tensor:
        """Projected features [B, N, H] of normalised pixels [B, 3, S, S]; the tower gets no gradient."""
        with torch.no_grad():
            return self.family.image_features(self.base, pixels.to(self.device, self.head.weight.dtype))

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """Token embeddings [R, W, H] of ids [R, W] with features [B, N, H], picture after picture, in the
        placeholders' places."""
        if features.shape[1] != self.image_tokens:
            raise RuntimeError(f"features {tuple(features.shape)} for {self.image_tokens} image tokens a picture")
        placeholders = ids == self.image_token_id
        embeddings = self.base.get_input_embeddings()(ids.masked_fill(placeholders, 0))  # type: ignore[operator]
        return embeddings.masked_scatter(placeholders[..., None], features.to(embeddings.dtype))  # type: ignore[no-any-return]

    def hidden(self, embeddings: Tensor, forest: Forest) -> Tensor:
        """The language model's last hidden states [R, W, H] of embeddings [R, W, H] that stand as the forest says.

        They are right in the columns that predict something, `forest.read`.
        """
        dtype = self.head.weight.dtype  # adapters are float32 masters; their products run in the base's precision
        text = self.family.text_model(self.base)
        with self.last_layer.only(forest), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            out = text(
                inputs_embeds=embeddings,
                attention_mask=forest.mask(dtype),
                position_ids=forest.positions,
                use_cache=False,
                forest=forest,
            )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def adapter(self, name: str = POLICY) -> dict[str, nn.Parameter]:
        """The weights of an adapter by module name."""
        return {key: value for key, value in self.peft.named_parameters() if f".{name}." in key}

    def load_adapter(self, folder: Path) -> None:
        """Put the weights of a saved adapter in the trained one's place.

        Raises MinipovidError where its tensors are not the model's, by name and shape, or its scales are others.
        """
        stored = load_file(folder / run_folder.ADAPTER_WEIGHTS)
        own = get_peft_model_state_dict(self.peft, adapter_name=POLICY, save_embedding_layers=False)
        spelling = {self._canonical(key): key for key in own}  # others may spell the same names otherwise
        saved = {spelling.get(self._canonical(key), key): value for key, value in stored.items()}
        if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in own.items()}:
            odd = sorted(set(saved) ^ set(own)) or sorted(key for key in own if own[key].shape != saved[key].shape)
            raise MinipovidError(
                f"The adapter in {folder} does not fit this model ({len(odd)} tensors differ, first {odd[0]}); "
                f"use the lora.r and model.path that it was trained with."
            )
        self._check_scales(folder)
        set_peft_model_state_dict(self.peft, saved, adapter_name=POLICY)

    def _canonical(self, key: str) -> str:
        """One spelling of an adapter's tensor."""
        module, half = adapter.matrix(key) or (key, "")
        return f"{half} {self.family.canonical(f'{module}.weight')}"

    def scales(self) -> dict[str, float]:
        """What peft multiplies each product of the adapter with, by the canonical name of the weight."""
        layers = {name: module for name, module in self.base.named_modules() if isinstance(module, LoraLayer)}
        scale = {name: float(layer.scaling[POLICY]) for name, layer in layers.items()}
        return {self.family.canonical(f"{name}.weight"): value for name, value in scale.items()}

    def _check_scales(self, folder: Path) -> None:
        """Raises MinipovidError where the saved adapter was trained under another alpha, or as rsLoRA."""
        scales = self.scales()
        for name, factor in adapter.read(folder, self.family.canonical).items():
            if not math.isclose(factor.scale, scales[name], rel_tol=1e-6):
                raise MinipovidError(
                    f"The adapter in {folder} multiplies {name} by {factor.scale:g}, the recipe by {scales[name]:g}; "
                    "use the lora.alpha and lora.rslora that it was trained with."
                )

    def save_adapter(self, folder: Path) -> None:
        """Write the trained adapter in PEFT's layout: adapter_model.safetensors and adapter_config.json."""
        self.peft.save_pretrained(str(folder), selected_adapters=[POLICY], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card

    def freeze_reference(self) -> None:
        """From here on the reference is a copy of the adapter as it is now (the beginning of a later stage).

        It is kept in the base's type, to which each use would round it.
        """
        if REFERENCE not in self.peft.peft_config:
            self.peft.add_adapter(REFERENCE, self.peft.peft_config[POLICY])
            self.peft.base_model.set_adapter(POLICY)  # type: ignore[operator]
        policy = self.adapter(POLICY)
        for key, value in self.adapter(REFERENCE).items():
            own = policy[key.replace(f".{REFERENCE}.", f".{POLICY}.")]
            value.requires_grad_(False)
            value.data = own.detach().to(self.head.weight.dtype, copy=True)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within: the reference's weights. Without: the policy's."""
        self.active.name = REFERENCE if REFERENCE in self.peft.peft_config else None
        try:
            yield
        finally:
            self.active.name = POLICY
