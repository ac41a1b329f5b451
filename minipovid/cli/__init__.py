"""The command line: parse, call one function, print. Results go to stdout, everything else to stderr.

Nothing heavy is imported before a command runs, so that `--help` is instant. Exit codes: 0 done, 1 a check failed,
2 the input was wrong (one sentence, no traceback), 130 interrupted with everything so far kept.
"""

from __future__ import annotations

import errno
import logging
import sys
import warnings
from typing import Any

import click

from minipovid import __version__
from minipovid.cli import bench, demo, doctor, evaluate, export, pairs, report, run, train
from minipovid.common.errors import MinipovidError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a full disk, a quota, a limit on a file's size


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
            sentence = error.format_message()
            stop = "" if sentence[-1] in ".?" else "."
            click.echo(f"{sentence}{stop} `{command} --help` shows how it is used.", err=True)
            ctx.exit(2)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            remedy = " Make room there; the same command then goes on from there." if error.errno in _FULL else ""
            click.echo(f"{place}{error.strerror or error}. What was finished is kept.{remedy}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted. What was finished is kept; the same command goes on from there.", err=True)
            ctx.exit(130)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


@click.group(
    "minipovid",
    cls=_Manual,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
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


for _command in (
    *(demo.demo, pairs.pairs, train.train, export.export, export.verify, run.ask, run.chat, run.serve),
    *(evaluate.evaluate, report.report, train.plan, bench.bench, doctor.doctor, train.recipes),
):
    main.add_command(_command)
