"""A recipe: one YAML file that says everything about a run, read strictly and completely, or refused in a sentence.

    name: my-run
    model: {path: llava-hf/llava-1.5-7b-hf}
    data: {path: pairs.json, images: photos/, format: povid}
    stages:
      - {loss: {name: dpo, beta: 0.1}, epochs: 3}
      - {loss: {name: povid}, epochs: 1}

One that differs by a few keys names another (`extends: llava7b_qlora`) and then those keys: mappings are merged, all
else is replaced. Every key is documented at its field in schema.py. `read` fills in the defaults and makes paths
absolute; the result is written to the run folder before any weight is loaded, and later stages read it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from minipovid.common import text_files
from minipovid.common.errors import MinipovidError
from minipovid.recipe.schema import BUILTIN, DataSection, Recipe
from minipovid.recipe.strict import validated


def shipped() -> dict[str, Path]:
    """The recipes that come with minipovid, by name: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parents[1]
    folder = package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(recipe: str, folder: Path = Path()) -> Path:
    """The file that a command's RECIPE or a recipe's `extends` means: a path from `folder`, or a shipped recipe's name.

    Raises MinipovidError where it is neither, with the nearest and all shipped names.
    """
    ours = shipped()
    path = folder / recipe
    if path.is_file() or recipe not in ours and path.suffix in (".yaml", ".yml"):
        return path
    if recipe in ours:
        return ours[recipe]
    nearest = get_close_matches(recipe, ours, 1)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise MinipovidError(
        f"There is no recipe {recipe!r}, neither a file nor one that ships with minipovid.{hint} "
        f"Shipped: {', '.join(ours)}."
    )


def read(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `--set key.path=value` overrides applied, defaults filled in and paths absolute.

    Relative paths in a recipe are relative to the current folder. Raises MinipovidError: one line per mistake.
    """
    files = chain(path)
    for _, keys in files[1:]:
        keys.pop("name", None)  # two recipes of one name would meet in one run folder
    tree: dict[str, Any] = {}
    for _, keys in reversed(files):
        tree = _merge(tree, keys)
    for override in overrides:
        _override(tree, override)
    places = [(path, settings(overrides)), *files]

    def origin(steps: Sequence[str]) -> str:
        return str(next((file for file, keys in places if _holds(keys, steps)), path))

    recipe = validated(Recipe, tree, origin)
    if recipe.extends is not None:
        raise MinipovidError("--set extends: what a recipe extends stands in its file; write one with `extends:`.")
    return _absolute(recipe)


def chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The recipe's file with its keys, the one that it extends with its own, and so on to the last.

    Raises MinipovidError for what cannot be read or holds no recipe, and for a circle.
    """
    files: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if any(path.resolve() == file.resolve() for file, _ in files):
            circle = ", which extends ".join(str(file) for file in (*(file for file, _ in files), path))
            raise MinipovidError(f"Recipes extend each other in a circle: {circle}; let one stand by itself.")
        tree = _tree(path)
        files.append((path, tree))
        base = tree.get("extends")
        if not isinstance(base, str):
            return files
        del tree["extends"]
        try:
            path = find(base, path.parent)
            if not path.is_file():
                raise MinipovidError(f"There is no recipe {path}.")
        except MinipovidError as error:
            raise MinipovidError(f"{files[-1][0]}: extends is {base!r}. {error}") from None


def _tree(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise MinipovidError(f"There is no recipe {path}; `minipovid recipes` lists those that ship with minipovid.")
    try:
        tree = yaml.load(text_files.read(path, "recipe"), _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError) as error:
        raise MinipovidError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise MinipovidError(f"{path} does not hold a recipe: it should begin with `name:`.")
    return tree


def _merge(under: Any, over: Any) -> Any:
    """Mappings key by key; all else is replaced."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return {**under, **{key: _merge(under.get(key), value) for key, value in over.items()}}


def _holds(tree: Any, steps: Sequence[str]) -> bool:
    """Does this file say the value there? A list is its file's as a whole, for it is never merged."""
    for step in steps:
        if not isinstance(tree, dict):
            return True
        if step not in tree:
            return False
        tree = tree[step]
    return True


_FORM = "key.path=value, for example train.learning_rate=1e-6"


def settings(overrides: Sequence[str], flag: str = "--set", form: str = _FORM) -> dict[str, Any]:
    """`key.path=value` texts as a tree of their own. Raises MinipovidError, naming the flag, for one that is none."""
    tree: dict[str, Any] = {}
    for override in overrides:
        dotted, value = _parsed(override, flag, form)
        _set(tree, dotted.split("."), value, dotted)
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
    dotted, value = _parsed(override)
    steps = dotted.split(".")
    if steps[0] == "loss":
        stages = tree.get("stages")
        for index in range(len(stages) if isinstance(stages, list) else 0):  # what is no list is refused as a whole
            _set(tree, ["stages", str(index), *steps], value, dotted)
    else:
        _set(tree, steps, value, dotted)


def _parsed(override: str, flag: str = "--set", form: str = _FORM) -> tuple[str, Any]:
    """The dotted key and the value."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise MinipovidError(f"{flag} takes {form}; this is {override!r}.")
    try:
        return dotted, yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError:
        raise MinipovidError(f"{flag} {dotted}: {text!r} is not a YAML value; put quotes round a text.") from None


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

    def with_local_paths(data: DataSection) -> DataSection:
        if data.path == BUILTIN:
            return data
        path = Path(data.path).expanduser()
        images = data.images if data.images is not None else str(path if path.is_dir() else path.parent)
        return data.model_copy(update={"path": local(data.path), "images": local(images)})

    stages = [
        stage if stage.data is None else stage.model_copy(update={"data": with_local_paths(stage.data)})
        for stage in recipe.stages
    ]
    model = recipe.model
    if model.path != BUILTIN and Path(model.path).expanduser().is_dir():
        model = model.model_copy(update={"path": local(model.path)})
    start = None if recipe.start_from is None else local(recipe.start_from)
    return recipe.model_copy(
        update={"model": model, "data": with_local_paths(recipe.data), "stages": stages, "start_from": start}
    )
