"""The folder of a run: built whole, locked while a process works on it, left clean."""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from circuitcut.storage.atomic import (
    os_errors_as_user_errors,
    sync,
    temporary_name,
    write_json,
)
from circuitcut.storage.errors import UserError
from circuitcut.storage.processes import by_first

_LOCK = ".lock"
_OLD = 60.0
"""Seconds after which a half-built folder is that of a killed process; building one
takes a fraction of a second."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")

_log = logging.getLogger(__name__)


def build_folder(path: Path, content: Mapping[str, Any]) -> None:
    """Make the folder `path` with JSON files by name, in one rename.

    Half-built folders that killed processes left beside it are removed.

    Raises:
        UserError: When it cannot be written, or is there and not empty.
    """
    with os_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.iterdir():
            if is_temporary(left) and _age(left) > _OLD:
                _remove(left)
        temporary = temporary_name(path)
        temporary.mkdir()
        try:
            for file, value in content.items():
                write_json(temporary / file, value)
            os.rename(temporary, path)  # an empty folder of this name is replaced
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Keep other processes away from a folder while the block runs.

    Every process of a run must call this. The first one holds the lock; it ends with
    the block, or with the process.

    Raises:
        UserError: When another process holds it.
    """
    lock = FileLock(path / _LOCK)
    by_first(lambda: _acquire(lock, path))
    try:
        yield
    finally:
        if lock.is_locked:
            (path / _LOCK).unlink(missing_ok=True)
            lock.release()


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and below.

    Only the process that holds the lock may call this.
    """
    for left in [p for p in path.rglob(".*") if is_temporary(p)]:
        _remove(left)


def is_temporary(path: Path) -> bool:
    """Whether a file or folder has the name of one that is still being written."""
    return _TEMPORARY.fullmatch(path.name) is not None


def _acquire(lock: FileLock, path: Path) -> None:
    with os_errors_as_user_errors(path / _LOCK):
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process works on {path}; wait for its end, or stop it, "
                "before --resume"
            ) from error
        except NotImplementedError:
            _log.warning("%s cannot be locked: let no other process resume it", path)


def _age(path: Path) -> float:
    """Seconds since a folder was changed; 0 where it has just been renamed."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
