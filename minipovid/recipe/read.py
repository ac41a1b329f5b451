"""A recipe: one YAML file that says everything about a run, read strictly and completely, or refused in a sentence.

    name: my-run
    model: {path: llava-hf/llava-1.5-7b-hf}
    data: {path: pairs.json, images: photos/, format: povid}
    stages:
      - {loss: {name: dpo, beta: 0.1}, epochs: 3}
      - {loss: {name: povid}, epochs: 1}

Every key is documented at its field below. `resolve` fills in the defaults and makes paths absolute; the result is
written to the run folder before any weight is loaded, and later stages read it there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from minipovid.common.errors import MinipovidError

BUILTIN = "tinyworld"  # the model and data set that ship with the package

Number = Annotated[float, Field(allow_inf_nan=False)]
Auto = Literal["auto"]  # settled by the machine when training begins; the run folder's recipe holds what came out
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", strict=True)
T = TypeVar("T")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(_Section):
    """The model to align: a Hub id, a folder in Hub layout, or `tinyworld`."""

    path: str
    revision: str | None = None  # a Hub commit or tag
    load_in_4bit: bool = True  # NF4 with double quantisation, language model only
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU


class LoraSection(_Section):
    """Low-rank adapters on the language model's linear layers; master weights are float32."""

    r: int = Field(16, ge=1)
    alpha: Number = Field(32, gt=0)
    rslora: bool = False  # scale alpha / sqrt(r) instead of alpha / r


class DataSection(_Section):
    """The preference pairs."""

    path: str  # a file in `format`, or `tinyworld`
    images: str | None = None  # the folder that image paths are relative to; default: where `path` lies
    format: str = "jsonl"  # a reader on the `pairs` shelf
    max_length: int = Field(1024, ge=1)  # tokens of prompt, image and answer together; longer rows are bad, never cut
    on_bad_row: Literal["stop", "skip"] = "stop"
    limit: int | None = Field(None, ge=1)  # use only the first rows
    held_out: int = Field(32, ge=0)  # the last pairs, a tenth at most: `verify` asks about them, no training does


class NoiseSection(_Section):
    """The noised picture of POVID (losses that do not ask for it never pay for it)."""

    step: int = Field(500, ge=0, le=999)  # of the 1,000-step diffusion schedule
    domain: Literal["normalized", "clamp", "wrap"] = "normalized"
    refresh: Literal["never", "epoch"] = "never"  # draw new noise every epoch?
    cache_gib: Number = Field(4.0, ge=0)  # limit of the on-disk cache; 0 keeps nothing


class ReferenceSection(_Section):
    """The reference model's scores, which no step changes: computed once and kept on disk (reference.py)."""

    precompute: bool = False  # all of a stage's before its first step, instead of each when it is first needed
    cache_gib: Number = Field(8.0, ge=0)  # limit of the on-disk cache; 0 keeps nothing: computed at every visit


class StageSection(_Section):
    """One loss over the pairs for some epochs. Its reference is the model as the stage before left it."""

    loss: dict[str, Any]  # `name` is a file on the `losses` shelf; the other keys are its dataclass fields
    epochs: int = Field(1, ge=1)
    learning_rate: Number | None = Field(None, gt=0)  # default: train.learning_rate

    @model_validator(mode="after")
    def _named(self) -> StageSection:
        if not isinstance(self.loss.get("name"), str):
            raise ValueError("loss.name is missing; it names a file in minipovid/losses, for example povid")
        return self


