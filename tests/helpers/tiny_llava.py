"""A random LLaVA small enough for any test, in the layout and with the tensor names of a model on the Hub.

    folder = tiny_llava.build(tmp_path / "base")                                   # llava-hf/llava-1.5-7b-hf
    folder = tiny_llava.build(tmp_path / "base", text="mistral")                   # CLIP and Mistral, [INST] chat
    folder = tiny_llava.build(tmp_path / "base", text="qwen2", tower="siglip")     # llava-interleave-qwen, ChatML

The folder holds config.json, safetensors, tokenizer.json, tokenizer_config.json, preprocessor_config.json,
processor_config.json, generation_config.json, and for Llama and Mistral a SentencePiece tokenizer.model (byte fallback,
`<image>` and `<pad>` behind it as on the Hub); for Qwen2 the tokenizer is a byte-level BPE. All but LLaVA 1.5 bring
their chat template. Weights are drawn so that logits spread over several units: ties do not occur.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

PIECES = 400  # of the SentencePiece model; `<image>` is 400, `<pad>` 401
VOCABULARY = 416  # rows of the embedding: padded to a multiple of 32, as the Hub's 32064 is to one of 64
IMAGE, PAD = PIECES, PIECES + 1
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", IMAGE: "<image>", PAD: "<pad>"}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

BPE_PIECES = 384  # of the byte-level BPE; its special tokens follow
CHATML = {"<|endoftext|>": 384, "<|im_start|>": 385, "<|im_end|>": 386, "<image>": 387}
_CASELESS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST  # how the published tokenizers cut a text
LLAMA3_SPLIT = _CASELESS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST


class TextKind(NamedTuple):
    """What a text model brings with it."""

    architecture: str
    config: Mapping[str, Any]  # of text_config
    tokens: Mapping[str, int]  # roles of token ids
    template: str | None  # of the chat


class TowerKind(NamedTuple):
    """What a vision tower brings with it."""

    config: Mapping[str, Any]  # of vision_config
    layer: int
    strategy: str
    mean: Sequence[float]
    std: Sequence[float]
    processor: str
    crops: bool  # does Hugging Face's own processor?


_CONTENT = (
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endfor %}"
)
_SPOKEN = "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}"
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{{ '\\n' }}" + _SPOKEN + "{% else %}{{ ' ' }}" + _CONTENT + "{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for part in message['content'] %}{{ '<image>\\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' }}" + _SPOKEN + "{{ eos_token }}"
    "{% else %}{{ raise_exception('only users and assistants talk here') }}{% endif %}{% endfor %}"
)
_LLAMA_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
TEXTS = {
    "llama": TextKind("LlamaForCausalLM", {}, _LLAMA_TOKENS, None),
    "mistral": TextKind("MistralForCausalLM", {"sliding_window": 4096}, _LLAMA_TOKENS, INST_TEMPLATE),
    "qwen2": TextKind(
        "Qwen2ForCausalLM",
        {"rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 1},
        {"bos_token_id": 384, "eos_token_id": 386, "pad_token_id": 384},
        CHATML_TEMPLATE,
    ),
}
TOWERS = {
    "clip": TowerKind({"projection_dim": 32, "vocab_size": 1000}, -2, "default", MEAN, STD, "CLIPImageProcessor", True),
    "siglip": TowerKind({"vision_use_head": False}, -1, "full", (0.5,) * 3, (0.5,) * 3, "SiglipImageProcessor", False),
}


# Keywords of `build`: the pairings of the Hub, each tower and language model once at least.
CASES = ({"text": "llama", "tower": "clip"}, {"text": "qwen2", "tower": "siglip"}, {"text": "mistral", "tower": "clip"})


def build(
    folder: Path,
    *,
    text: str = "llama",
    tower: str = "clip",
    seed: int = 0,
    dtype: str = "float32",
    legacy: bool = True,
    shards: int = 1,
    spelling: str = "hub",
    settings: Mapping[str, Any] | None = None,
    **sizes: int,
) -> Path:
    """Write the checkpoint and return its folder.

    `text`, `tower`, `settings` and `sizes` are those of `config`; `dtype` is float32, float16 or bfloat16; `legacy` is
    the flavour of a SentencePiece tokenizer.json, see there; `shards` > 1 writes an index; `spelling` is "hub"
    (vision_tower.vision_model..., as transformers 4) or "saved" (as transformers 5 saves it).
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind, settled = TEXTS[text], config(text, tower, dtype, settings, **sizes)
    eyes = settled["vision_config"]
    _write_json(folder / "config.json", settled)
    _write_weights(folder, settled, seed, dtype, shards, spelling)
    if kind.tokens is _LLAMA_TOKENS:
        _write_sentencepiece(folder, legacy)
    else:
        _write_chatml(folder)
    _write_template(folder, kind.template, spelling)
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(eyes["image_size"], TOWERS[tower]))
    _write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": int(tower == "clip"),
            "patch_size": eyes["patch_size"],
            "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": settled["vision_feature_select_strategy"],
        },
    )
    _write_json(folder / "generation_config.json", {**kind.tokens, "_from_model_config": True})
    return folder


