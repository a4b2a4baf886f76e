"""Where trained built-in models are kept between runs, and the names they get."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder of this user, which need not exist.

    `$CIRCUITCUT_CACHE`, else `$XDG_CACHE_HOME/circuitcut`, else `~/.cache/circuitcut`.
    """
    if own := os.environ.get("CIRCUITCUT_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "circuitcut"
    return Path.home() / ".cache" / "circuitcut"


def content_hash(*parts: str | bytes) -> str:
    """SHA-256 hex digest of the parts, each preceded by its length.

    So `("ab", "c")` and `("a", "bc")` differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
