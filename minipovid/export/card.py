"""README.md beside the GGUF files: a model card that the Hub accepts, made of what is known and of nothing else.

Scores come from RUN/scores.json and RUN/verify.json where they are; the commands name the very files of the folder.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import yaml

from minipovid.common.files import finished, read_json
from minipovid.export import writer
from minipovid.export.naming import FILE_NAME, UNKNOWN, Origin, Title
from minipovid.export.quants import HELP
from minipovid.models.chat_template import IMAGE, Chat
from minipovid.models.parts import mmproj
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe, StageSection

STAMP = "minipovid.inputs"  # what a file was made of
QUESTION = "What is on the table?"


@dataclass(frozen=True)
class Facts:
    """What the card tells beside the files themselves."""

    title: Title
    chat: Chat
    origin: Origin = UNKNOWN
    recipe: Recipe | None = None  # of the training; None: a base model as it is
    run: Path | None = None  # where scores.json and verify.json may be


@dataclass(frozen=True)
class Files:
    """The model's GGUF files in a folder."""

    texts: Sequence[Path]  # largest first
    mmproj: Path | None
    lora: Path | None

    @property
    def usual(self) -> Path | None:
        """The text file of the examples: Q8_0 where it is there."""
        return next((path for path in self.texts if path.stem.endswith("-Q8_0")), next(iter(self.texts), None))

    @property
    def all(self) -> list[Path]:
        return [*self.texts, *(path for path in (self.mmproj, self.lora) if path is not None)]


def write_card(folder: Path, facts: Facts) -> Path:
    """Write FOLDER/README.md about the model's files in that folder."""
    files = _files(folder, facts.title)
    sections = [
        _front_matter(facts),
        f"# {' '.join((facts.title.base, facts.title.size, facts.title.finetune))}",
        _opening(facts),
        _table_of_files(files),
        _how_to_run(folder, files, facts),
        _limits(files, facts),
        _scores(facts.run),
        _verified(facts.run, {writer.stamp(path, STAMP) for path in files.texts}),
        _training(facts),
        _license(facts),
    ]
    with finished(folder / "README.md") as draft:
        draft.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")
    return folder / "README.md"


def facts_of(text: Path, recipe: Recipe | None, run: Path | None) -> Facts:
    """What a text GGUF of ours tells of itself: the base need not be on this machine."""
    keys = {name: entry.contents() for name, entry in gguf.GGUFReader(text).fields.items() if "tokens" not in name}
    base = [keys.get(f"general.base_model.0.{key}", "") for key in ("organization", "name")]
    names = [keys[f"general.{key}"] for key in ("basename", "size_label", "finetune")]
    origin = Origin(
        license=keys.get("general.license"),
        license_name=keys.get("general.license.name"),
        license_link=keys.get("general.license.link"),
        languages=tuple(keys.get("general.languages", ())),
        dataset=keys.get("general.dataset.0.name"),
        tags=tuple(tag for tag in keys.get("general.tags", ()) if tag != "image-text-to-text"),
    )
    title = Title(names[0], names[1], names[2], "/".join(filter(None, base)))
    return Facts(title, Chat.loads(keys["minipovid.chat"]), origin, recipe, run)


def _files(folder: Path, title: Title) -> Files:
    there = [path for path in folder.glob("*.gguf") if path.name.removeprefix("mmproj-").startswith(f"{title.stem}-")]
    parts = {path: FILE_NAME.fullmatch(path.name) for path in sorted(there, key=lambda path: -path.stat().st_size)}
    texts = [path for path, part in parts.items() if part and not part["sidecar"] and not part["type"]]
    mmproj = [path for path, part in parts.items() if part and part["sidecar"]]
    lora = [path for path, part in parts.items() if part and part["type"]]
    return Files(texts, next(iter(mmproj), None), next(iter(lora), None))


# --- what the Hub reads ---


def _front_matter(facts: Facts) -> str:
    tags = ["gguf", "llama.cpp", "minipovid", *facts.origin.tags]
    keys: dict[str, Any] = {
        "license": facts.origin.license,
        "license_name": facts.origin.license_name,
        "license_link": facts.origin.license_link,
        "base_model": facts.title.source,
        "pipeline_tag": "image-text-to-text",
        "library_name": "gguf",
        "language": list(facts.origin.languages),
        "tags": tags,
    }
    content = {key: value for key, value in keys.items() if value}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