def adapter(
    base: Path, folder: Path, *, seed: int = 0, r: int = 4, alpha: float = 8, targets: Any = None, **settings: Any
) -> Path:
    """Write a random LoRA adapter for the checkpoint `base` with peft itself, on `targets` or where training puts it;
    `settings` go to its LoraConfig."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlavaForConditionalGeneration

    from minipovid.models.families.llava import LORA_TARGETS

    model = LlavaForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=targets or LORA_TARGETS, **settings)
    peft = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
        elif "lora_A" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
    peft.save_pretrained(folder)
    return folder


@lru_cache(maxsize=1)
def lines() -> tuple[str, ...]:
    """What both kinds of tokenizer are trained on."""
    nouns = ["circle", "square", "triangle", "star", "dog", "cat", "table", "chair", "picture", "image"]
    colours = ["red", "green", "blue", "yellow", "small", "large"]
    lines = [
        f"A {colour} {noun} is left of the {other}." for colour in colours for noun in nouns for other in nouns[:3]
    ]
    lines += ["USER: What is this? ASSISTANT: Yes, there is.", "Is there a red circle? No.", "Describe this image."]
    lines += ["The quick brown fox jumps over the lazy dog: 0123456789!?,'\"()-;", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 3
    return tuple(lines)


@lru_cache(maxsize=1)
def sentencepiece_model() -> bytes:
    """A byte-pair SentencePiece model with Llama's settings: byte fallback, dummy prefix, no normalisation."""
    import sentencepiece

    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def piece(text: str) -> int:
    """The id of a piece of the SentencePiece model; "▁" stands for a space."""
    import sentencepiece

    return int(sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model()).piece_to_id(text))


@lru_cache(maxsize=2)
def tokenizer_json(legacy: bool = True) -> str:
    """The tokenizer.json that goes with `sentencepiece_model`; transformers reads this one for a LLaVA, if it is there.

    Legacy, as on the Hub: every piece of text between special tokens begins with a space, so the newline behind an
    image is two tokens. Otherwise only the very first piece does. Both begin with `<s>`.
    """
    from tokenizers import Tokenizer
    from transformers.convert_slow_tokenizer import SentencePieceExtractor
    from transformers.models.llama.tokenization_llama import LlamaTokenizer

    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(sentencepiece_model())
        parts = SentencePieceExtractor(str(path)).extract(LlamaTokenizer.model)
    content = json.loads(LlamaTokenizer(vocab=parts["vocab"], merges=parts["merges"]).backend_tokenizer.to_str())
    if legacy:
        steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        content["normalizer"], content["pre_tokenizer"] = {"type": "Sequence", "normalizers": steps}, None
    start, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    content["added_tokens"] = [{"id": index, "content": name, **FLAGS} for index, name in SPECIAL.items()]
    return Tokenizer.from_str(json.dumps(content)).to_str()


@lru_cache(maxsize=4)
def bpe_tokenizer_json(split: str = QWEN2_SPLIT, bos: str | None = None) -> str:
    """A byte-level BPE like Qwen2's: `split` cuts a text into words; with `bos`, every text begins with that token."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_PIECES,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    more = [
        "12 345 6789 2024",
        "it's IT'S we'll WE'LL don't",
        "one.\n\n\ntwo;\n\n  three\n",
        "a  b   c    d",
        "x = y();",
    ]
    tokenizer.train_from_iterator([*lines(), *more * 20], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CHATML])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer.to_str()


def hub_name(name: str) -> str:
    """The Hub's spelling of a parameter name of transformers 5."""
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)
    return _saved_name(name)


def _saved_name(name: str) -> str:
    name = name.removeprefix("model.")
    name = re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)
    return re.sub(r"^lm_head", "language_model.lm_head", name)


