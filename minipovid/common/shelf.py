"""A shelf is a package whose file names are the keys users type: `loss.name: povid` is train/losses/povid.py."""

import importlib
import pkgutil
from difflib import get_close_matches
from types import ModuleType

from minipovid.common.errors import MinipovidError


def names(shelf: str) -> list[str]:
    """The keys that stand on a shelf ("losses", "families", ...), sorted; nothing is imported but the shelf itself."""
    package = importlib.import_module(f"minipovid.{shelf}")
    return sorted(info.name for info in pkgutil.iter_modules(package.__path__))


def load(shelf: str, name: str) -> ModuleType:
    """The module `name` of a shelf. The shelf is listed first, so that a broken import is never called "unknown".

    Raises MinipovidError, with the nearest and all known names, where no such file stands on the shelf.
    """
    known = names(shelf)
    if name not in known:
        nearest = get_close_matches(name, known, 1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise MinipovidError(
            f"There is no {name!r} among the {shelf.rpartition('.')[2]}.{hint} Known: {', '.join(known)}."
        )
    return importlib.import_module(f"minipovid.{shelf}.{name}")
