"""The recipe, the environment and what `verify` found, without anything that tells who somebody is."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from minipovid import __version__
from minipovid.recipe import run_folder
from minipovid.recipe.schema import Recipe
from minipovid.report.texts import anonymous

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "llama-cpp-python",
    "gguf",
    "numpy",
    "pillow",
)
# What a column of verify's table is, for people.
COLUMNS = {
    "file": "file",
    "merge_base": "merged into",
    "MiB": "MiB",
    "KL": "KL, nats",
    "agreement": "same choice",
    "tokens": "same tokens",
    "margin": "margin, nats",
    "kept": "margin kept",
    "verdict": "verdict",
}
TURNED = "prefers the rejected answer"  # a fault of the trained model, as verify calls it
_SHARES = ("agreement", "tokens", "kept")


@dataclass(frozen=True)
class Proof:
    """RUN/verify.json as a table of texts."""

    ok: bool | None  # None: on too few pairs to judge
    pairs: int
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str]
    faults: Sequence[str] = ()


def proof(run: Path) -> Proof | None:
    """None where nothing was verified, or the file is damaged."""
    try:
        content = json.loads((run / run_folder.VERDICT).read_text(encoding="utf-8"))
        table = [dict(row) for row in content["table"]]
        remarks = [anonymous(str(line)) for line in (*content.get("causes", []), *content.get("notes", []))]
        columns = [key for key in COLUMNS if any(row.get(key) not in (None, "") for row in table)]
        rows = [[_cell(key, row.get(key, "")) for key in columns] for row in table]
        ok = None if content["ok"] is None else bool(content["ok"])
        faults = [str(fault) for fault in content.get("faults", ())]
        return Proof(ok, int(content["pairs"]), [COLUMNS[key] for key in columns], rows, remarks, faults)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _cell(column: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return anonymous(str(value))
    if column in _SHARES:
        return f"{value:.1%}".replace("%", " %")
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def recipe_text(recipe: Recipe) -> str:
    """As YAML; of a local path its last name alone."""
    return yaml.safe_dump(_named(recipe.model_dump()), sort_keys=False, allow_unicode=True, width=100)


def _named(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _named(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_named(value) for value in tree]
    return f".../{Path(tree).name}" if isinstance(tree, str) and Path(tree).is_absolute() else tree


def environment() -> dict[str, str]:
    """Of the machine that writes the report. Names of machine and user are not asked for."""
    versions = {"minipovid": __version__, "Python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {**versions, "system": f"{platform.system()} {platform.machine()}"}
