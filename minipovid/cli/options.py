"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
RUN = click.argument("run", type=PATH)


class _Layers(click.ParamType):  # type: ignore[type-arg]  # older clicks know none
    """A number of layers, or `auto`, which becomes None."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        return None if value == "auto" else int(click.INT.convert(value, param, ctx))


gpu_layers = click.option(
    "--n-gpu-layers",
    type=_Layers(),
    default="auto",
    show_default=True,
    help="Layers on a GPU; auto: all that fit, -1: all.",
)


def runtime_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which file answers and how llama.cpp runs it, alike in every command that talks with a model: quant, and the
    keywords of Runtime."""
    context = click.IntRange(min=64)
    options = (
        click.option(
            "--quant", metavar="NAME", help="Which of the exported models answers.  [default: the most exact]"
        ),
        click.option(
            "--n-ctx", type=context, help="Tokens that it can remember.  [default: 2048, if it was trained on so many]"
        ),
        gpu_layers,
        click.option("--n-threads", type=COUNT, help="Of the CPU.  [default: one per core; one for tiny models]"),
        click.option("--lora", type=PATH, metavar="FILE", help="A LoRA GGUF to add to it."),
    )
    for option in reversed(options):
        command = option(command)
    return command
