"""Stores on disk that are bounded, shared by processes and never trusted."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/minipovid, or ~/.cache/minipovid."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "minipovid"
