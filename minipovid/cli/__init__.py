"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr.

Nothing heavy is imported before a command runs, so that `--help` is instant. Exit codes: 0 done, 1 a check failed,
2 the input was wrong (one sentence, no traceback), 130 interrupted with everything so far kept.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from minipovid import __version__
from minipovid.cli.evaluate import evaluate
from minipovid.cli.options import RUN, runtime_options
from minipovid.cli.output import JSON, bars, print_json, print_result, print_table
from minipovid.cli.pairs import pairs
from minipovid.cli.report import report
from minipovid.common.errors import MinipovidError
from minipovid.recipe import run_folder


class _Manual(click.Group):
    """A group whose errors are one sentence on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MinipovidError as error:
            click.echo(str(error), err=True)
            ctx.exit(2)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else ctx.command_path
            said = error.format_message()
            click.echo(f"{said}{'' if said[-1] in '.?' else '.'} `{command} --help` shows how it is used.", err=True)
            ctx.exit(2)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            click.echo(f"{place}{error.strerror or error}. What was finished is kept.", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted. What was finished is kept; the same command goes on from there.", err=True)
            ctx.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


@click.group(
    "minipovid", cls=_Manual, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="minipovid", message="%(prog)s %(version)s")
def main() -> None:
    """Teach a vision-language model to stop describing what is not in the picture, on one consumer GPU.

    \b
      minipovid demo                                the whole road on a built-in tiny world, CPU, minutes
      minipovid plan llava7b_qlora --vram 24        will it fit? before anything is downloaded
      minipovid train llava7b_qlora                 resumes by itself
      minipovid export runs/llava7b_qlora           and minipovid verify runs/llava7b_qlora
      minipovid ask runs/llava7b_qlora photo.jpg "What is on the table?"

    A RECIPE is a YAML file, or the name of one that ships with minipovid (see `minipovid recipes`). A RUN is the
    folder that a recipe's training writes, runs/<name>.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "httpx2", "huggingface_hub", "PIL", "accelerate", "gguf"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it advises a kernel package that we do not want
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")  # between the two of them


def _recipe_argument(command: Callable[..., None]) -> Callable[..., None]:
    """RECIPE and --set, alike in every command that reads a recipe."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the recipe, for example train.learning_rate=1e-6; `loss.beta=0.2` sets it in every "
        "stage. May be given more than once.",
    )(command)
    return click.argument("recipe")(command)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="The run.")
@JSON
@click.pass_context
def demo(ctx: click.Context, out: Path, as_json: bool) -> None:
    """Walk the whole road on the built-in tiny world.

    Train, export, ask, and a table of before and after; a few minutes on a CPU. Exits 1 where the result is no
    better than the model it began with.
    """
    from minipovid.cli.demo import demo as run_demo

    result = run_demo(out)
    print_result(result, as_json)
    if result.get("ok") is False:
        ctx.exit(1)


main.add_command(pairs)


@main.command()
@_recipe_argument
@click.option("--out", type=click.Path(path_type=Path), help="The run folder.  [default: runs/<name of the recipe>]")
def train(recipe: str, overrides: tuple[str, ...], out: Path | None) -> None:
    """Train RECIPE, or go on where it stopped.

    Prints the run folder. Where that holds a checkpoint of the same recipe, training resumes from it.

    \b
      minipovid train tinyworld
      minipovid train my.yaml --set train.learning_rate=1e-6 --set loss.beta=0.2 --out runs/beta02
    """
    from minipovid.recipe import read as recipes

    resolved = recipes.read(recipes.find(recipe), overrides)
    from minipovid.train.loop import train as run_training

    click.echo(run_training(resolved, out or Path("runs") / resolved.name, progress=True))


@main.command()
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
    "--lm-studio",
    type=click.Path(path_type=Path),
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
    if lora_only:
        files = [export_lora(run, quants[-1] if quants else "f16", progress=bars())]
    elif merged:
        files = [export_merged(run, merge_base, progress=bars())]
    else:
        files = write_pair(run, quants or None, merge_base, mmproj, imatrix, progress=bars())
    if lm_studio is not None:
        files.append(put_into(run / run_folder.GGUF, lm_studio.expanduser()))
    for path in files:
        click.echo(path)


@main.command()
@RUN
@click.option("--quant", "quants", multiple=True, metavar="NAME", help="Only this file.  [default: all in RUN/gguf]")
@click.option("--pairs", type=click.IntRange(min=1), default=32, show_default=True, help="Held-out pairs to ask about.")
@click.option("--n-gpu-layers", type=int, default=0, show_default=True, help="Layers on a GPU; -1: all.")
@JSON
@click.pass_context
def verify(
    ctx: click.Context, run: Path, quants: tuple[str, ...], pairs: int, n_gpu_layers: int, as_json: bool
) -> None:
    """Prove that RUN's files answer as the trained model does.

    Held-out pairs go through the trained model in transformers, the merged weights and every GGUF file: how far the
    next-token distributions are apart (KL), how often they choose the same token, how much of the trained preference
    is left. Exits 1 beyond tolerance, with the likely cause. What the trained model said is kept in RUN/verify, so that
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
    if not verdict.ok:
        ctx.exit(1)


