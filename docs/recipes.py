"""The tables of docs/recipes.md, made of recipe/schema.py and of the shelves: `python docs/recipes.py` writes them.

Types and defaults are those that pydantic checks; meanings are the comments at the fields.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from minipovid.common import shelf
from minipovid.recipe import schema

PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- What follows is made by `python docs/recipes.py`. -->\n"
# section -> the shelf whose files have keys of their own there, under which class, and how a heading calls them
SHELVES = {"stages": ("train.losses", "Loss", "loss"), "views": ("images.views", "Settings", "view")}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true` or `false`"}
TYPES |= {"object": "group of keys"}


def page() -> str:
    """The page as it should be: what is written by hand, the mark, and the tables."""
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + tables()


def tables() -> str:
    whole = schema.Recipe.model_json_schema()
    texts = ["## The whole recipe\n\n" + _table(whole, schema.Recipe)]
    for name, key in whole["properties"].items():
        section = _section(key)
        if section:
            texts.append(f"## {name}\n\n{section.__doc__}\n\n{_table(whole['$defs'][section.__name__], section)}")
        for file in shelf.names(SHELVES[name][0]) if name in SHELVES else []:
            texts += _of_file(file, *SHELVES[name])
    return "\n".join(texts)


def _of_file(name: str, where: str, what: str, key: str) -> list[str]:
    """The keys of a file on a shelf; [] where it has none, or those of a section, which the page has already."""
    module = shelf.load(where, name)
    wanted = getattr(module, what, None)
    known = wanted is None or issubclass(wanted, schema.BaseModel)
    described = {} if known else TypeAdapter(wanted).json_schema()
    if not described.get("properties"):
        return []
    summary = str(module.__doc__).split("\n\n")[0].replace("\n", " ")
    return [f"### {key}: {name}\n\n{summary}\n\n{_table(described, wanted)}"]


def _table(section: Mapping[str, Any], wanted: type) -> str:
    rows = ["| key | what it is | default | meaning |", "|---|---|---|---|"]
    meanings = comments(wanted)
    for name, key in section["properties"].items():
        default = _default(key) if name not in section.get("required", ()) else "required"
        rows.append(f"| `{name}` | {_type(key)} | {default} | {_meaning(meanings[name], key)} |")
    return "\n".join(rows) + "\n"


def comments(wanted: type) -> dict[str, str]:
    """The comment at each field of a class, or alone in the line above it; "" where there is none."""
    source = inspect.getsource(wanted)
    tokens = [each for each in tokenize.generate_tokens(io.StringIO(source).readline) if each.type == tokenize.COMMENT]
    texts = {token.start[0]: token.string.lstrip("# ") for token in tokens}
    alone = {token.start[0] for token in tokens if token.line.lstrip().startswith("#")}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    fields = [each for each in body.body if isinstance(each, ast.AnnAssign)]
    return {
        ast.unparse(each.target): texts.get(each.end_lineno or 0)
        or (texts[each.lineno - 1] if each.lineno - 1 in alone else "")
        for each in fields
    }


def _type(key: Mapping[str, Any]) -> str:
    if "anyOf" in key:
        ways = [_type(each) for each in key["anyOf"] if each.get("type") != "null"]
        is_unset = len(ways) < len(key["anyOf"]) and key.get("default") is not None  # else the default says it
        return " or ".join([*ways, "`null`"] if is_unset else ways)
    if "$ref" in key:
        return f"[group of keys](#{_place(key['$ref'])})"
    if "enum" in key or "const" in key:
        *others, last = (f"`{value}`" for value in key.get("enum", [key.get("const")]))
        return f"{', '.join(others)} or {last}" if others else last
    if key["type"] == "array":
        return f"list of {_type(key['items']).replace('group', 'groups').replace('text', 'texts')}"
    bounds = [f"{words} {key[bound]:,}" for bound, words in BOUNDS.items() if bound in key]
    return TYPES[key["type"]] + (f" ({', '.join(bounds)})" if bounds else "")


def _place(ref: str) -> str:
    """The heading of a section's table: the recipe's own key of that class."""
    fields = schema.Recipe.model_json_schema()["properties"].items()
    return next(name for name, key in fields if f"'{ref}'" in str(key))


def _default(key: Mapping[str, Any]) -> str:
    value = key.get("default")
    if isinstance(value, dict):
        return ""
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e-0", "e-")
    return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(comment: str, key: Mapping[str, Any]) -> str:
    """The comment, or what the group of keys says of itself; with all that stands on a shelf which it names."""
    section = _section(key)
    text = comment or (str(section.__doc__) if section else "")
    text = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
    named = re.search(r"the shelf ([a-z_/]+)", text)
    if not named:
        return text
    files = ", ".join(f"`{name}`" for name in shelf.names(named[1].replace("/", ".")))
    return text.replace(named[0], f"{named[0]} ({files})")


def _section(key: Mapping[str, Any]) -> type | None:
    """The class of a group of keys."""
    named = re.search(r"#/\$defs/(\w+)", str(key))
    return getattr(schema, named[1]) if named else None


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