class TrainSection(_Section):
    """The optimiser and the loop, under the names of transformers' TrainingArguments."""

    learning_rate: Number = Field(1e-6, gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: Number = Field(0.03, ge=0, lt=1)
    weight_decay: Number = Field(0.0, ge=0)
    max_grad_norm: Number | None = Field(None, gt=0)  # none: no clipping
    per_device_train_batch_size: int = Field(1, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    micro_batch: Count | Auto = "auto"  # pairs that pass the model at once; auto: as many of the above as memory holds
    gradient_checkpointing: bool | Count | Auto = "auto"  # of so many layers; true: of all; auto: as few as memory asks
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = "adamw_torch"
    max_steps: int | None = Field(None, ge=1)  # per stage; default: all of its epochs
    logging_steps: int = Field(10, ge=1)
    save_steps: int = Field(200, ge=1)
    save_total_limit: int = Field(2, ge=1)
    dataloader_num_workers: Workers | Auto = "auto"  # processes that decode, noise and tokenise ahead of the step
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []  # trackers beside log.jsonl, through accelerate


class ExportSection(_Section):
    """The GGUF files."""

    quants: list[str] = Field(default=["f16", "q8_0"], min_length=1)
    mmproj: Literal["f16", "q8_0"] = "f16"
    imatrix: int = Field(0, ge=0)  # pairs whose chosen answers weigh the columns when llama.cpp quantises; 0: none
    merge_base: Literal["auto", "nf4", "original"] = "auto"  # auto: nf4 below K-quants if trained in 4-bit


class Recipe(_Section):
    """A whole recipe; see the module's example."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(42, ge=0, lt=2**32)
    start_from: str | None = None  # a finished run: its adapter is where this run begins, and its first reference
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection
    noise: NoiseSection = NoiseSection()
    reference: ReferenceSection = ReferenceSection()
    stages: list[StageSection] = Field(min_length=1)
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    def asks_again(self, stage: StageSection) -> bool:
        """Does this stage ask for the reference's score of a pair more than once?"""
        return stage.epochs > 1 or self.reference.precompute


# Other tools' names (LLaMA-Factory, axolotl, TRL and transformers, ms-swift) and where ours stand.
FOREIGN_KEYS = {
    "model_name_or_path": "model.path",
    "base_model": "model.path",
    "model_id": "model.path",
    "quantization_bit": "model.load_in_4bit",
    "quant_bits": "model.load_in_4bit",
    "load_in_8bit": "model.load_in_4bit",
    "torch_dtype": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "adapter": "lora.r",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "use_rslora": "lora.rslora",
    "peft_use_rslora": "lora.rslora",
    "dataset": "data.path",
    "datasets": "data.path",
    "dataset_name": "data.path",
    "dataset_dir": "data.path",
    "image_dir": "data.images",
    "media_dir": "data.images",
    "image_folder": "data.images",
    "cutoff_len": "data.max_length",
    "sequence_len": "data.max_length",
    "model_max_length": "data.max_length",
    "max_samples": "data.limit",
    "pref_beta": "stages.0.loss.beta",
    "dpo_beta": "stages.0.loss.beta",
    "rl_beta": "stages.0.loss.beta",
    "beta": "stages.0.loss.beta",
    "pref_loss": "stages.0.loss.name",
    "loss_type": "stages.0.loss.name",
    "dpo_loss_type": "stages.0.loss.name",
    "rl": "stages.0.loss.name",
    "rpo_alpha": "stages.0.loss.anchor",
    "rlhf_type": "stages.0.loss.name",
    "num_train_epochs": "stages.0.epochs",
    "num_epochs": "stages.0.epochs",
    "micro_batch_size": "train.per_device_train_batch_size",
    "batch_size": "train.per_device_train_batch_size",
    "lr": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler_type",
    "gradient_clipping": "train.max_grad_norm",
    "warmup_steps": "train.warmup_ratio",
    "logging_dir": "name",
    "output_dir": "name",
    "run_name": "name",
    "noise_step": "noise.step",
    "precompute_ref_log_probs": "reference.precompute",
    "optimizer": "train.optim",
    "num_workers": "train.dataloader_num_workers",
    "quantization": "export.quants",
}


def shipped() -> dict[str, Path]:
    """The recipes that come with minipovid, by name: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(recipe: str) -> Path:
    """The file that a command's RECIPE means: a path, or the name of a shipped recipe.

    Raises MinipovidError where it is neither, with the nearest and all shipped names.
    """
    ours = shipped()
    if Path(recipe).is_file() or recipe not in ours and Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe)
    if recipe in ours:
        return ours[recipe]
    nearest = get_close_matches(recipe, ours, 1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise MinipovidError(
        f"There is no recipe {recipe!r}, neither a file nor one that ships with minipovid.{hint} "
        f"Shipped: {', '.join(ours)}."
    )


def read(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe in `path` with `--set key.path=value` overrides applied, defaults filled in and paths absolute.

    Relative paths in a recipe are relative to the current folder. Raises MinipovidError: one line per mistake.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise MinipovidError(
            f"There is no recipe {path}; `minipovid recipes` lists those that ship with minipovid."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MinipovidError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise MinipovidError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise MinipovidError(f"{path} does not hold a recipe: it should begin with `name:`.")
    for override in overrides:
        _override(tree, override)
    return _absolute(validated(Recipe, tree, str(path)))


def settings(overrides: Sequence[str]) -> dict[str, Any]:
    """`--set key.path=value` texts as a tree of their own. Raises MinipovidError for one that is none."""
    tree: dict[str, Any] = {}
    for override in overrides:
        _override(tree, override)
    return tree


def write(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, readable by `read` again."""
    text = yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value  # the text of a plain key; `<<` may stand more than once
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    raise yaml.YAMLError(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes round a text that `_Loader` would take for a number."""


# YAML 1.1 reads `1e-5` as text; everybody means the number, wherever it stands (YAML 1.2 agrees).
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$"), list("+-.0123456789")
    )


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply `key.path=value`. `loss.x=...` sets x of every stage's loss."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise MinipovidError(f"--set takes key.path=value, for example train.learning_rate=1e-6; this is {override!r}.")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise MinipovidError(f"--set {dotted}: {text!r} is not a YAML value; put quotes round a text.") from None
    steps = dotted.split(".")
    if steps[0] == "loss":
        for index in range(len(tree.get("stages") or [])):
            _set(tree, ["stages", str(index), *steps], value, dotted)
    else:
        _set(tree, steps, value, dotted)


def _set(tree: Any, steps: list[str], value: Any, dotted: str) -> None:
    for step in steps[:-1]:
        if isinstance(tree, list):
            if not (step.isdigit() and int(step) < len(tree)):
                raise MinipovidError(f"--set {dotted}: there is no entry {step} in a list of {len(tree)}.")
            tree = tree[int(step)]
        elif isinstance(tree, dict):
            if not isinstance(tree.get(step), (dict, list)):
                tree[step] = {}
            tree = tree[step]
    if not isinstance(tree, dict):
        raise MinipovidError(f"--set {dotted}: {'.'.join(steps[:-1])} holds no keys.")
    tree[steps[-1]] = value


def validated(wanted: type[T], tree: Mapping[Any, Any], origin: str) -> T:
    """`tree` as a `wanted` (a pydantic model or a dataclass); every mistake is one line that begins with `origin`.

    Raises MinipovidError.
    """
    try:
        made: T = _strict(wanted)(**{str(key): value for key, value in tree.items()})  # type: ignore[arg-type]
        return made
    except ValidationError as errors:
        sentences = [_sentence(wanted, error) for error in errors.errors()]
        raise MinipovidError("\n".join(f"{origin}: {sentence}" for sentence in _joined(sentences))) from None


@cache
def _strict(wanted: type) -> Any:
    """A type whose making checks its fields. To derive it from a dataclass takes pydantic a millisecond."""
    return wanted if issubclass(wanted, BaseModel) else dataclass(wanted, frozen=True, config=_STRICT)


# Pydantic names the alternatives of `int | Literal["auto"]` behind the field, and tells one error for each.
_ALTERNATIVE = re.compile(r"bool|constrained-int|literal\[.*\]")


def _joined(sentences: list[str]) -> list[str]:
    """One sentence for each field: "x is 0, but it must be at least 1" and "... must be auto" become one."""
    joined: dict[str, str] = {}
    for sentence in sentences:
        start, middle, end = sentence.partition("it must be ")
        if middle and start in joined:
            joined[start] = f"{joined[start].rstrip('.')} or {end}"
        else:
            joined[start if middle else sentence] = sentence
    return list(joined.values())


def _sentence(wanted: type, error: Any) -> str:
    """One pydantic error as a sentence with the dotted path, the value and the remedy."""
    dotted = ".".join(str(step) for step in error["loc"] if not _ALTERNATIVE.fullmatch(str(step)))
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _unknown(wanted, dotted)
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
        **{key: f"{text} {context.get(bound, 0):g}" for key, text, bound in _BOUNDS},
    }.get(kind)
    if must_be is None:
        return f"{dotted} is {value!r}: {error['msg']}."
    return f"{dotted} is {value!r}, but it must be {must_be}."


def _one_of(expected: str) -> str:
    """Pydantic's "'a', 'b' or 'c'" without quotes."""
    names = expected.replace("'", "").replace(" or ", ", ")
    return f"one of {names}" if "," in names else names


_BOUNDS = [
    ("greater_than", "greater than", "gt"),
    ("greater_than_equal", "at least", "ge"),
    ("less_than", "less than", "lt"),
    ("less_than_equal", "at most", "le"),
]


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
    allowed = ", ".join(path.rpartition(".")[2] for path in siblings)
    return f"{dotted} is not a key of a recipe; allowed here: {allowed}."


def _dotted_keys(section: type, prefix: str = "") -> list[str]:
    """Every key of a section, "train.learning_rate" and the like; list indices are left out."""
    keys: list[str] = []
    for name, inner in get_type_hints(section).items():
        if name == "model_config" or get_origin(inner) is ClassVar:
            continue
        keys.append(prefix + name)
        for candidate in (inner, *getattr(inner, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                keys += _dotted_keys(candidate, f"{prefix}{name}.")
    return keys


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    if not isinstance(tree, (dict, list)):
        return {prefix.rstrip("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, inner in items for key, value in flat(inner, f"{prefix}{name}.").items()}


def _absolute(recipe: Recipe) -> Recipe:
    """Make the paths of local files absolute, so that the run folder's recipe works from anywhere."""

    def local(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    model, data, start = recipe.model, recipe.data, recipe.start_from
    if model.path != BUILTIN and Path(model.path).expanduser().is_dir():
        model = model.model_copy(update={"path": local(model.path)})
    if data.path != BUILTIN:
        there = Path(data.path).expanduser()
        images = data.images if data.images is not None else str(there if there.is_dir() else there.parent)
        data = data.model_copy(update={"path": local(data.path), "images": local(images)})
    return recipe.model_copy(
        update={"model": model, "data": data, "start_from": local(start) if start is not None else None}
    )
