"""A recipe: one YAML file that says everything about a run, read strictly and completely, or refused in a sentence.

    name: my-run
    model: {path: llava-hf/llava-1.5-7b-hf}
    data: {path: pairs.json, images: photos/, format: povid}
    stages:
      - {loss: {name: dpo, beta: 0.1}, epochs: 3}
      - {loss: {name: povid}, epochs: 1}

Every key is documented at its field in schema.py. `read` fills in the defaults and makes paths absolute; the result is
written to the run folder before any weight is loaded, and later stages read it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from minipovid.common.errors import MinipovidError
from minipovid.recipe.schema import BUILTIN, DataSection, Recipe
from minipovid.recipe.strict import validated


def shipped() -> dict[str, Path]:
    """The recipes that come with minipovid, by name: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(recipe: str) -> Path:
    """The file that a command's RECIPE means: a path, or the name of a shipped recipe.

    Raises MinipovidError where it is neither, with the nearest and all shipped names.
    """
    ours = shipped()
    if Path(recipe).is_file() or recipe not in ours and Path(recipe).suffix in (".yaml", ".yml"):
        return Path(recipe)
    if recipe in ours:
        return ours[recipe]
    nearest = get_close_matches(recipe, ours, 1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise MinipovidError(
        f"There is no recipe {recipe!r}, neither a file nor one that ships with minipovid.{hint} "
        f"Shipped: {', '.join(ours)}."
    )


def read(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """The recipe in `path` with `--set key.path=value` overrides applied, defaults filled in and paths absolute.

    Relative paths in a recipe are relative to the current folder. Raises MinipovidError: one line per mistake.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise MinipovidError(
            f"There is no recipe {path}; `minipovid recipes` lists those that ship with minipovid."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise MinipovidError(f"The recipe {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise MinipovidError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise MinipovidError(f"{path} does not hold a recipe: it should begin with `name:`.")
    for override in overrides:
        _override(tree, override)
    return _absolute(validated(Recipe, tree, str(path)))


def settings(overrides: Sequence[str]) -> dict[str, Any]:
    """`--set key.path=value` texts as a tree of their own. Raises MinipovidError for one that is none."""
    tree: dict[str, Any] = {}
    for override in overrides:
        _override(tree, override)
    return tree


def write(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe, readable by `read` again."""
    text = yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value  # the text of a plain key; `<<` may stand more than once
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    raise yaml.YAMLError(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes round a text that `_Loader` would take for a number."""


# YAML 1.1 reads `1e-5` as text; everybody means the number, wherever it stands (YAML 1.2 agrees).
for _yaml in (_Loader, _Dumper):
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+$"), list("+-.0123456789")
    )


def _override(tree: dict[str, Any], override: str) -> None:
    """Apply `key.path=value`. `loss.x=...` sets x of every stage's loss."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise MinipovidError(f"--set takes key.path=value, for example train.learning_rate=1e-6; this is {override!r}.")
    try:
        value = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise MinipovidError(f"--set {dotted}: {text!r} is not a YAML value; put quotes round a text.") from None
    steps = dotted.split(".")
    if steps[0] == "loss":
        for index in range(len(tree.get("stages") or [])):
            _set(tree, ["stages", str(index), *steps], value, dotted)
    else:
        _set(tree, steps, value, dotted)


def _set(tree: Any, steps: list[str], value: Any, dotted: str) -> None:
    for step in steps[:-1]:
        if isinstance(tree, list):
            if not (step.isdigit() and int(step) < len(tree)):
                raise MinipovidError(f"--set {dotted}: there is no entry {step} in a list of {len(tree)}.")
            tree = tree[int(step)]
        elif isinstance(tree, dict):
            if not isinstance(tree.get(step), (dict, list)):
                tree[step] = {}
            tree = tree[step]
    if not isinstance(tree, dict):
        raise MinipovidError(f"--set {dotted}: {'.'.join(steps[:-1])} holds no keys.")
    tree[steps[-1]] = value


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    if not isinstance(tree, (dict, list)):
        return {prefix.rstrip("."): tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {key: value for name, inner in items for key, value in flat(inner, f"{prefix}{name}.").items()}


def _absolute(recipe: Recipe) -> Recipe:
    """Make the paths of local files absolute, so that the run folder's recipe works from anywhere."""

    def local(path: str) -> str:
        return str(Path(path).expanduser().resolve())

    def placed(data: DataSection) -> DataSection:
        if data.path == BUILTIN:
            return data
        there = Path(data.path).expanduser()
        images = data.images if data.images is not None else str(there if there.is_dir() else there.parent)
        return data.model_copy(update={"path": local(data.path), "images": local(images)})

    model, start = recipe.model, recipe.start_from
    stages = [
        stage if stage.data is None else stage.model_copy(update={"data": placed(stage.data)})
        for stage in recipe.stages
    ]
    if model.path != BUILTIN and Path(model.path).expanduser().is_dir():
        model = model.model_copy(update={"path": local(model.path)})
    start = local(start) if start is not None else None
    return recipe.model_copy(
        update={"model": model, "data": placed(recipe.data), "stages": stages, "start_from": start}
    )
