"""Checkpoints: nested states as safetensors and JSON, one folder a step, no pickle.

A checkpoint is written to a temporary folder, synced and renamed, and carries the
SHA-256 of its tensors; the one before it is kept, so that a damaged file costs steps,
not the run.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitcut.storage.atomic import (
    read_json,
    read_tensors,
    sync,
    temporary_name,
    told_to_the_user,
    write_tensors,
    write_text,
)
from circuitcut.storage.errors import UserError

N_KEPT = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_TENSOR_KEY = "__tensor__"
_KEYS = {"sha256", "step", "state"}
_STEP_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.[0-9a-f]{8}\.tmp")

_log = logging.getLogger(__name__)


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`; return its folder.

    Args:
        folder: Where the checkpoints of this run lie; made if need be.
        step: Number of steps done.
        state: Nested dicts (text keys), lists and tuples (read back as lists) of
            tensors, numbers, text, bools and None.

    Raises:
        UserError: When the disk is full or the folder cannot be written; the
            checkpoints that were there are then still whole.
    """
    target = folder / f"step-{step:08d}"
    temporary = temporary_name(target)
    tensors: dict[str, Tensor] = {}
    skeleton = _take_out(state, "", tensors)
    try:
        write_tensors(temporary / _TENSORS, tensors)
        content = {"sha256": _file_hash(temporary / _TENSORS), "step": step}
        write_text(temporary / _STATE, json.dumps({**content, "state": skeleton}))
        with told_to_the_user(target):
            if target.exists():
                shutil.rmtree(target)
            os.rename(temporary, target)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder)
    return target


def load_latest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest whole checkpoint; None where none was ever written.

    A damaged checkpoint is passed over with a warning.

    Raises:
        UserError: When there are checkpoints but every one of them is damaged.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            return _load(path)
        except UserError as error:
            _log.warning(
                "checkpoint %s is damaged (%s): trying the one before", path, error
            )
            damaged.append(path.name)
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read (damaged: {', '.join(damaged)}); "
            "start a new run"
        )
    return None


def latest_step(folder: Path) -> int:
    """Steps done in the newest whole checkpoint, 0 without one; see `load_latest`."""
    latest = load_latest(folder)
    return 0 if latest is None else latest[0]


def _load(path: Path) -> tuple[int, dict[str, Any]]:
    content = read_json(path / _STATE)
    if not isinstance(content, dict) or content.keys() != _KEYS:
        raise UserError(f"{path / _STATE} is not that of a checkpoint")
    tensors = read_tensors(path / _TENSORS)
    if _file_hash(path / _TENSORS) != content["sha256"]:
        raise UserError(f"{path / _TENSORS} has not the SHA-256 that was noted")
    return content["step"], _put_back(content["state"], tensors)


def _take_out(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with every tensor moved to `tensors` and its name left in its place."""
    if isinstance(value, Tensor):
        tensors[key] = value
        return {_TENSOR_KEY: key}
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or name == _TENSOR_KEY:
                raise TypeError(f"keys must be text, not {_TENSOR_KEY}; got {name!r}")
        return {
            name: _take_out(item, f"{key}/{name}", tensors)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_take_out(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a checkpoint ({key!r})")


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR_KEY}:
            return tensors[value[_TENSOR_KEY]]
        return {name: _put_back(item, tensors) for name, item in value.items()}
    if isinstance(value, list):
        return [_put_back(item, tensors) for item in value]
    return value


def _checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if _STEP_NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _remove_old(folder: Path) -> None:
    leftovers = [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name)]
    for path in [*_checkpoints(folder)[:-N_KEPT], *leftovers]:
        shutil.rmtree(path, ignore_errors=True)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
