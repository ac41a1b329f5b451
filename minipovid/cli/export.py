"""`minipovid export` and `verify`: a run's files written, and proved."""

from __future__ import annotations

from pathlib import Path

import click

from minipovid.cli.options import COUNT, PATH, RUN, gpu_layers
from minipovid.cli.output import JSON, bars, print_json, print_table
from minipovid.common.errors import MinipovidError
from minipovid.recipe import run_folder


@click.command()
@RUN
@click.option(
    "--quant",
    "quants",
    multiple=True,
    metavar="NAME",
    help="f16, q8_0, q4_k_m, ... or any other that llama.cpp offers; may be given more than once.  [default: "
    "export.quants of the recipe]",
)
@click.option(
    "--merge-base",
    metavar="NAME",
    help="The weights that the adapter is added to: nf4 (those it was trained on) or original (16-bit).  [default: as "
    "the recipe says]",
)
@click.option("--mmproj", metavar="NAME", help="How the vision side is stored: f16 or q8_0.  [default: as above]")
@click.option(
    "--imatrix",
    type=click.IntRange(min=0),
    metavar="PAIRS",
    help="Weigh the columns when llama.cpp quantises, by reading so many of the run's pictures and answers; 0: no.  "
    "[default: as above]",
)
@click.option(
    "--lora-only",
    is_flag=True,
    help="Write the adapter alone (--quant f16 or f32), for anybody's GGUF of the same base.",
)
@click.option("--merged", is_flag=True, help="Write the merged model as safetensors (RUN/merged) instead.")
@click.option(
    "--name",
    metavar="NAME",
    help="What the run is called in the names of the GGUF files, and so in LM Studio and Ollama.  [default: as they "
    "are called already, or as RUN's folder]",
)
@click.option(
    "--lm-studio",
    type=PATH,
    metavar="FOLDER",
    help="Put the GGUF pair where LM Studio looks for it as well, usually ~/.lmstudio/models.",
)
def export(
    run: Path,
    quants: tuple[str, ...],
    merge_base: str | None,
    mmproj: str | None,
    imatrix: int | None,
    lora_only: bool,
    merged: bool,
    name: str | None,
    lm_studio: Path | None,
) -> None:
    """Write RUN's GGUF pair for llama.cpp.

    The adapter is merged into its base model; language model and vision side become a file each, with a model card and
    an Ollama Modelfile, in about 1 GiB of memory whatever the model's size. Prints the files.

    \b
      minipovid export runs/tinyworld
      minipovid export runs/llava7b_qlora --quant q4_k_m --quant q8_0
      minipovid export runs/llava7b_qlora --lora-only
    """
    from minipovid.export import export as write_pair
    from minipovid.export import export_lora, export_merged
    from minipovid.export import lm_studio as put_into

    if lora_only and merged:
        raise MinipovidError("--lora-only and --merged name two outputs; give one of them.")
    if merged and name is not None:
        raise MinipovidError("--name is of GGUF files, and --merged writes none; leave it out.")
    named = {} if name is None else {"name": name}
    if lora_only:
        files = [export_lora(run, quants[-1] if quants else "f16", progress=bars(), **named)]
    elif merged:
        files = [export_merged(run, merge_base, progress=bars())]
    else:
        files = write_pair(run, quants or None, merge_base, mmproj, imatrix, progress=bars(), **named)
    if lm_studio is not None:
        files.append(put_into(run / run_folder.GGUF, lm_studio.expanduser()))
    for path in files:
        click.echo(path)


@click.command()
@RUN
@click.option("--quant", "quants", multiple=True, metavar="NAME", help="Only this file.  [default: all in RUN/gguf]")
@click.option("--pairs", type=COUNT, default=32, help="Held-out pairs to ask about.")
@gpu_layers
@JSON
@click.pass_context
def verify(
    ctx: click.Context, run: Path, quants: tuple[str, ...], pairs: int, n_gpu_layers: int | None, as_json: bool
) -> None:
    """Prove that RUN's files answer as the trained model does.

    Held-out pairs go through the trained model in transformers, the merged weights and every GGUF file: how far the
    next-token distributions are apart (KL), how often they choose the same token, how much of the trained preference
    is left. Exits 1 beyond tolerance, with the likely cause, and 3 where there are fewer than 10 pairs: too few to
    judge. What the trained model said is kept in RUN/verify, so that
    files can be verified on a machine where it does not run.

    \b
      minipovid verify runs/tinyworld
    """
    from minipovid.export import refresh_card
    from minipovid.verify import verify as run_verification

    verdict = run_verification(run, quants or None, pairs, bars("pair", scaled=False), n_gpu_layers)
    refresh_card(run)
    if as_json:
        print_json(verdict.as_dict())
    else:
        print_table(verdict.table())
        for line in (*verdict.notes, *verdict.causes):
            click.echo(line)
    if verdict.ok is not True:
        ctx.exit(3 if verdict.ok is None else 1)
