"""Loading: a base in NF4 or as it is, a fresh adapter on its language model, checked by type and settled.

Only the language model is quantised (NF4, double quantisation, QLoRA arXiv 2305.14314) and only it carries LoRA; vision
tower, projector, embeddings and output head stay as they are. What was loaded is checked by type, because a skip list
that misses a renamed module is silent.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from minipovid.common.errors import MinipovidError
from minipovid.models import families, tokenizer
from minipovid.models.families import Family
from minipovid.models.hub import configuration, resolve_model
from minipovid.models.model import POLICY, Model
from minipovid.models.shapes import CPU_LIMIT, skeleton
from minipovid.models.tree_attention import attention
from minipovid.models.tree_attention.layers import fuse_lora, fuse_norms, recompute_less
from minipovid.recipe.schema import BUILTIN, LoraSection, ModelSection

NF4_BLOCK = 64  # weights that share a scale


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
    family = families.of(config.model_type)
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        refuse_giants(section.path, sum(value.numel() for value in skeleton(config).parameters()))
    folder = resolve_model(section.path, section.revision)
    base = _load_base(folder, section, family, device)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*base_model_name_or_path")  # peft would rather name our folder
        peft = get_peft_model(base, _lora_config(family, lora))
    peft.peft_config[POLICY].base_model_name_or_path = section.path
    model = Model(peft, family, tokenizer.load(folder), folder)
    _prepare(model, checkpointing)
    return model


def config_of(section: ModelSection) -> Any:
    """The model's configuration alone; of a Hub model nothing else is downloaded yet."""
    if section.path == BUILTIN or Path(section.path).expanduser().exists():
        config = configuration(resolve_model(section.path, weights=False))
    else:
        config = configuration(section.path, section.revision)
    if getattr(config, "quantization_config", None):
        raise MinipovidError(f"{section.path} is quantised already; name the 16-bit model that it was made from.")
    return config


def _load_base(folder: Path, section: ModelSection, family: Family, device: torch.device) -> nn.Module:
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


def check_quantised(base: nn.Module, family: Family, in_4bit: bool) -> None:
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


def _outside_text_model(folder: Path, family: Family) -> list[str]:
    """Full names of the linear layers that stay unquantised: generic names miss nested modules in transformers 5."""
    empty = skeleton(configuration(folder))
    inside = {id(module) for module in family.text_model(empty).modules()}
    return [name for name, m in empty.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]


def _lora_config(family: Family, lora: LoraSection) -> LoraConfig:
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
    text: Any = model.family.text_model(model.base)
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
    lora_layers = {name for name, module in text.named_modules() if isinstance(module, LoraLayer)}
    unadapted = [
        name
        for name, module in text.named_modules()
        if isinstance(module, nn.Linear)
        and name not in lora_layers
        and ".lora_" not in name
        and "base_layer" not in name
    ]
    if unadapted or len(lora_layers) != sum(isinstance(module, LoraLayer) for module in model.base.modules()):
        raise RuntimeError(f"the adapters are not where {model.family.__name__} declares them: {unadapted[:3]}")
    text.set_attn_implementation(attention.NAME)
    fuse_lora(text, model.active)
    fuse_norms(text)
    model.base.eval()
    if checkpointing:
        _recompute(text, sys.maxsize if checkpointing is True else checkpointing)


def _recompute(text: Any, layers: int) -> None:
    """Gradient checkpointing: the backward pass recomputes the activations of the first `layers` layers.

    Never those of the last one: the backward pass begins with what the forward pass has just made there.
    """
    text.train()  # without dropout all that training mode does is switch checkpointing on
    enable = getattr(text, "activation_checkpointing_enable", None) or text.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})  # nothing is drawn
    text.disable_input_require_grads()  # only reentrant checkpointing needs its inputs to carry gradient
    every = [module for module in text.modules() if isinstance(module, GradientCheckpointingLayer)]
    for index, layer in enumerate(every):
        layer.gradient_checkpointing = index < min(layers, len(every) - 1)
        if layer.gradient_checkpointing:
            recompute_less(layer)


def settled(section: ModelSection) -> ModelSection:
    """The section with `dtype: auto` replaced by what this machine computes in; the run folder keeps the answer."""
    natural = "bfloat16" if torch.cuda.is_available() else "float32"
    return section if section.dtype != "auto" else section.model_copy(update={"dtype": natural})


def refuse_giants(name: str, parameters: int) -> None:
    """A 7B model on a CPU would train for months: say so before 14 GB are downloaded. Raises MinipovidError."""
    if parameters > CPU_LIMIT:
        raise MinipovidError(
            f"{name} has {parameters / 1e9:.1f} billion parameters and torch finds no CUDA GPU on this machine: run it "
            f"where there is one (`minipovid doctor` tells what torch sees), or try `minipovid demo` on this CPU."
        )
