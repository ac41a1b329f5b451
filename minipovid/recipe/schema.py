"""Every key of a recipe, documented at its field; `python docs/recipes.py` makes docs/recipes.md of this page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_serializer, model_validator

BUILTIN = "tinyworld"  # the model and data set that ship with the package

Number = Annotated[float, Field(allow_inf_nan=False)]
Auto = Literal["auto"]  # settled by the machine when training begins; the run folder's recipe holds what came out
Count = Annotated[int, Field(ge=1)]
Workers = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(_Section):
    """The model to align: a Hub id, a folder in Hub layout, or `tinyworld`."""

    path: str  # the Hub id, the folder, or tinyworld
    revision: str | None = None  # a Hub commit or tag
    load_in_4bit: bool = True  # NF4 with double quantisation, language model only
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, else float32


class LoraSection(_Section):
    """Low-rank adapters on the language model's linear layers; master weights are float32."""

    r: int = Field(16, ge=1)  # the rank: how much an adapter can learn, and how much memory it takes
    alpha: Number = Field(32, gt=0)  # what it says is scaled by alpha / r
    rslora: bool = False  # scaled by alpha / sqrt(r) instead


class DataSection(_Section):
    """The preference pairs."""

    path: str  # a file in `format`, or `tinyworld`
    images: str | None = None  # the folder that image paths are relative to; default: where `path` lies
    format: str = "jsonl"  # how the file is written: povid, trl, rlaif_v, csv, ... (docs/pairs.md)
    max_length: int = Field(1024, ge=1)  # tokens of prompt, image and answer together; longer rows are bad, never cut
    on_bad_row: Literal["stop", "skip"] = "stop"  # where a row cannot be trained on; the log counts those skipped
    limit: int | None = Field(None, ge=1)  # use only the first rows
    held_out: int = Field(32, ge=0)  # the last pairs, a tenth at most: `verify` asks about them, no training does


class NoiseSection(_Section):
    """The noised picture of POVID (losses that do not ask for it never pay for it)."""

    step: int = Field(500, ge=0, le=999)  # of the 1,000-step diffusion schedule
    domain: Literal["normalized", "clamp", "wrap"] = "normalized"  # normalized: of the tower's input; else of bytes
    refresh: Literal["never", "epoch"] = "never"  # draw new noise every epoch?
    cache_gib: Number = Field(4.0, ge=0)  # limit of the on-disk cache; 0 keeps nothing


class ViewsSection(_Section):
    """The pictures that losses look at beside the clean one, by their file on the shelf images/views."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]  # the keys of a view are the fields of its file's `Settings`
    noised: NoiseSection | None = Field(None, exclude=True)  # another name of `noise`, where all of it is to be found

    @property
    def others(self) -> Mapping[str, dict[str, Any]]:
        return self.__pydantic_extra__


class ReferenceSection(_Section):
    """The reference model's scores, which no step changes: computed once and kept on disk (train/reference.py)."""

    precompute: bool = False  # all of a stage's before its first step, instead of each when it is first needed
    cache_gib: Number = Field(8.0, ge=0)  # limit of the on-disk cache; 0 keeps nothing: computed at every visit


class StageSection(_Section):
    """One loss over the pairs for some epochs. Its reference is the model as the stage before left it."""

    kind: str = "preference"  # a file on the shelf train/stages: what a step computes
    loss: dict[str, Any]  # `name` is a file on the shelf train/losses; the other keys are that file's own
    data: DataSection | None = None  # pairs of this stage's own; default: the recipe's
    epochs: int = Field(1, ge=1)  # how often each pair is seen
    learning_rate: Number | None = Field(None, gt=0)  # default: train.learning_rate

    @model_validator(mode="after")
    def _check_loss(self) -> StageSection:
        if not isinstance(self.loss.get("name"), str):
            raise ValueError("loss.name is missing; it names a file in minipovid/train/losses, for example povid")
        return self