# --- sections; an empty one is left out ---


def _opening(facts: Facts) -> str:
    source = facts.title.source
    base = f"[{source}](https://huggingface.co/{source})" if source else f"{facts.title.base} {facts.title.size}"
    if facts.recipe is None:
        return f"{base}, as it is, in GGUF files for llama.cpp."
    return (
        f"{base}, taught by preference pairs to stop describing what is not in the picture, in GGUF files for "
        "llama.cpp. Trained and exported with minipovid."
    )


def _table_of_files(files: Files) -> str:
    rows = [{"file": f"`{path.name}`", "size": _size(path), "what it is": _what(path)} for path in files.all]
    needs = "A text file and the mmproj belong together." if files.texts and files.mmproj else ""
    return "\n\n".join(["## Files", _table(rows), needs]).strip()


def _what(path: Path) -> str:
    parts = FILE_NAME.fullmatch(path.name)
    assert parts is not None  # `_files` has seen to that
    encoding = str(parts["encoding"])
    if parts["sidecar"]:
        return f"vision tower and projector, {encoding}"
    if parts["type"]:
        return f"the adapter alone, {encoding}, for a GGUF of the base model"
    return f"language model; {HELP[encoding.lower()]}" if encoding.lower() in HELP else f"language model, {encoding}"


def _how_to_run(folder: Path, files: Files, facts: Facts) -> str:
    text, mmproj = files.usual, files.mmproj
    parts = ["## How to run it"]
    if text and mmproj:
        commands = [f'minipovid ask . photo.jpg "{QUESTION}"', "minipovid chat .", "minipovid serve ."]
        what = "**minipovid**, in this folder, which asks as the model was trained (`serve` speaks OpenAI's API):"
        parts.append(f"{what}\n\n{_shell(*commands)}")
        parts.append(_with_llama_cpp(text, mmproj, facts.chat))
        if (folder / "Modelfile").is_file():
            name = facts.title.stem.lower()
            question = f"[img]{_around_picture(facts.chat)}{QUESTION}".encode("unicode_escape").decode()
            create, ask = f"ollama create {name} -f Modelfile", f"ollama run {name} $'{question} ./photo.jpg'"
            parts.append("**Ollama**:\n\n" + _shell(create, ask))
        place = f"~/.lmstudio/models/minipovid/{facts.title.stem}/"
        both = f"`{text.name}` and `{mmproj.name}`"
        parts.append(f"**LM Studio** lists the model when {both} lie together in `{place}`.")
    if files.lora:
        lora = shlex.quote(files.lora.name)
        command = f"llama-server -m BASE.gguf --mmproj BASE-mmproj.gguf --lora {lora} -c 4096 --jinja"
        parts.append("**The adapter on a GGUF of the base model**, whoever made that:\n\n" + _shell(command))
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _with_llama_cpp(text: Path, mmproj: Path, chat: Chat) -> str:
    pair = f"-m {shlex.quote(text.name)} --mmproj {shlex.quote(mmproj.name)}"
    around = _around_picture(chat)
    prompt = f"$'{around.encode('unicode_escape').decode()}{QUESTION}'" if around else f'"{QUESTION}"'
    commands = [
        f"llama-server {pair} -c 4096 --jinja",
        f"llama-mtmd-cli {pair} --jinja --temp 0 --image photo.jpg -p {prompt}",
    ]
    return "**llama.cpp**:\n\n" + _shell(*commands)


def _limits(files: Files, facts: Facts) -> str:
    """What other programs do to these files."""
    if not (files.texts and files.mmproj):
        return ""
    tensors = {tensor.name for tensor in gguf.GGUFReader(files.mmproj).tensors}
    limits = [mmproj.CLASS_TOKEN_MISPLACED] if mmproj.CLASS_TOKEN in tensors else []
    if around := _around_picture(facts.chat):
        around = around.encode("unicode_escape").decode()
        limits.append(
            f"**The text around a picture.** Training wrote `{around}` between picture and question. llama-server, "
            f"llama-mtmd-cli and Ollama put the picture before your text and nothing between, so begin the text "
            f"with it, as the commands above do (in Ollama `[img]` says where the picture goes)."
        )
    limits.append(
        "**Beginning of sequence.** The chat template in the files holds no token for it, because llama.cpp adds the "
        "one that the model wants; a program that writes its own prompt with one would double it."
    )
    limits.append("The commands for other programs than minipovid were not run when these files were made.")
    return "\n\n".join(["## Limits elsewhere", *limits])


