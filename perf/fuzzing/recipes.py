"""Recipes that extend each other, with `--set`; through recipe.read.

Which keys there are, what they may be and what they are by default, the tables of docs/recipes.md say; the oracle reads
those tables, parses each file with PyYAML, merges by hand and fills in the defaults.
"""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing.case import REFUSED, Case, harmed, shortened

Tree = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
KEPT = object()  # a default that is a whole group


class _Loader(yaml.SafeLoader):
    """PyYAML's, in which 1e-5 is a number, as everybody means it."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _No(Exception):
    """No recipe."""


def _tables() -> dict[str, dict[str, tuple[str, str]]]:
    """Group -> key -> (what it is, its default), as the page has them."""
    groups: dict[str, dict[str, tuple[str, str]]] = {}
    group = ""
    for line in PAGE.read_text(encoding="utf-8").split("\n"):
        if line.startswith("##"):
            group = line.lstrip("# ")
        elif match := re.fullmatch(r"\| `(\w+)` \| (.*?) \| (.*?) \| .*\|", line):
            groups.setdefault(group, {})[match[1]] = (match[2], match[3].strip())
    return groups


TABLES = _tables()
TOP = TABLES["The whole recipe"]


def case(dice: Random, folder: Path) -> Case:
    os.chdir(folder)  # paths in a recipe are relative to where one stands
    notes: list[str] = []
    is_damaged = dice.random() < 0.5
    tree = _whole(dice)
    files = [tree]
    for _ in range(dice.choice([0, 0, 1, 2])):
        files.insert(0, _differing(dice))
    if is_damaged:
        how, files[0] = _hurt(dice, files[0])
        notes.append(how)
    texts = []
    for number, each in enumerate(files):
        if number + 1 < len(files):
            each["extends"] = f"r{number + 1}.yaml"
        texts.append(_spelled(dice, each).encode(dice.choice(["utf-8"] * 9 + ["utf-8-sig"])))
    if is_damaged and dice.random() < 0.3:
        how, texts[0] = harmed(dice, texts[0])
        notes.append(how)
    if is_damaged and dice.random() < 0.1:
        texts[0] += b"\nname: again\n"
        notes.append("a key twice")
    for number, data in enumerate(texts):
        (folder / f"r{number}.yaml").write_bytes(data)
    overrides = [_override(dice) for _ in range(dice.choice([0, 0, 1, 2]))]

    def act() -> Tree:
        from minipovid.recipe.read import read

        return read(folder / "r0.yaml", overrides).model_dump()

    made = " ".join([f"recipe of {len(files)}", *notes])
    return Case(made, (texts, overrides), act, lambda: _meant(texts, overrides, folder), is_damaged, _differs)


def _differs(got: Tree, want: Tree) -> str:
    for key in dict.fromkeys([*want, *got]):
        mine, theirs = want.get(key), got.get(key)
        if isinstance(mine, dict) and isinstance(theirs, dict) and key != "views":
            if why := _differs(theirs, mine):
                return f"{key}.{why}"
        elif mine != theirs or isinstance(mine, bool) != isinstance(theirs, bool):
            return f"{key} is {shortened(theirs, 60)} for {shortened(mine, 60)}"
    return ""


# --- spellings ---


def _value(dice: Random, kind: str) -> Any:
    """A value that the page allows."""
    kind = dice.choice(kind.split(" or ")) if "`, `" not in kind and " or " in kind and "whole" in kind else kind
    names = re.findall("`([^`]*)`", kind)
    if names == ["true", "false"]:
        return dice.choice([True, False])
    if kind.startswith("list of"):
        return dice.sample(names or ["f16", "q8_0", "q4_k_m"], dice.randint(1, 2))
    if names:
        name = dice.choice(names)
        return {"true": True, "false": False, "null": None}.get(name, name)
    if "number" in kind:
        low, high = _bounds(kind)
        if kind.startswith("whole"):
            return dice.choice([low, min(high, low + 7), min(high, 999)])
        value = dice.choice([min(high, x) for x in (0.5, 1e-5, 0.25, 2, 1)])
        return value if "below 1)" not in kind or value < 1 else 0.5
    return dice.choice(["jsonl", "mine.json", "photos/a b", "tinyworld", "org/name", "~/x", "Größe", "1e-5", "yes"])


def _bounds(kind: str) -> tuple[float, float]:
    low = re.search(r"at least ([\d,.]+)", kind)
    high = re.search(r"at most ([\d,.]+)", kind)
    return (int(low[1].rstrip(",")) if low else 0), (int(high[1].rstrip(",")) if high else 10**6)


def _group(dice: Random, name: str, share: float) -> Tree:
    """Some keys of a group, all that are required among them."""
    return {
        key: _value(dice, kind)
        for key, (kind, default) in TABLES[name].items()
        if "group" not in kind and (default == "required" or dice.random() < share)
    }


def _stage(dice: Random) -> Tree:
    loss = dice.choice(["dpo", "mdpo", "povid"])
    stage = _group(dice, "stages", 0.3) | {"loss": {"name": loss, **_group(dice, f"loss: {loss}", 0.3)}}
    stage.pop("kind", None)
    return stage | ({"data": _group(dice, "data", 0.2)} if dice.random() < 0.2 else {})


def _whole(dice: Random) -> Tree:
    tree: Tree = {
        "name": dice.choice(["my-run", "a.b_1", "X"]),
        "model": _group(dice, "model", 0.3),
        "data": _group(dice, "data", 0.3),
    }
    tree["stages"] = [_stage(dice) for _ in range(dice.randint(1, 3))]
    for name in ("lora", "noise", "reference", "train", "export"):
        if dice.random() < 0.4:
            tree[name] = _group(dice, name, 0.3)
    return tree | {key: _value(dice, TOP[key][0]) for key in ("seed", "start_from") if dice.random() < 0.2}


def _differing(dice: Random) -> Tree:
    """What a recipe says that extends another: its name and a few keys."""
    whole = _whole(dice)
    return {key: value for key, value in whole.items() if key == "name" or dice.random() < 0.3}


def _spelled(dice: Random, tree: Tree) -> str:
    """As YAML: in blocks or in braces, numbers in powers of ten as people write them, comments between."""
    text = yaml.safe_dump(
        tree, sort_keys=dice.random() < 0.5, allow_unicode=dice.random() < 0.5, default_flow_style=dice.random() < 0.3
    )
    text = text.replace("1.0e-05", "1e-5") if dice.random() < 0.5 else text
    text = "# mine\n---\n" + text if dice.random() < 0.2 else text
    return text.replace("\n", "\r\n") if dice.random() < 0.1 else text


def _override(dice: Random) -> str:
    group = dice.choice(["lora", "data", "train", "noise", "export", "loss", "model"])
    if group == "loss":
        return dice.choice(["loss.beta=0.2", "loss.beta=1e-2", "loss.name=dpo"])
    key, (kind, default) = dice.choice(list(TABLES[group].items()))
    value = None if default == "none" and dice.random() < 0.3 else _value(dice, kind)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True).strip().removesuffix("...").strip()
    return f"{group}.{key}={text}"


def _hurt(dice: Random, tree: Tree) -> tuple[str, Tree]:
    tree = copy.deepcopy(tree)
    groups = [tree, *(value for value in tree.values() if isinstance(value, dict)), *tree.get("stages", [])]
    group = dice.choice(groups)
    key = dice.choice([*group, "name"])
    how = dice.choice(["dropped", "misspelled", "retyped", "retyped", "bounds", "bounds", "foreign"])
    if how == "dropped":
        group.pop(key, None)
    elif how == "misspelled":
        group[dice.choice([f"{key}s", key.upper(), f" {key}", "lr"])] = group.pop(key, 1)
    elif how == "retyped":
        group[key] = dice.choice(
            [None, "a\tb", "", [], {}, [1], {"a": 1}, True, 3, 2.5, "5", 10**400, float("inf"), float("nan"), "ja"]
        )
    elif how == "bounds":
        group[key] = dice.choice([-1, 0, 1, 0.0, 1.0, 1.5, 1000, 2**32, -0.5, "../x", "-x", "1.0"])
    else:
        group["cutoff_len"] = 3
    return how, tree


# --- the oracle ---


def _meant(texts: list[bytes], overrides: list[str], folder: Path) -> Any:
    try:
        trees = []
        for number, text in enumerate(texts):
            tree = _yaml(text.decode("utf-8-sig"))
            if not isinstance(tree, dict):
                raise _No
            base = tree.pop("extends", None)
            trees.append({str(key): value for key, value in tree.items()})
            if base is None:
                break
            if base != f"r{number + 1}.yaml":
                raise _No  # no other file lies there
        whole: Tree = {}
        for place, tree in reversed(list(enumerate(trees))):
            whole = _merged(whole, tree if place == 0 else {key: value for key, value in tree.items() if key != "name"})
        for override in overrides:
            key, _, text = override.partition("=")
            _set(whole, key.split("."), _yaml(text))
        return _filled(whole, folder)
    except (_No, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
        return REFUSED


def _yaml(text: str) -> Any:
    """The tree. Raises _No where a key stands twice."""
    nodes = [node for node in [yaml.compose(text, _Loader)] if node is not None]
    while nodes:
        node = nodes.pop()
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            if len({repr(key) for key in keys}) < len(keys):
                raise _No
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def _merged(under: Any, over: Any) -> Any:
    if not isinstance(under, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    return {
        key: _merged(under.get(key), over[key]) if key in over else under[key]
        for key in [*under, *(k for k in over if k not in under)]
    }


def _set(tree: Any, steps: list[str], value: Any) -> None:
    if steps[0] == "loss":
        stages = tree.get("stages") or []
        if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
            raise _No
        for stage in stages:
            _set(stage, ["loss ", *steps[1:]], value)
        return
    steps = [step.strip() for step in steps]
    for step in steps[:-1]:
        if not isinstance(tree.get(step), dict):
            tree[step] = {}
        tree = tree[step]
    tree[steps[-1]] = value


def _filled(tree: Tree, folder: Path) -> Tree:
    """Every key checked, defaults filled in, paths absolute."""
    recipe = _checked(tree, "The whole recipe")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", recipe["name"]):
        raise _No
    del recipe["extends"], recipe["views"]
    for data in [recipe["data"], *(stage["data"] for stage in recipe["stages"] if stage["data"])]:
        if data["path"] != "tinyworld":
            path = Path(data["path"]).expanduser()
            data["images"] = str(
                Path(data["images"] if data["images"] is not None else path if path.is_dir() else path.parent)
                .expanduser()
                .resolve()
            )
            data["path"] = str(path.resolve())
    if recipe["model"]["path"] != "tinyworld" and Path(recipe["model"]["path"]).expanduser().is_dir():
        recipe["model"]["path"] = str(Path(recipe["model"]["path"]).expanduser().resolve())
    if recipe["start_from"] is not None:
        recipe["start_from"] = str(Path(recipe["start_from"]).expanduser().resolve())
    return recipe


def _checked(tree: Any, name: str) -> Tree:
    if not isinstance(tree, dict) or set(tree) - set(TABLES[name]):
        raise _No
    filled: Tree = {}
    for key, (kind, default) in TABLES[name].items():
        if key not in tree and default == "required":
            raise _No
        if key == "stages":
            if not isinstance(tree[key], list) or not tree[key]:
                raise _No
            filled[key] = [_checked(stage, "stages") for stage in tree[key]]
        elif key == "loss":
            if not isinstance(tree[key], dict) or not isinstance(tree[key].get("name"), str):
                raise _No
            filled[key] = tree[key]  # its own keys are the loss's to check
        elif key == "views":
            if tree.get(key, {}) != {}:
                raise _No
            filled[key] = {}
        elif "group" in kind:
            none = default == "none" and tree.get(key) is None
            filled[key] = None if none else _checked(tree.get(key, {}), key)
        elif key not in tree:
            filled[key] = _default(default)
        else:
            if not (tree[key] is None and default == "none") and not _allowed(tree[key], kind):
                raise _No
            filled[key] = tree[key]
    return filled


def _default(text: str) -> Any:
    return None if text == "none" else yaml.load(text.strip("`"), _Loader)  # noqa: S506 - a SafeLoader


def _allowed(value: Any, kind: str) -> bool:
    """Whether the page allows it; of alternatives, one must."""
    if kind.startswith("list of"):
        return (
            isinstance(value, list)
            and all(_allowed(each, kind.removeprefix("list of ")) for each in value)
            and (bool(value) or "`" in kind)
        )
    names = [{"true": True, "false": False, "null": None}.get(name, name) for name in re.findall("`([^`]*)`", kind)]
    if any(value is name or isinstance(name, str) and value == name for name in names):
        return True
    if "number" in kind and isinstance(value, (int, float)) and not isinstance(value, bool):
        return _in_bounds(value, kind)
    return kind.startswith("text") and isinstance(value, str)


def _in_bounds(value: float, kind: str) -> bool:
    if "whole number" in kind and not isinstance(value, int):
        return False
    if value != value or abs(value) == float("inf"):
        return False
    for words, holds in {
        "at least": lambda x: value >= x,
        "above": lambda x: value > x,
        "at most": lambda x: value <= x,
        "below": lambda x: value < x,
    }.items():
        if (match := re.search(rf"{words} ([\d,.]*\d)", kind)) and not holds(float(match[1].replace(",", ""))):
            return False
    return True