class TrainSection(_Section):
    """The optimiser and the loop, under the names of transformers' TrainingArguments."""

    learning_rate: Number = Field(1e-6, gt=0)  # at its highest
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"  # how it goes on from there, in each stage
    warmup_ratio: Number = Field(0.03, ge=0, lt=1)  # the share of a stage's steps in which it rises to that
    weight_decay: Number = Field(0.0, ge=0)  # AdamW's
    max_grad_norm: Number | None = Field(None, gt=0)  # longer gradients are scaled down to it; none: no clipping
    per_device_train_batch_size: int = Field(1, ge=1)  # pairs
    gradient_accumulation_steps: int = Field(1, ge=1)  # so many batches make one step of the optimiser
    micro_batch: Count | Auto = "auto"  # pairs that pass the model at once; auto: as many of the above as memory holds
    gradient_checkpointing: bool | Count | Auto = "auto"  # of so many layers; true: of all; auto: as few as memory asks
    # The states of paged and 8-bit ones take less GPU memory.
    optim: Literal["adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"] = "adamw_torch"
    max_steps: int | None = Field(None, ge=1)  # of each stage; default: all of its epochs
    logging_steps: int = Field(10, ge=1)  # between two lines of log.jsonl
    save_minutes: Number | None = Field(15.0, gt=0)  # between two checkpoints; none: only as save_steps says
    save_steps: int | None = Field(None, ge=1)  # and one after so many steps, whatever the time
    save_total_limit: int = Field(2, ge=1)  # so many checkpoints are kept, the newest
    dataloader_num_workers: Workers | Auto = "auto"  # processes that decode, noise and tokenise ahead of the step
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []  # trackers beside log.jsonl, through accelerate

    @property
    def pairs_per_step(self) -> int:
        """Of one process."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class ExportSection(_Section):
    """The GGUF files."""

    quants: list[str] = Field(default=["f16", "q8_0"], min_length=1)  # f16, q8_0, or any that llama.cpp offers
    mmproj: Literal["f16", "q8_0"] = "f16"  # the vision side's file
    imatrix: int = Field(0, ge=0)  # pairs whose chosen answers weigh the columns when llama.cpp quantises; 0: none
    merge_base: Literal["auto", "nf4", "original"] = "auto"  # auto: nf4 below K-quants if trained in 4-bit


class Recipe(_Section):
    """A whole recipe; see the module's example."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")  # the run folder is runs/NAME
    extends: str | None = Field(None, exclude=True)  # a shipped recipe's name, or a path from this one's folder
    seed: int = Field(42, ge=0, lt=2**32)  # of new adapters, the order of the pairs, noise and crops
    start_from: str | None = None  # a finished run: its adapter is where this run begins, and its first reference
    model: ModelSection
    lora: LoraSection = LoraSection()
    data: DataSection
    views: ViewsSection = ViewsSection()
    noise: NoiseSection = Field(NoiseSection(), validate_default=True)
    reference: ReferenceSection = ReferenceSection()
    stages: list[StageSection] = Field(min_length=1)
    train: TrainSection = TrainSection()
    export: ExportSection = ExportSection()

    @field_validator("noise", mode="before")
    @classmethod
    def _noised(cls, noise: Any, info: ValidationInfo) -> Any:
        """With the keys that `views.noised` gives; those that both give must say the same."""
        views = info.data.get("views")  # none where it is wrong itself, and said to be
        if views is None or views.noised is None or not isinstance(noise, (dict, NoiseSection)):
            return noise
        ours = noise if isinstance(noise, dict) else noise.model_dump(exclude_unset=True)
        theirs = views.noised.model_dump(exclude_unset=True)
        for key in theirs:
            if key in ours and ours[key] != theirs[key]:
                both = f"{key} is {ours[key]!r} and views.noised.{key} is {theirs[key]!r}"
                raise ValueError(f"{both}; they are one key, so write one of them")
        return {**ours, **theirs}

    @model_serializer(mode="wrap")
    def _without_empty_views(self, dump: Any) -> dict[str, Any]:
        """As in the folders of runs that are older than `views`."""
        return {key: value for key, value in dump(self).items() if key != "views" or value}

    def view(self, name: str) -> Mapping[str, Any]:
        """The keys that are given to a view of the shelf images/views."""
        return {"noised": self.noise.model_dump(), **self.views.others}.get(name, {})

    def data_sections(self) -> list[DataSection]:
        """The run's pairs, and those that stages have of their own."""
        return [self.data, *(stage.data for stage in self.stages if stage.data is not None)]

    def asks_again(self, stage: StageSection) -> bool:
        """Does this stage ask for the reference's score of a pair more than once?"""
        return stage.epochs > 1 or self.reference.precompute
