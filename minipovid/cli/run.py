"""`minipovid ask`, `chat` and `serve`: the exported model at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from minipovid.cli.options import COUNT, PATH, RUN, runtime_options


@click.command()
@RUN
@click.argument("image", type=PATH)
@click.argument("prompt")
@runtime_options
@click.option("--max-tokens", type=COUNT, default=256)
def ask(run: Path, image: Path, prompt: str, max_tokens: int, **runtime: Any) -> None:
    """Ask RUN about one picture, offline.

    The exported GGUF pair answers in llama.cpp, greedily.

    \b
      minipovid ask runs/tinyworld photo.png "Describe this image."
    """
    from minipovid.inference.llama_cpp import Runtime

    with Runtime.open(run, **runtime) as model:
        click.echo(model.answer(image, prompt, max_tokens=max_tokens))


@click.command()
@RUN
@runtime_options
@click.option("--max-tokens", type=COUNT, default=256, help="Of one answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0: greedy.")
@click.option("--seed", type=click.IntRange(min=0), default=0)
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


@click.command()
@RUN
@runtime_options
@click.option("--host", default="127.0.0.1", help="An address; beyond this machine a key is asked.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help="0 takes any free one.")
@click.option(
    "--api-key-env",
    metavar="NAME",
    help="The environment variable that holds the API key.  [default: MINIPOVID_API_KEY, where it is set]",
)
@click.option("--no-key", is_flag=True, help="Listen beyond this machine without a key.")
@click.option("--name", metavar="NAME", help="What clients call the model.  [default: the run's name]")
@click.option(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="A web page that may ask, by its origin: https://example.org. May be given more than once.  [default: none]",
)
def serve(
    run: Path,
    host: str,
    port: int,
    api_key_env: str | None,
    no_key: bool,
    name: str | None,
    allow_origins: tuple[str, ...],
    **runtime: Any,
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
    runtime |= {"allow_origins": allow_origins, "announce": click.echo}
    run_server(run, host=host, port=port, api_key=key, no_key=no_key, model_name=name, **runtime)
