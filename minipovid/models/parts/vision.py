"""Vision towers with LLaVA's two-layer projector, and what llama.cpp (tools/mtmd/clip.cpp) calls their parts.

    vision.place("vision_tower.pre_layrnorm.weight", config)  # Place("mmproj", "v.pre_ln.weight")

Names of tensors are those within transformers 5, without the leading `model.`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minipovid.common.errors import MinipovidError
from minipovid.models import hub
from minipovid.models.parts import Place, mmproj

if TYPE_CHECKING:
    from torch import Tensor, nn

TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}  # does a class token stand before the patches?
_OUTSIDE = {
    "vision_tower.embeddings.class_embedding": mmproj.CLASS_TOKEN,
    "vision_tower.embeddings.patch_embedding": "v.patch_embd",
    "vision_tower.embeddings.position_embedding": "v.position_embd",
    "vision_tower.pre_layrnorm": "v.pre_ln",
    "multi_modal_projector.linear_1": "mm.0",  # llama.cpp counts the activation between them
    "multi_modal_projector.linear_2": "mm.2",
}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}
# A buffer that the Hub's files of 2023 store; a norm and, in some SigLIP towers, a pooling head behind the last layer.
_UNUSED = re.compile(r"vision_tower\.(embeddings\.position_ids|(post_layernorm|head)\..*)")
# Neither flag means QuickGELU to llama.cpp; its other GELU is the tanh one, which follows the exact one to 5e-4.
_ACTIVATIONS = {
    "quick_gelu": {},
    "gelu": {"clip.use_gelu": True},
    "gelu_pytorch_tanh": {"clip.use_gelu": True},
}


def has_class_token(vision: Any) -> bool:
    """Raises MinipovidError for a tower that is not known."""
    if vision.model_type not in TOWERS:
        raise MinipovidError(f"The vision tower is {vision.model_type}; known are {', '.join(TOWERS)}.")
    return TOWERS[vision.model_type]


def tokens(config: Any) -> int:
    """Image tokens per picture: the patches, and what vision_feature_select_strategy leaves of the class token.

    As in transformers, `default` drops the first place whether or not a class token stands there.
    """
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    return patches + has_class_token(vision) - (config.vision_feature_select_strategy == "default")


def image_size(folder: Path) -> int:
    """Side of the tower's input in pixels. Hub files leave out what is transformers' default: LLaVA 1.5's tower, and in
    a tower that is given, 224."""
    vision = hub.settings(folder / "config.json").get("vision_config")
    return int(vision.get("image_size", 224)) if vision else 336


def processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings, where transformers 4 or 5 keeps them. Raises MinipovidError without them."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            settings = hub.settings(folder / name)
            settings = settings.get("image_processor", settings)
            if isinstance(settings, dict) and "image_mean" in settings and "image_std" in settings:
                return dict(settings)
    raise MinipovidError(
        f"The model folder {folder} has no preprocessor_config.json with image_mean and image_std; copy it from the "
        "original model."
    )


def place(name: str, config: Any) -> Place | None:
    """Where a tensor goes; None: llama.cpp needs it not. Raises MinipovidError for one that is no part of a tower."""
    if _UNUSED.fullmatch(name):
        return None
    module, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
    if module in _OUTSIDE:
        where = f"{_OUTSIDE[module]}{dot}{kind}"
        return Place("mmproj", where, full="embd" in where, half=where.startswith("mm."))
    layer = re.fullmatch(r"vision_tower\.encoder\.layers\.(\d+)\.(.+)", module)
    if layer is None or layer[2] not in _LAYER:
        raise MinipovidError(f"The tensor {name} belongs to no part of LLaVA that llama.cpp knows.")
    is_run = int(layer[1]) < layers(config)
    return Place("mmproj", f"v.blk.{layer[1]}.{_LAYER[layer[2]]}.{kind}") if is_run else None


def layers(config: Any) -> int:
    """How many layers of the tower are run: features are hidden_states[-2] in LLaVA 1.5, so 23 of CLIP-L's 24.

    In transformers hidden_states[-1] is what the last layer gives, before the norm behind it; llama.cpp leaves that
    norm out where the file does not hold it.
    """
    layer, last = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int):
        raise MinipovidError(f"vision_feature_layer is {layer}; llama.cpp's LLaVA takes the features of one layer.")
    run = layer if layer >= 0 else last + 1 + layer
    if not 1 <= run <= last:
        raise MinipovidError(f"vision_feature_layer is {layer}, but the vision tower has layers 1 to {last}.")
    return run


def metadata(config: Any, processor: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of llama.cpp's architecture "clip" with projector "mlp"."""
    vision = config.vision_config
    _check(config)
    return {
        "general.architecture": mmproj.ARCHITECTURE,
        mmproj.HAS_TOWER: True,
        mmproj.PROJECTOR: mmproj.TWO_LINEAR,
        **_ACTIVATIONS[vision.hidden_act],
        mmproj.IMAGE_SIZE: vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": layers(config),
        mmproj.FEATURE_LAYER: [layers(config)],  # left out, llama.cpp would drop one layer more
        "clip.vision.projection_dim": config.text_config.hidden_size,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(vision.layer_norm_eps),
        mmproj.IMAGE_MEAN: [float(value) for value in processor["image_mean"]],
        mmproj.IMAGE_STD: [float(value) for value in processor["image_std"]],
    }


