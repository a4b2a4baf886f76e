"""Checkpoints: nested states as safetensors and JSON, one folder per step, no pickle.

A checkpoint is written to a temporary folder, synced and renamed. It holds the SHA-256
of its tensors and of its other contents. The checkpoint before it is kept: when the
newest one is damaged, the run continues from the older one.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from circuitcut.storage.atomic import (
    os_errors_as_user_errors,
    read_json,
    read_tensors,
    sync,
    temporary_name,
    write_tensors,
    write_text,
)
from circuitcut.storage.cache import content_hash
from circuitcut.storage.checksums import check_digest, file_digest
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import Count, Digest, check_type

N_KEPT = 2
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_TENSOR_KEY = "__tensor__"
_KEYS = {"sha256", "state_sha256", "step", "state"}
_OLD_KEYS = _KEYS - {"state_sha256"}
"""Of checkpoints before December 2026, which had a checksum of the tensors alone."""
Check = Callable[[int, dict[str, Any]], None]
_STEP_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.[0-9a-f]{8}\.tmp")

_log = logging.getLogger(__name__)


class _Content(TypedDict):
    sha256: Digest
    state_sha256: NotRequired[Digest]
    step: Count
    state: dict[str, Any]


def save_state(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of `step`; return its folder.

    Args:
        folder: Folder of this run's checkpoints; made if it does not exist.
        step: Number of steps done.
        state: Nested dicts (text keys), lists and tuples (read back as lists) of
            tensors, numbers, text, bools and None.

    Raises:
        UserError: When the disk is full or the folder cannot be written. The older
            checkpoints are then unchanged.
    """
    target = folder / _name(step)
    temporary = temporary_name(target)
    tensors: dict[str, Tensor] = {}
    skeleton = _extract_tensors(state, "", tensors)
    try:
        write_tensors(temporary / _TENSORS, tensors)
        content = {
            "sha256": file_digest(temporary / _TENSORS),
            "state_sha256": _state_hash(step, skeleton),
            "step": step,
            "state": skeleton,
        }
        write_text(temporary / _STATE, json.dumps(content))
        with os_errors_as_user_errors(target):
            if target.exists():
                shutil.rmtree(target)
            os.rename(temporary, target)
            sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder)
    return target


def load_latest(
    folder: Path, check: Check | None = None
) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest complete checkpoint; None without checkpoints.

    A damaged checkpoint is skipped with a warning.

    Args:
        check: Called with step and state; a `UserError` means that they are damaged.

    Raises:
        UserError: When there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            step, state = _load(path)
            if check is not None:
                check(step, state)
            return step, state
        except UserError as error:
            _log.warning(
                "checkpoint %s is damaged (%s): trying the older one", path, error
            )
            damaged.append(path.name)
    if damaged:
        raise UserError(
            f"no checkpoint in {folder} can be read (damaged: {', '.join(damaged)}); "
            "start a new run"
        )
    return None


def latest_step(folder: Path, check: Check | None = None) -> int:
    """Step of the newest complete checkpoint, 0 without one; see `load_latest`."""
    latest = load_latest(folder, check)
    return 0 if latest is None else latest[0]


def _load(path: Path) -> tuple[int, dict[str, Any]]:
    content = read_json(path / _STATE)
    if not isinstance(content, dict) or content.keys() not in (_KEYS, _OLD_KEYS):
        raise UserError(f"{path / _STATE} is not the state file of a checkpoint")
    check_type(content, _Content, str(path / _STATE))
    step, skeleton = content["step"], content["state"]
    digest = _state_hash(step, skeleton)
    if "state_sha256" not in content:
        _log.info("%s has no checksum of its own contents", path / _STATE)
    if content.get("state_sha256", digest) != digest:
        raise UserError(f"{path / _STATE} was changed: its SHA-256 differs")
    if path.name != _name(step):
        raise UserError(f"{path / _STATE} names the step {step!r}, unlike its folder")
    tensors = read_tensors(path / _TENSORS)
    check_digest(path / _TENSORS, content["sha256"], path / _STATE)
    return step, _insert_tensors(skeleton, tensors)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _state_hash(step: int, skeleton: Any) -> str:
    return content_hash(str(step), json.dumps(skeleton))


def _extract_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with each tensor moved to `tensors` and replaced by its name."""
    if isinstance(value, Tensor):
        tensors[key] = value
        return {_TENSOR_KEY: key}
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or name == _TENSOR_KEY:
                raise TypeError(f"keys must be text, not {_TENSOR_KEY}; got {name!r}")
        return {
            name: _extract_tensors(item, f"{key}/{name}", tensors)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _extract_tensors(item, f"{key}/{i}", tensors)
            for i, item in enumerate(value)
        ]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} has no place in a checkpoint ({key!r})")


def _insert_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_TENSOR_KEY}:
            name = value[_TENSOR_KEY]
            if not isinstance(name, str) or name not in tensors:
                raise UserError(f"{_TENSORS} lacks {name} of {_STATE}")
            return tensors[name]
        return {name: _insert_tensors(item, tensors) for name, item in value.items()}
    if isinstance(value, list):
        return [_insert_tensors(item, tensors) for item in value]
    return value


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    paths = (path for path in folder.iterdir() if _STEP_NAME.fullmatch(path.name))
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _remove_old(folder: Path) -> None:
    leftovers = [path for path in folder.iterdir() if _LEFTOVER.fullmatch(path.name)]
    for path in [*_checkpoints(folder)[:-N_KEPT], *leftovers]:
        shutil.rmtree(path, ignore_errors=True)
