"""Where smoljax keeps what it fetches and compiles."""

import os
from pathlib import Path


def smoljax_cache() -> Path:
    """The cache folder: `$SMOLJAX_CACHE`, else `$XDG_CACHE_HOME/smoljax`, else `~/.cache/smoljax`.

    The folder may not exist yet; whoever writes there makes it. As the XDG specification asks, a relative
    `$XDG_CACHE_HOME` is ignored. `$SMOLJAX_CACHE` is taken as given, `~` expanded.
    """
    if own := os.environ.get("SMOLJAX_CACHE"):
        return Path(own).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "smoljax"


def models_cache() -> Path:
    """`models/` of the cache: one folder a fetched model (`smoljax.hub.fetch`)."""
    return smoljax_cache() / "models"


def compilation_cache() -> Path:
    """`compilation/` of the cache: XLA's persistent compilation cache."""
    return smoljax_cache() / "compilation"
