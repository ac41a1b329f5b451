"""A model's folder in Hub layout: where it is, and which of its files are needed.

folder = resolve_model("llava-hf/llava-1.5-7b-hf")
"""

from __future__ import annotations

from pathlib import Path

from minipovid.common.errors import MinipovidError
from minipovid.models.stored_tensors import shards
from minipovid.recipe.schema import BUILTIN

WEIGHTS = "*.safetensors"  # never pickled ones
SETTINGS = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")  # what stands beside the weights


def resolve_model(path: str, revision: str | None = None, weights: bool = True, *, download: bool = True) -> Path:
    """The folder of a model: `tinyworld`, a folder in Hub layout, or a Hub id, downloaded if it is not cached.

    Without `download` it must be on this machine: nobody asks whether a branch has moved since it was fetched.
    Without `weights` the configuration and the tokenizer are enough. Raises MinipovidError where it cannot be had, with
    the command that fetches it.
    """
    if path == BUILTIN:
        from minipovid.tinyworld import CHECKPOINT

        return _complete(Path(CHECKPOINT), weights, "minipovid is installed incompletely; install it again")
    folder = Path(path).expanduser()
    command = f"hf download {path}" + (f" --revision {revision}" if revision else "")
    if folder.is_dir():
        return _complete(folder, weights, "copy the missing files there, or name the model by its Hub id")
    if folder.is_absolute() or path.count("/") != 1:
        raise MinipovidError(
            f"There is no model {path}: neither a folder nor a Hub id such as llava-hf/llava-1.5-7b-hf."
        )
    return _complete(_snapshot(path, revision, weights, command, download), weights, f"fetch them with `{command}`")


def _snapshot(repo: str, revision: str | None, weights: bool, command: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        patterns = [*SETTINGS, "README.md", *([WEIGHTS] if weights else [])]
        local = not download
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=local))
    except HFValidationError:
        raise MinipovidError(f"{repo!r} is neither a folder nor a valid Hub id.") from None
    except OSError as error:
        if not download:
            raise MinipovidError(f"The model {repo} is not on this machine; fetch it with `{command}`.") from None
        # There is no network, no such repository, no access or no disk space.
        first = str(error).strip().split("\n")[0]
        raise MinipovidError(
            f"The weights of {repo} are not on this machine and cannot be downloaded now ({first}); "
            f"fetch them with `{command}`."
        ) from None


def _complete(folder: Path, weights: bool, remedy: str) -> Path:
    names = ["config.json", *(shards(folder) if weights else ())]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise MinipovidError(f"The model folder {folder} lacks {', '.join(missing)}; {remedy}.")
    return folder
