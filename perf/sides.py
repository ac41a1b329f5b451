"""The two sides of the step benchmark, ours and TRL's, each as an object that does one optimiser step when asked.

Ours is minipovid's own training loop on a recipe; TRL's is DPOTrainer.train() itself, halted at the end of every step.
Both read pictures and tokenise within the step, and neither is given anything that its users do not get.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from bench_world import Geometry, write_pairs
from peft import LoraConfig
from torch import nn

from minipovid.models.families.llava import LORA_TARGETS
from minipovid.models.shapes import Shapes, shapes
from minipovid.recipe import schema, strict
from minipovid.train import losses
from minipovid.train.losses import View
from minipovid.train.plan import costs

LEARNING_RATE = 1e-6
BETA = 0.1
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% else %}{{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Setting:
    """What all sides of a comparison share; a side's own files go into a folder of its own under `folder`."""

    folder: Path
    checkpoint: Path
    geometry: Geometry
    device: str
    in_4bit: bool
    rank: int
    count: int  # pairs, and so the steps that a side with every pair new can be asked for
    logging_steps: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    def pairs(self, name: str) -> tuple[Path, list[dict[str, str]]]:
        """A side's own data, never seen by a cache: (folder, rows)."""
        folder = self.folder / f"data-{name.replace(' ', '_')}-r{self.rank}"
        return folder, write_pairs(folder, self.count, sum(folder.name.encode()), self.geometry)


class Side(Protocol):
    """One contender."""

    model: nn.Module

    def step(self) -> None:
        """One optimiser step over one pair, from its files to the changed weights."""

    def close(self) -> None: ...


class Ours:
    """minipovid.train on a recipe; every pair is seen once. `cached`: the reference was computed before the clock."""

    def __init__(self, setting: Setting, name: str, loss: dict[str, Any], *, checkpointing: bool, cached: bool) -> None:
        from minipovid.train.loop import steps
        from minipovid.train.run import Run

        folder, _ = setting.pairs(name)
        recipe = strict.validated(schema.Recipe, self._tree(setting, folder, loss, checkpointing, cached), name)
        self.geometry, self.cached = setting.geometry, cached
        self.trainer = Run.open(recipe, folder / "run")
        self.steps = steps(self.trainer)
        self.model: nn.Module = self.trainer.model.peft

    @staticmethod
    def _tree(
        setting: Setting, folder: Path, loss: dict[str, Any], checkpointing: bool, cached: bool
    ) -> dict[str, Any]:
        return {
            "name": "bench",
            "model": {"path": str(setting.checkpoint), "load_in_4bit": setting.in_4bit},
            "lora": {"r": setting.rank, "alpha": float(2 * setting.rank)},
            "data": {"path": str(folder / "pairs.jsonl"), "max_length": 2048},
            "reference": {"precompute": cached},
            "stages": [{"loss": {"beta": BETA, **loss}}],
            "train": {
                "learning_rate": LEARNING_RATE,
                "lr_scheduler_type": "constant",
                "micro_batch": 1,
                "gradient_checkpointing": checkpointing,
                "logging_steps": setting.logging_steps,
                "save_steps": 1_000_000,
            },
        }

    def step(self) -> None:
        next(self.steps)

    def flop(self) -> float:
        """Of one step, as `minipovid plan` counts them."""
        model, setting, views, lengths = self._plan()
        policy = sum(costs.flop(model, setting, costs.trees(views, *lengths)).values())
        asked = [] if self.cached else costs.reference(views)
        return policy + costs.reference_flop(model, setting, costs.trees(asked, *lengths), adapted=False)

    def predicted_gib(self) -> float:
        """Peak above the idle model, as `minipovid plan` predicts it."""
        model, setting, views, lengths = self._plan()
        parts = costs.memory(model, setting, costs.trees(views, *lengths)).parts
        return sum(parts[part] for part in ("optimiser", "activations", "logits", "workspace")) / costs.GIB

    def _plan(self) -> tuple[Shapes, costs.Setting, Sequence[View], tuple[int, int]]:
        recipe = self.trainer.recipe
        model = shapes(recipe.model.path)
        lengths = model.image_tokens + self.geometry.prompt_tokens, self.geometry.answer_tokens
        views = losses.build(recipe.stages[0].loss).views
        return model, costs.Setting.of(recipe, torch.cuda.is_available()), views, lengths

    def waits(self) -> list[float]:
        """Per logged line (after the header), the share of its time that the loop waited for data."""
        lines = (self.trainer.folder / "log.jsonl").read_text().splitlines()
        return [line["data_wait"] for line in map(json.loads, lines) if "data_wait" in line]

    def close(self) -> None:
        self.steps.close()