def config(
    text: str = "llama",
    tower: str = "clip",
    dtype: str = "float32",
    settings: Mapping[str, Any] | None = None,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 192,
    vision_hidden: int = 64,
    vision_layers: int = 4,
    image_size: int = 28,
    patch_size: int = 7,
) -> dict[str, Any]:
    """config.json: `text` is llama, mistral or qwen2, `tower` clip or siglip; `settings` are laid over it, nested ones
    over the nested ones."""
    kind, eye = TEXTS[text], TOWERS[tower]
    language = {
        "model_type": text,
        "architectures": [kind.architecture],
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "torch_dtype": dtype,
        **kind.config,
    }
    vision = {
        "model_type": f"{tower}_vision_model",
        "hidden_size": vision_hidden,
        "intermediate_size": 2 * vision_hidden,
        "num_hidden_layers": vision_layers,
        "num_attention_heads": 4,
        "image_size": image_size,
        "patch_size": patch_size,
        **eye.config,
    }
    whole = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "ignore_index": -100,
        "image_token_index": IMAGE if kind.tokens is _LLAMA_TOKENS else CHATML["<image>"],
        "image_seq_length": (image_size // patch_size) ** 2,
        "pad_token_id": kind.tokens["pad_token_id"],
        "projector_hidden_act": "gelu",
        "text_config": language,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vision_config": vision,
        "vision_feature_layer": eye.layer,
        "vision_feature_select_strategy": eye.strategy,
    }
    _lay_over(whole, settings or {})
    return whole


def _lay_over(config: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, dict) and key in config:
            _lay_over(config[key], value)
        else:
            config[key] = value


def _write_sentencepiece(folder: Path, legacy: bool) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    (folder / "tokenizer.json").write_text(tokenizer_json(legacy), encoding="utf-8")
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(legacy))
    _write_json(folder / "added_tokens.json", {"<image>": IMAGE, "<pad>": PAD})


def _write_chatml(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(bpe_tokenizer_json(), encoding="utf-8")
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): {"content": name, **FLAGS} for name, index in CHATML.items()},
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 512,
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "Qwen2Tokenizer",
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_template(folder: Path, template: str | None, spelling: str) -> None:
    """Where the processors of transformers 4 and 5 keep it."""
    if template is not None and spelling == "hub":
        _write_json(folder / "chat_template.json", {"chat_template": template})
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _tokenizer_config(legacy: bool) -> dict[str, Any]:
    return {
        "added_tokens_decoder": {str(index): {"content": name, **FLAGS} for index, name in SPECIAL.items()},
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "padding_side": "left",
        "model_max_length": 512,
        "processor_class": "LlavaProcessor",
        "tokenizer_class": "LlamaTokenizer",
    }


def _preprocessor_config(image_size: int, eye: TowerKind) -> dict[str, Any]:
    square = {"height": image_size, "width": image_size}
    crops = {"crop_size": square, "do_center_crop": True, "do_convert_rgb": True, "size": {"shortest_edge": image_size}}
    return dict(
        sorted(
            {
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": list(eye.mean),
                "image_processor_type": eye.processor,
                "image_std": list(eye.std),
                "processor_class": "LlavaProcessor",
                "resample": 3,
                "rescale_factor": 1 / 255,
                **(crops if eye.crops else {"size": square}),
            }.items()
        )
    )


def _write_weights(folder: Path, config: dict[str, Any], seed: int, dtype: str, shards: int, spelling: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    rename = {"hub": hub_name, "saved": _saved_name}[spelling]
    tensors = {
        rename(name): _draw(name, parameter.shape, generator).to(getattr(torch, dtype))
        for name, parameter in model.named_parameters()
    }
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names, weight_map = list(tensors), {}
    for index in range(shards):
        shard = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = names[index::shards]
        save_file({name: tensors[name] for name in part}, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, shard))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _draw(name: str, shape: Any, generator: Any) -> Any:
    """Norm weights near 1, biases small, matrices scaled by their fan-in; a head sharp enough to choose."""
    import torch

    noise = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 1:
        is_norm = "norm" in name and name.endswith("weight")
        return 1 + 0.1 * noise if is_norm else 0.1 * noise
    if "embed" in name and "patch" not in name:
        return noise
    fan_in = noise[0].numel()
    return noise * (3.0 if "lm_head" in name else 1.2) / fan_in**0.5


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
