"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
RUN = click.argument("run", type=PATH)


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
        click.option("--n-gpu-layers", type=int, default=0, help="Layers on a GPU; -1: all."),
        click.option("--n-threads", type=COUNT, help="Of the CPU.  [default: one per core; one for tiny models]"),
        click.option("--lora", type=PATH, metavar="FILE", help="A LoRA GGUF to add to it."),
    )
    for option in reversed(options):
        command = option(command)
    return command