class Trl:
    """TRL's DPOTrainer at its defaults (batch size and learning rate apart), in a thread that works only when told."""

    def __init__(self, setting: Setting, name: str, *, checkpointing: bool) -> None:
        from transformers import TrainerCallback

        self._go, self._done, self._stopping = threading.Semaphore(0), threading.Semaphore(0), False
        self._resumed = self._fetched = 0.0
        self._shares: list[tuple[float, float]] = []  # of each step: seconds for its data, seconds in all
        self._error: BaseException | None = None
        side = self

        class Baton(TrainerCallback):
            """Waits for the next step's turn before its data are fetched, and notes when they have come."""

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                side._wait()

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                side._fetched = time.perf_counter() - side._resumed

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                side._shares.append((side._fetched, time.perf_counter() - side._resumed))
                side._done.release()
                side._wait()
                control.should_training_stop = side._stopping

        self.trainer = self._trainer(setting, name, checkpointing)
        self.trainer.add_callback(Baton())
        self.model = self.trainer.model
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    @staticmethod
    def _trainer(setting: Setting, name: str, checkpointing: bool) -> Any:
        import datasets
        from transformers import AutoProcessor, PrinterCallback
        from trl import DPOConfig, DPOTrainer

        folder, rows = setting.pairs(name)
        processor = AutoProcessor.from_pretrained(setting.checkpoint)
        processor.chat_template = CHAT_TEMPLATE
        columns: dict[str, Any] = {"image": [str(folder / row["image"]) for row in rows]}
        for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant")):
            columns[key] = [[{"role": role, "content": row[key]}] for row in rows]
        data = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        settings = DPOConfig(
            output_dir=str(folder / "trl"),
            beta=BETA,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            per_device_train_batch_size=1,
            max_steps=1_000_000,
            max_length=2048,
            logging_steps=setting.logging_steps,
            gradient_checkpointing=checkpointing,
            bf16=setting.dtype == torch.bfloat16,
            use_cpu=setting.device == "cpu",
            save_strategy="no",
            disable_tqdm=True,
            report_to=[],
        )
        trainer = DPOTrainer(
            plain_model(setting),
            args=settings,
            train_dataset=data,
            processing_class=processor,
            peft_config=lora(setting),
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _train(self) -> None:
        try:
            self.trainer.train()
        except BaseException as error:  # handed to the thread that waits for the step
            self._error = error
            raise
        finally:
            self._done.release()

    def _wait(self) -> None:
        self._go.acquire()
        self._resumed = time.perf_counter()

    def step(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise RuntimeError("TRL's side failed") from self._error

    def waits(self) -> list[float]:
        """Per step, the share of its time that the loop waited for data."""
        return [fetched / whole for fetched, whole in self._shares]

    def close(self) -> None:
        self._stopping = True
        self._go.release()
        self._thread.join()


@contextmanager
def compact_scoring() -> Iterator[None]:
    """Within: TRL scores answer rows only, as it does where there is Triton. Its step is otherwise untouched.

    Elsewhere `add_fused_lm_head` projects every row onto the vocabulary, a cost of CPU runs alone.
    """
    from trl.trainer import utils

    real = utils._use_triton
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = real


class CompactTrl(Trl):
    """TRL as it would be with its own compaction on this device: for that one measurement."""

    def step(self) -> None:
        with compact_scoring():
            super().step()


def plain_model(setting: Setting) -> Any:
    """transformers' own model, dropout-free; in 4 bits are the same layers as in ours, fewer than by TRL's default."""
    from transformers import AutoConfig, BitsAndBytesConfig, LlavaForConditionalGeneration

    quantization = None
    if setting.in_4bit:
        with torch.device("meta"):
            skeleton = LlavaForConditionalGeneration(AutoConfig.from_pretrained(setting.checkpoint))
        linear = [name for name, module in skeleton.named_modules() if isinstance(module, nn.Linear)]
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=setting.dtype,
            llm_int8_skip_modules=[name for name in linear if ".language_model." not in name],
        )
    return LlavaForConditionalGeneration.from_pretrained(
        setting.checkpoint,
        dtype=setting.dtype,
        quantization_config=quantization,
        attn_implementation="sdpa",
        device_map={"": setting.device},
    )


def lora(setting: Setting) -> LoraConfig:
    return LoraConfig(
        r=setting.rank,
        lora_alpha=2 * setting.rank,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        task_type="CAUSAL_LM",
    )
