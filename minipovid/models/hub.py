"""A model's folder in Hub layout: where it is, which of its files are needed, and its small files read with care.

folder = resolve_model("llava-hf/llava-1.5-7b-hf")
config = configuration(folder)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minipovid.common.errors import MinipovidError
from minipovid.common.files import read_json
from minipovid.models.stored_tensors import shards
from minipovid.recipe.run_folder import ADAPTER_SETTINGS
from minipovid.recipe.schema import BUILTIN

WEIGHTS = "*.safetensors"  # never pickled ones
SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt")  # what stands beside the weights
# Those that are read before training and export, whoever reads them: one that is damaged is named.
_READ = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
         "tokenizer_config.json", "special_tokens_map.json", "chat_template.json")  # fmt: skip
# The LLaVA authors' own layout, which transformers does not read, and what was converted from it.
CONVERTED = {
    "llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
}


def resolve_model(path: str, revision: str | None = None, weights: bool = True, *, download: bool = True) -> Path:
    """The folder of a model: `tinyworld`, a folder in Hub layout, or a Hub id, downloaded if it is not cached.

    Without `download` it must be on this machine: nobody asks whether a branch has moved since it was fetched.
    Without `weights` the configuration and the tokenizer are enough. Raises MinipovidError where it cannot be had, with
    the command that fetches it, and where its small files are damaged or of another layout.
    """
    if path == BUILTIN:
        from minipovid.tinyworld import CHECKPOINT

        return _complete(Path(CHECKPOINT), weights, "minipovid is installed incompletely; install it again")
    folder = Path(path).expanduser()
    command = f"hf download {path}" + (f" --revision {revision}" if revision else "")
    if folder.is_dir():
        return _complete(folder, weights, "copy the missing files there, or name the model by its Hub id")
    if folder.is_file():
        raise MinipovidError(_a_file(folder))
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
    for name in _READ:
        if (folder / name).is_file():
            content = settings(folder / name)
            if name == "config.json":
                check_layout(content, str(folder))
    names = ["config.json", *(shards(folder) if weights else ())]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        lacks = f"The model folder {folder} lacks {', '.join(missing)}"
        raise MinipovidError(_other_weights(folder, missing) or f"{lacks}; {remedy}.")
    return folder


def _other_weights(folder: Path, missing: list[str]) -> str:
    """The sentence for a folder that has something else instead of what is missing; "" where it has not."""
    if "config.json" in missing and (folder / ADAPTER_SETTINGS).is_file():
        base = settings(folder / ADAPTER_SETTINGS).get("base_model_name_or_path") or "it does not say which"
        return f"{folder} holds an adapter and no model; name the model that it was trained on ({base})."
    if any(folder.glob("*.gguf")) and not any(folder.glob(WEIGHTS)):
        return _a_file(next(folder.glob("*.gguf")))
    pickled = next((path for pattern in ("*.bin", "*.pth", "*.pt") for path in sorted(folder.glob(pattern))), None)
    if pickled is not None and not any(folder.glob(WEIGHTS)):
        return (
            f"{folder} holds its weights as {pickled.name}; such files can run any program when they are opened and "
            "never are here. Take the same model in safetensors, or convert it "
            "(https://huggingface.co/spaces/safetensors/convert)."
        )
    return ""


def _a_file(path: Path) -> str:
    if path.suffix.lower() == ".gguf":
        return (
            f"{path} is a GGUF file, which is what an export writes and nothing that can be trained or merged; name "
            "the 16-bit model that it was made from, as a Hub id or a folder with safetensors."
        )
    return f"{path} is a file; name the model's folder, or a Hub id such as llava-hf/llava-1.5-7b-hf."


def settings(path: Path) -> dict[str, Any]:
    """One of a model's small files, a JSON object. Raises MinipovidError for one that is missing or damaged."""
    return read_json(path, "download this file of the model again")


def check_layout(config: Mapping[str, Any], name: str) -> None:
    """Raises MinipovidError for a config.json of the LLaVA authors' own layout, naming the converted model."""
    architectures = config.get("architectures") or [""]
    is_foreign = isinstance(architectures, list) and str(architectures[0]).startswith(("LlavaLlama", "LlavaMistral"))
    if not (is_foreign or "mm_vision_tower" in config):
        return
    known = CONVERTED.get(Path(name).name.lower())
    way = f"take {known}" if known else f"take the converted model, for example {CONVERTED['llava-v1.5-7b']}"
    raise MinipovidError(
        f"{name} is in the layout of the LLaVA repository (mm_vision_tower, mm_projector), which transformers does not "
        f"read; {way}."
    )


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Within: whatever transformers raises over the settings of `what` becomes a MinipovidError."""
    try:
        yield
    except MinipovidError:
        raise
    except Exception as error:  # a damaged file may raise anything
        why = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise MinipovidError(
            f"{what} describes no model that transformers knows ({why.strip()}); download it again, or update "
            "transformers."
        ) from None


def configuration(model: Path | str, revision: str | None = None) -> Any:
    """transformers' configuration of a folder, or of a Hub id, of which only config.json is fetched: with the defaults
    that Hub files leave out. Raises MinipovidError where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig

    folder = model
    if isinstance(model, str):
        try:
            folder = Path(hf_hub_download(model, "config.json", revision=revision)).parent
        except (OSError, ValueError):
            folder = resolve_model(model, revision)  # says why it cannot be had
    check_layout(settings(Path(folder) / "config.json"), str(model))
    with understood(f"The config.json of {model}"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
