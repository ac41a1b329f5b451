"""The model: a 4-bit base that never changes, and float32 adapters on its language model that do.

Only the language model is quantised (NF4, double quantisation, QLoRA arXiv 2305.14314) and only it carries LoRA; vision
tower, projector, embeddings and output head stay as they are. What was loaded is checked by type, because a skip list
that misses a renamed module is silent.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from minipovid.common import shelf
from minipovid.common.errors import MinipovidError
from minipovid.models.hub import resolve_model
from minipovid.models.shapes import CPU_LIMIT, skeleton
from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.forest import Forest
from minipovid.models.tree_attention.layers import LastLayer, fuse_lora
from minipovid.recipe.schema import BUILTIN, LoraSection, ModelSection

NF4_BLOCK = 64  # weights that share a scale
POLICY, REFERENCE = "default", "reference"  # adapter names; peft saves "default" under plain names


class Model:
    """A loaded vision-language model with the adapter that is trained, and what the other rooms need to know of it."""

    def __init__(self, peft: PeftModel, family: ModuleType, tokenizer: Any, folder: Path) -> None:
        self.peft = peft
        self.base: nn.Module = peft.get_base_model()
        self.family, self.tokenizer, self.folder = family, tokenizer, folder
        self.head: nn.Linear = self.base.get_output_embeddings()  # type: ignore[operator]
        self.image_token_id, self.image_tokens = family.image_token(self.base.config)
        self.last_layer = LastLayer(family.text_model(self.base), family.COLUMNWISE)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def image_features(self, pixels: Tensor) -> Tensor:
        """Projected features [B, N, H] of normalised pixels [B, 3, S, S]; the tower gets no gradient."""
        with torch.no_grad():
            return self.family.image_features(self.base, pixels.to(self.device, self.head.weight.dtype))  # type: ignore[no-any-return]

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

        Raises MinipovidError where its tensors are not the model's, by name and shape.
        """
        saved = load_file(folder / "adapter_model.safetensors")
        own = get_peft_model_state_dict(self.peft, adapter_name=POLICY, save_embedding_layers=False)
        if {key: value.shape for key, value in saved.items()} != {key: value.shape for key, value in own.items()}:
            odd = sorted(set(saved) ^ set(own)) or sorted(key for key in own if own[key].shape != saved[key].shape)
            raise MinipovidError(
                f"The adapter in {folder} does not fit this model ({len(odd)} tensors differ, first {odd[0]}); "
                f"use the lora.r and model.path that it was trained with."
            )
        set_peft_model_state_dict(self.peft, saved, adapter_name=POLICY)

    def save_adapter(self, folder: Path) -> None:
        """Write the trained adapter in PEFT's layout: adapter_model.safetensors and adapter_config.json."""
        self.peft.save_pretrained(str(folder), selected_adapters=[POLICY], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card

    def freeze_reference(self) -> None:
        """From here on the reference is a copy of the adapter as it is now (the beginning of a later stage)."""
        if REFERENCE not in self.peft.peft_config:
            self.peft.add_adapter(REFERENCE, self.peft.peft_config[POLICY])
        self._activate(POLICY)
        policy = self.adapter(POLICY)
        with torch.no_grad():
            for key, value in self.adapter(REFERENCE).items():
                value.copy_(policy[key.replace(f".{REFERENCE}.", f".{POLICY}.")])

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within: the reference's weights. Without: the policy's."""
        if REFERENCE in self.peft.peft_config:
            self._activate(REFERENCE)
            try:
                yield
            finally:
                self._activate(POLICY)
        else:
            with self.peft.disable_adapter():
                yield

    def _activate(self, name: str) -> None:
        """Switch adapters; only the policy's ever requires gradients, whichever is active."""
        self.peft.base_model.set_adapter(name, inference_mode=name == REFERENCE)  # type: ignore[operator]
        for key, value in self.adapter(POLICY).items():
            value.requires_grad_("lora_" in key)


def load(
    section: ModelSection,
    lora: LoraSection,
    *,
    seed: int = 0,
    checkpointing: bool | int = False,
    device: torch.device | None = None,
) -> Model:
    """Load the base and put a fresh adapter on it: A drawn from `seed`, B zero, so that the model is still the base.

    `checkpointing` is train.gradient_checkpointing, settled; `device` is by default the GPU, where there is one.

    Raises MinipovidError where the weights, the family or the GPU that they need are missing.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()  # transformers'
    config = config_of(section)
    family = shelf.load("models.families", config.model_type)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        _refuse_giants(section.path, config)
    folder = resolve_model(section.path, section.revision)
    base = _load_base(folder, section, family, device)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path")  # peft would rather name our folder
        peft = get_peft_model(base, _lora_config(family, lora))
    peft.peft_config[POLICY].base_model_name_or_path = section.path
    model = Model(peft, family, AutoTokenizer.from_pretrained(folder, trust_remote_code=False), folder)
    _prepare(model, checkpointing)
    return model


def config_of(section: ModelSection) -> Any:
    """The model's configuration alone; of a Hub model nothing else is downloaded yet."""
    place: Any = resolve_model(section.path) if section.path == BUILTIN else Path(section.path).expanduser()
    if not place.is_dir():
        place = section.path
    try:
        config = AutoConfig.from_pretrained(place, revision=section.revision, trust_remote_code=False)
    except OSError:
        config = AutoConfig.from_pretrained(resolve_model(section.path, section.revision), trust_remote_code=False)
    except ValueError as error:
        raise MinipovidError(
            f"{section.path} is no model that transformers knows: {str(error).splitlines()[0]}"
        ) from None
    if getattr(config, "quantization_config", None):
        raise MinipovidError(f"{section.path} is quantised already; name the 16-bit model that it was made from.")
    return config


def _load_base(folder: Path, section: ModelSection, family: ModuleType, device: torch.device) -> nn.Module:
    dtype = getattr(torch, settled(section).dtype)
    quantization = None
    if section.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=_outside_text_model(folder, family),
        )
    base = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=quantization,
        attn_implementation="sdpa",
        device_map={"": device},
        use_safetensors=True,
        trust_remote_code=False,
    )
    check_quantised(base, family, section.load_in_4bit)
    return base  # type: ignore[no-any-return]