def _around_picture(chat: Chat) -> str:
    """The text that other programs leave out."""
    return chat.picture.replace(IMAGE, "")


def _scores(run: Path | None) -> str:
    rows = [
        {"benchmark": name.rpartition(".")[0], "by": name.rpartition(".")[2], "figure": figure, **_figure(*interval)}
        for name, of in _read_json(run, run_folder.SCORES).items()
        for figure, interval in of.get("figures", {}).items()
        if figure in of["headline"]
    ]
    if not rows:
        return ""
    return f"## Scores\n\n{_table(rows)}\n\nBy `minipovid eval`, with 95 % intervals (bootstrap over pictures)."


def _figure(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {
        "value": "" if value is None else value,
        "95 %": "" if low is None or high is None else f"{low:.3g} to {high:.3g}",
    }


def _verified(run: Path | None, stamps: Set[str | None]) -> str:
    """The verdict on the files that stand here; rows of files that were since made of other inputs are left out."""
    verdict = _read_json(run, run_folder.VERDICT)
    rows = [dict(row) for row in verdict.get("table", ())]
    rows = [row for row in rows if (row.pop("stamp", "") or None) in {None, *stamps}]
    if not any(row.get("MiB") for row in rows):
        return ""
    legend = (
        f"How each file answers beside the trained model, on {verdict['pairs']} pairs that training never saw "
        "(`minipovid verify`). *KL*: mean divergence of the next token's distribution, nats. *agreement*: share of "
        "positions with the same greedy choice. *margin*: log-probability of chosen minus rejected answer, against the "
        "base. *kept*: share of the trained margin."
    )
    sentences = [*verdict.get("causes", []), *verdict.get("notes", [])]
    return "\n\n".join(["## What the files kept", legend, _table(rows), *sentences])


def _training(facts: Facts) -> str:
    recipe = facts.recipe
    if recipe is None:
        return ""
    lora = f"rank {recipe.lora.r}, alpha {recipe.lora.alpha:g}" + (", rsLoRA" if recipe.lora.rslora else "")
    batch = recipe.train.per_device_train_batch_size * recipe.train.gradient_accumulation_steps
    settings = {
        "pairs": f"`{Path(recipe.data.path).name}`",
        **{f"stage {index}": _stage(recipe, stage) for index, stage in enumerate(recipe.stages, 1)},
        "adapter": f"LoRA on the language model, {lora}",
        "base": "in 4 bits (NF4)" if recipe.model.load_in_4bit else f"in {recipe.model.dtype}",
        "batch": f"{batch} pairs for each optimiser step",
        "seed": recipe.seed,
    }
    return "## Training\n\n" + "\n".join(f"- {what}: {value}" for what, value in settings.items())


def _stage(recipe: Recipe, stage: StageSection) -> str:
    rate = stage.learning_rate or recipe.train.learning_rate
    settings = {**stage.loss, "learning rate": rate, "epochs": stage.epochs}
    settings |= {"at most steps": recipe.train.max_steps} if recipe.train.max_steps else {}
    return f"{settings.pop('name')}: " + ", ".join(f"{key} {_cell(value)}" for key, value in settings.items())


def _license(facts: Facts) -> str:
    if not facts.origin.license:
        return ""
    name = facts.origin.license_name or facts.origin.license
    link = f"[{name}]({facts.origin.license_link})" if facts.origin.license_link else name
    return f"## Licence\n\nThat of the base model: {link}."


# --- Markdown ---


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Columns in the order in which they first appear; what a row lacks is empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column, "")).replace("|", "\\|") for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _shell(*commands: str) -> str:
    return "\n".join(["```sh", *commands, "```"])


def _size(path: Path) -> str:
    n_bytes = path.stat().st_size
    scale, unit = next((pair for pair in ((10**9, "GB"), (10**6, "MB")) if n_bytes >= pair[0]), (1, "bytes"))
    return f"{n_bytes / scale:.{2 if scale > 1 else 0}f} {unit}"


def _read_json(run: Path | None, name: str) -> dict[str, Any]:
    path = run / name if run is not None else None
    return read_json(path) if path is not None and path.is_file() else {}