def _check(config: Any) -> None:
    """Raises MinipovidError for what llama.cpp would compute otherwise, or not at all."""
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    if has_class_token(vision) and strategy != "default":
        raise MinipovidError(
            f"vision_feature_select_strategy is {strategy!r}; llama.cpp's LLaVA drops the class token ('default')."
        )
    if not has_class_token(vision) and strategy != "full":
        raise MinipovidError(
            f"vision_feature_select_strategy is {strategy!r}, which drops the first patch of a {vision.model_type}; "
            "llama.cpp's LLaVA keeps all patches ('full')."
        )
    if vision.hidden_act not in _ACTIVATIONS or config.projector_hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise MinipovidError(
            f"The vision side computes {vision.hidden_act} and {config.projector_hidden_act}; "
            f"llama.cpp's LLaVA knows {' or '.join(_ACTIVATIONS)} in the tower and gelu in the projector."
        )
    if not config.multimodal_projector_bias:
        raise MinipovidError("The projector has no biases (multimodal_projector_bias); llama.cpp's LLaVA needs them.")
    if vision.intermediate_size == vision.hidden_size:
        raise MinipovidError(
            f"The tower's MLP is as wide as the tower ({vision.hidden_size}); llama.cpp would swap its two layers."
        )


def flop(tower: nn.Module, projector: nn.Module, config: Any) -> int:
    """Of one picture, 2 per weight and place: patches in the embedding, patches and class token in the tower, image
    tokens in the projector; and two products of [places, places, width] per layer, attention."""
    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    places = patches + has_class_token(vision)
    matrices = 2 * patches * _of_kind(tower, "Conv2d") + 2 * places * _of_kind(tower, "Linear")
    attention = 4 * places**2 * vision.hidden_size * vision.num_hidden_layers
    return int(matrices + attention + 2 * tokens(config) * _of_kind(projector, "Linear"))


def _of_kind(module: nn.Module, kind: str) -> int:
    parts: Iterable[Any] = module.modules()
    return sum(part.weight.numel() for part in parts if type(part).__name__ == kind)


# --- what a runtime may get wrong ---


def faults(
    tower: nn.Module, projector: nn.Module, config: Any
) -> dict[str, Callable[[], AbstractContextManager[None]]]:
    """By name, what makes a context in which the modules have the fault: features of each other layer, the class token
    in llama.cpp's place, the projector's layers swapped. Those that the model cannot have are left out."""
    from torch import nn

    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {}
    used = getattr(config, "vision_feature_layer", None)
    if isinstance(used, int):
        states = config.vision_config.num_hidden_layers + 1  # what enters the first layer, and what leaves each
        for layer in set(range(states)) - {used % states}:
            # Counted from the end: transformers takes 0 for "none".
            contexts[f"layer {layer}"] = partial(_feature_layer, config, layer - states)
    embeddings = next((part for part in tower.modules() if hasattr(part, "class_embedding")), None)
    if embeddings is not None:
        contexts["class token"] = partial(_class_token_last, embeddings)
    linear = [part for part in projector.modules() if isinstance(part, nn.Linear)]
    if len(linear) == 2 and linear[0].weight.shape == linear[1].weight.shape:
        contexts["projector"] = partial(_exchanged, *linear)
    return contexts


@contextmanager
def _feature_layer(config: Any, layer: int) -> Iterator[None]:
    trained, config.vision_feature_layer = config.vision_feature_layer, layer
    try:
        yield
    finally:
        config.vision_feature_layer = trained


@contextmanager
def _class_token_last(embeddings: Any) -> Iterator[None]:
    """As llama.cpp's graph has it: (patches, class token) under the positions of (class token, patches)."""
    positions = embeddings.position_embedding.weight

    def roll(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        return (out - positions).roll(-1, 1) + positions

    handle = embeddings.register_forward_hook(roll)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _exchanged(first: nn.Linear, second: nn.Linear) -> Iterator[None]:
    def swap() -> None:
        first.weight, second.weight, first.bias, second.bias = second.weight, first.weight, second.bias, first.bias

    swap()
    try:
        yield
    finally:
        swap()