def check_quantised(base: nn.Module, family: ModuleType, in_4bit: bool) -> None:
    """By type: every linear layer of the text model is 4-bit (or none, if so asked), and none outside it is.

    Raises RuntimeError: a library changed under us. Raises MinipovidError for a width that bitsandbytes cannot do on a
    CPU: where a row's end is no block's end, it dequantises wrongly (a quarter of the weight is lost, not a tenth).
    """
    inside = {id(module) for module in family.text_model(base).modules()}
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear):
            is_4bit = isinstance(module, Linear4bit)
            if is_4bit != (in_4bit and id(module) in inside):
                raise RuntimeError(f"{name} is {'' if is_4bit else 'not '}in 4 bits after loading")
            if is_4bit and module.weight.device.type == "cpu" and module.in_features % NF4_BLOCK:
                raise MinipovidError(
                    f"{name} has rows of {module.in_features}, and on a CPU bitsandbytes computes 4-bit layers rightly "
                    f"only in multiples of {NF4_BLOCK}; set model.load_in_4bit: false, or train on a GPU."
                )


def _outside_text_model(folder: Path, family: ModuleType) -> list[str]:
    """Full names of the linear layers that stay unquantised: generic names miss nested modules in transformers 5."""
    empty = skeleton(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    inside = {id(module) for module in family.text_model(empty).modules()}
    return [name for name, m in empty.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]


def _lora_config(family: ModuleType, lora: LoraSection) -> LoraConfig:
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        use_rslora=lora.rslora,
        lora_dropout=0.0,
        target_modules=family.LORA_TARGETS,
        task_type="CAUSAL_LM",
    )


def _prepare(model: Model, checkpointing: bool | int) -> None:
    """Exactly the adapter trains, in float32; dropout is off everywhere (POVID's and DPO's log-ratios want none)."""
    text = model.family.text_model(model.base)
    for key, value in model.peft.named_parameters():
        value.requires_grad_(f".{POLICY}." in key)
    for value in model.adapter().values():
        value.data = value.data.float()
    for module in model.base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
        if isinstance(module, Linear4bit):
            # In eval mode bitsandbytes would repack the weights for AVX-512, rounding their scales to bfloat16:
            # policy and reference would then differ, and so would one CPU from another.
            module.support_avx512bf16_for_cpu = False
    wanted = {name for name, module in text.named_modules() if isinstance(module, LoraLayer)}
    unadapted = [
        name
        for name, module in text.named_modules()
        if isinstance(module, nn.Linear) and name not in wanted and ".lora_" not in name and "base_layer" not in name
    ]
    if unadapted or len(wanted) != sum(isinstance(module, LoraLayer) for module in model.base.modules()):
        raise RuntimeError(f"the adapters are not where {model.family.__name__} declares them: {unadapted[:3]}")
    text.set_attn_implementation(attention.NAME)
    fuse_lora(text)
    model.base.eval()
    if checkpointing:
        _recompute(text, sys.maxsize if checkpointing is True else checkpointing)


def _recompute(text: Any, layers: int) -> None:
    """Gradient checkpointing: the backward pass recomputes the activations of the first `layers` layers.

    Never those of the last one: the backward pass begins with what the forward pass has just made there.
    """
    text.train()  # without dropout all that training mode does is switch checkpointing on
    enable = getattr(text, "activation_checkpointing_enable", None) or text.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    text.disable_input_require_grads()  # only reentrant checkpointing needs its inputs to carry gradient
    every = [module for module in text.modules() if isinstance(module, GradientCheckpointingLayer)]
    for index, layer in enumerate(every):
        layer.gradient_checkpointing = index < min(layers, len(every) - 1)


def settled(section: ModelSection) -> ModelSection:
    """The section with `dtype: auto` replaced by what this machine computes in; the run folder keeps the answer."""
    natural = "bfloat16" if torch.cuda.is_available() else "float32"
    return section if section.dtype != "auto" else section.model_copy(update={"dtype": natural})


def _refuse_giants(name: str, config: Any) -> None:
    """A 7B model on a CPU would train for months: say so before 14 GB are downloaded."""
    parameters = sum(value.numel() for value in skeleton(config).parameters())
    if parameters > CPU_LIMIT:
        raise MinipovidError(
            f"{name} has {parameters / 1e9:.1f} billion parameters and torch finds no CUDA GPU on this machine: run it "
            f"where there is one (`minipovid doctor` tells what torch sees), or try `minipovid demo` on this CPU."
        )
