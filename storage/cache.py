"""The cache folder, which keeps trained built-in models between runs, and its keys."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """The cache folder of this user; it may not exist yet.

    `$CIRCUITCUT_CACHE`, else `$XDG_CACHE_HOME/circuitcut`, else `~/.cache/circuitcut`.
    """
    if circuitcut_cache := os.environ.get("CIRCUITCUT_CACHE"):
        return Path(circuitcut_cache).expanduser()
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache).expanduser() / "circuitcut"
    return Path.home() / ".cache" / "circuitcut"


def content_hash(*parts: str | bytes) -> str:
    """SHA-256 hex digest of the parts, each preceded by its length.

    `("ab", "c")` and `("a", "bc")` therefore give different digests.
    """
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