@main.command()
@RUN
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("prompt")
@runtime_options
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True)
def ask(run: Path, image: Path, prompt: str, max_tokens: int, **runtime: Any) -> None:
    """Ask RUN about one picture, offline.

    The exported GGUF pair answers in llama.cpp, greedily.

    \b
      minipovid ask runs/tinyworld photo.png "Describe this image."
    """
    from minipovid.inference.llama_cpp import Runtime

    with Runtime.open(run, **runtime) as model:
        click.echo(model.answer(image, prompt, max_tokens=max_tokens))


@main.command()
@RUN
@runtime_options
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Of one answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: greedy.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def chat(run: Path, max_tokens: int, temperature: float, seed: int, **runtime: Any) -> None:
    """Talk with RUN in the terminal.

    Several turns, and a picture named in any of them; /help there lists more. Without a terminal it reads one message
    per line.

    \b
      minipovid chat runs/tinyworld
    """
    from minipovid.inference.chat import converse
    from minipovid.inference.llama_cpp import Sampling

    converse(run, sampling=Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed), **runtime)


@main.command()
@RUN
@runtime_options
@click.option("--host", default="127.0.0.1", show_default=True, help="An address; beyond this machine a key is asked.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes any free one.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable that holds the API key.  [default: MINIPOVID_API_KEY, where it is set]",
)
@click.option("--no-key", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the run's name]")
def serve(
    run: Path, host: str, port: int, api_key_env: str | None, no_key: bool, name: str | None, **runtime: Any
) -> None:
    """Answer like OpenAI's API, on this machine.

    Chat completions with pictures (data URLs), streaming and JSON schemas. Prints the URL once it listens; Ctrl-C ends
    it.

    \b
      minipovid serve runs/tinyworld
    """
    from minipovid.inference.serve import key_from
    from minipovid.inference.serve import serve as run_server

    key = key_from(api_key_env)
    run_server(run, host=host, port=port, api_key=key, no_key=no_key, model_name=name, announce=click.echo, **runtime)


main.add_command(evaluate)
main.add_command(report)


@main.command()
@_recipe_argument
@click.option(
    "--vram",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GIB",
    help="The card's memory: say whether it fits, and what to change where it does not (then exit 1).",
)
@JSON
@click.pass_context
def plan(ctx: click.Context, recipe: str, overrides: tuple[str, ...], vram: float | None, as_json: bool) -> None:
    """Predict what RECIPE will need.

    Memory, disk and time, before anything is downloaded.

    \b
      minipovid plan llava7b_qlora --vram 24
      minipovid plan my.yaml --set lora.r=16 --vram 8
    """
    from minipovid.recipe import read as recipes

    resolved = recipes.read(recipes.find(recipe), overrides)
    from minipovid.train import plan as planning

    predicted = planning.predict(resolved, vram)
    verdict = planning.verdict(predicted, resolved, vram) if vram is not None else None
    if as_json:
        print_json(predicted.as_dict() | ({} if verdict is None else verdict._asdict()))
    else:
        click.echo(predicted.table())
        if verdict is not None:
            click.echo(verdict.sentence)
    if verdict is not None and not verdict.fits:
        ctx.exit(1)


@main.command()
@JSON
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine has and lacks.

    What is missing comes with the exact command that mends it, and exit code 1.
    """
    from minipovid.cli.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            click.echo(f"{finding.state:8}{finding.name:14}{finding.found}")
            if finding.remedy:
                click.echo(f"{'':8}{'':14}-> {finding.remedy}")
    if any(finding.state == "missing" for finding in findings):
        ctx.exit(1)


@main.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """List, show or copy the shipped recipes."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_recipes)


@recipes.command("list")
@JSON
def list_recipes(as_json: bool = False) -> None:
    """Every shipped recipe and what it is."""
    from minipovid.recipe.read import shipped

    titles = {name: path.read_text(encoding="utf-8").split("\n")[0].lstrip("# ") for name, path in shipped().items()}
    if as_json:
        print_json(titles)
    else:
        print_table([{"recipe": name, "what it is": title} for name, title in titles.items()])


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe with its comments.

    \b
      minipovid recipes show llava7b_qlora
    """
    click.echo(_shipped(name).read_text(encoding="utf-8"), nl=False)


@recipes.command()
@click.argument("name")
@click.argument("to", type=click.Path(path_type=Path), required=False)
def copy(name: str, to: Path | None) -> None:
    """Copy a recipe here (or to the path TO), to edit it.

    \b
      minipovid recipes copy llava7b_qlora my.yaml
    """
    source = _shipped(name)
    target = to / source.name if to is not None and to.is_dir() else to or Path(source.name)
    if target.exists():
        raise MinipovidError(f"{target} already exists; name another file: `minipovid recipes copy {name} other.yaml`.")
    if not target.parent.is_dir():
        raise MinipovidError(f"There is no folder {target.parent} to copy the recipe to.")
    target.write_bytes(source.read_bytes())
    click.echo(target)


def _shipped(name: str) -> Path:
    from minipovid.recipe.read import find

    return find(name)
