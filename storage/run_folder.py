"""The folder of a run: built whole, locked while a process works on it, left clean."""

import logging
import os
import re
import shutil
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

_LOCK, _BUILD_LOCK = ".lock", ".building.lock"
_PATIENCE = 10.0
"""Seconds to wait for other processes that build; one takes a fraction of a second."""
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_HALF_BUILT = re.compile(r"\..+\.new\.[0-9a-f]{8}\.tmp")

_log = logging.getLogger(__name__)


def build_folder(path: Path, content: Mapping[str, Any]) -> None:
    """Make the folder `path` with JSON files by name, in one rename.

    Raises:
        UserError: When it cannot be written, or is there and not empty.
    """
    with os_errors_as_user_errors(path), _building(path.parent):
        temporary = _half_built(path)
        temporary.mkdir()
        try:
            for file, value in content.items():
                write_json(temporary / file, value)
            os.rename(temporary, path)  # an empty folder of this name is replaced
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_writable(parent: Path) -> None:
    """Refuse a folder in which no run can be built; it is made if it is missing.

    Raises:
        UserError: With what the operating system says.
    """
    with os_errors_as_user_errors(parent), _building(parent):
        probe = _half_built(parent / "probe")
        try:
            probe.write_bytes(bytes(4096))
        finally:
            probe.unlink(missing_ok=True)


def _half_built(path: Path) -> Path:
    return temporary_name(path.with_name(f"{path.name}.new"))


@contextmanager
def _building(parent: Path) -> Iterator[None]:
    """The lock that every process holds while it builds a run in this folder.

    Whatever is half-built there is therefore of a process that was killed, and removed.

    Raises:
        UserError: When another process holds the lock for long.
    """
    parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(parent / _BUILD_LOCK)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout as error:
        raise UserError(
            f"another process has been making a run in {parent} for {_PATIENCE:g} s; "
            "stop it, or name another folder with --run_dir"
        ) from error
    except NotImplementedError:
        _log.warning("%s cannot be locked: half-built runs in it stay", parent)
    else:
        for left in parent.iterdir():
            if _HALF_BUILT.fullmatch(left.name):
                _remove(left)
    try:
        yield
    finally:
        if lock.is_locked:
            (parent / _BUILD_LOCK).unlink(missing_ok=True)
            lock.release()


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


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
