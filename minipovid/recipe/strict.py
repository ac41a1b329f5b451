"""A tree of keys as a type, or one sentence for each mistake: the dotted path, the value and what it should be."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any, ClassVar, TypeVar, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from minipovid.common.errors import MinipovidError

_STRICT = ConfigDict(extra="forbid", strict=True)
T = TypeVar("T")


# Where ours stand, and other tools' names for them (LLaMA-Factory, axolotl, TRL and transformers, ms-swift).
_FOREIGN = {
    "model.path": "model_name_or_path base_model model_id",
    "model.load_in_4bit": "quantization_bit quant_bits load_in_8bit",
    "model.dtype": "torch_dtype bf16 fp16",
    "lora.r": "adapter lora_r lora_rank rank",
    "lora.alpha": "lora_alpha",
    "lora.rslora": "use_rslora peft_use_rslora",
    "data.path": "dataset datasets dataset_name dataset_dir",
    "data.images": "image_dir media_dir image_folder",
    "data.max_length": "cutoff_len sequence_len model_max_length",
    "data.limit": "max_samples",
    "stages.0.loss.beta": "pref_beta dpo_beta rl_beta beta",
    "stages.0.loss.name": "pref_loss loss_type dpo_loss_type rl rlhf_type",
    "stages.0.loss.anchor": "rpo_alpha",
    "stages.0.epochs": "num_train_epochs num_epochs",
    "train.per_device_train_batch_size": "micro_batch_size batch_size",
    "train.learning_rate": "lr",
    "train.lr_scheduler_type": "lr_scheduler",
    "train.max_grad_norm": "gradient_clipping",
    "train.warmup_ratio": "warmup_steps",
    "name": "logging_dir output_dir run_name",
    "noise.step": "noise_step",
    "reference.precompute": "precompute_ref_log_probs",
    "train.optim": "optimizer",
    "train.dataloader_num_workers": "num_workers",
    "export.quants": "quantization",
}
FOREIGN_KEYS = {theirs: ours for ours, names in _FOREIGN.items() for theirs in names.split()}


def validated(
    wanted: type[T], tree: Mapping[Any, Any], origin: str | Callable[[Sequence[str]], str], keys_of: str = "a recipe"
) -> T:
    """`tree` as a `wanted` (a pydantic model or a dataclass); every mistake is one line that begins with `origin`,
    which may depend on the steps of the key's path. `keys_of` says whose the keys are: "a recipe", "the gguf backend".

    Raises MinipovidError.
    """
    try:
        instance: T = _strict(wanted)(**{str(key): value for key, value in tree.items()})  # type: ignore[arg-type]
        return instance
    except ValidationError as errors:
        sentences = []
        for error in errors.errors():
            steps = [str(step) for step in error["loc"] if not _ALTERNATIVE.fullmatch(str(step))]
            place = origin if isinstance(origin, str) else origin(steps)
            sentences.append(f"{place}: {_sentence(wanted, error, '.'.join(steps), keys_of)}")
        raise MinipovidError("\n".join(_one_per_field(sentences))) from None


@cache
def _strict(wanted: type) -> Any:
    """A type whose making checks its fields. To derive it from a dataclass takes pydantic a millisecond."""
    return wanted if issubclass(wanted, BaseModel) else dataclass(wanted, frozen=True, config=_STRICT)


# Pydantic names the alternatives of `int | Literal["auto"]` behind the field, and tells one error for each.
_ALTERNATIVE = re.compile(r"bool|constrained-int|literal\[.*\]")


def _one_per_field(sentences: list[str]) -> list[str]:
    """One sentence for each field: "x is 0, but it must be at least 1" and "... must be auto" become one."""
    by_field: dict[str, str] = {}
    for sentence in sentences:
        start, middle, end = sentence.partition("it must be ")
        if middle and start in by_field:
            by_field[start] = f"{by_field[start].rstrip('.')} or {end}"
        else:
            by_field[start if middle else sentence] = sentence
    return list(by_field.values())


def _sentence(wanted: type, error: Any, dotted: str, keys_of: str) -> str:
    """One pydantic error as a sentence with the dotted path, the value and the remedy."""
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(wanted, dotted) if keys_of == "a recipe" else _no_option(wanted, dotted, keys_of)
    if kind == "missing":
        return f"{dotted} is missing."
    if kind == "value_error":
        return f"{dotted}.{context['error']}."
    must_be = {
        "string_type": "text",
        "bool_type": "true or false",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "list_type": "a list (its lines begin with '-')",
        "dict_type": "a group of keys",
        "model_type": "a group of keys",
        "model_attributes_type": "a group of keys",
        "string_pattern_mismatch": "letters, digits, '.', '_' and '-' alone",
        "literal_error": _one_of(context.get("expected", "")),
        "too_short": "a list with at least one entry",
        "greater_than": f"greater than {context.get('gt', 0):g}",
        "greater_than_equal": f"at least {context.get('ge', 0):g}",
        "less_than": f"less than {context.get('lt', 0):g}",
        "less_than_equal": f"at most {context.get('le', 0):g}",
    }.get(kind)
    if must_be is None:
        return f"{dotted} is {value!r}: {error['msg']}."
    return f"{dotted} is {value!r}, but it must be {must_be}."


def _one_of(expected: str) -> str:
    """Pydantic's "'a', 'b' or 'c'" without quotes."""
    names = expected.replace("'", "").replace(" or ", ", ")
    return f"one of {names}" if "," in names else names


def _no_option(wanted: type, dotted: str, keys_of: str) -> str:
    """Of a type whose fields users set as options: none of them is a recipe's key."""
    known = _dotted_keys(wanted)
    nearest = get_close_matches(dotted, known, 1, 0.6)
    hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(known) or 'none'}."
    return f"{dotted} is no option of {keys_of}; {hint}"


def _unknown(wanted: type, dotted: str) -> str:
    key = dotted.rpartition(".")[2]
    ours = FOREIGN_KEYS.get(key)
    if ours is not None:
        return f"{dotted} is not a key of a recipe; here it is called {ours}."
    known = _dotted_keys(wanted)
    prefix = dotted.rpartition(".")[0]
    siblings = [path for path in known if path.rpartition(".")[0] == re.sub(r"\.\d+\b", "", prefix)]
    elsewhere = [path.replace("stages.", "stages.0.") for path in known if path.rpartition(".")[2] == key]
    if elsewhere:
        return f"{dotted} is not a key of a recipe; did you mean {elsewhere[-1]}?"
    nearest = get_close_matches(key, [path.rpartition(".")[2] for path in siblings], 1, 0.6)
    if nearest:
        return f"{dotted} is not a key of a recipe; did you mean {prefix + '.' if prefix else ''}{nearest[0]}?"
    allowed = ", ".join(path.rpartition(".")[2] for path in siblings) or "nothing"
    return f"{dotted} is not a key of a recipe; allowed here: {allowed}."


def _dotted_keys(section: type, prefix: str = "") -> list[str]:
    """Every key of a section, "train.learning_rate" and the like; list indices are left out."""
    keys: list[str] = []
    for name, inner in get_type_hints(section).items():
        if name in ("model_config", "__pydantic_extra__") or get_origin(inner) is ClassVar:
            continue
        keys.append(prefix + name)
        for candidate in (inner, *getattr(inner, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys += _dotted_keys(candidate, f"{prefix}{name}.")
    return keys
