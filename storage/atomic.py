"""Atomic file writes: write under a temporary name, fsync, rename.

A file is either complete or absent; nobody ever reads a part of it.
"""

import errno
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from circuitcut.storage.errors import UserError, one_line
from circuitcut.storage.reading.files import check_regular, read_text, unreadable
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.stopping import FULL, WriteError

if TYPE_CHECKING:
    from torch import Tensor

_ADVICE = {
    **FULL,
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that is not read-only",
    errno.EEXIST: "choose another name",
    errno.ENOTEMPTY: "choose another name",
    errno.ENOTDIR: "one of its parents is a file: choose another folder",
    errno.EISDIR: "it is a folder: choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}
_ELSE = "check the disk and the folder"


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; missing parent folders are made.

    Raises:
        UserError: When the disk is full or the folder cannot be written. An older file
            at `path` is then unchanged.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    _replace(path, write)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; `jsonable` says how paths and NaN are written."""
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def write_tensors(
    path: Path,
    tensors: Mapping[str, "Tensor"],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file; equal contents give equal bytes.

    Tensors may be views of each other and may lie on any device.
    """
    from safetensors.torch import save_file  # imports torch, which takes seconds

    copies = _without_views(tensors)

    def write(temporary: Path) -> None:
        # With no tensors, empty metadata would give a header that is not JSON.
        save_file(copies, temporary, metadata=dict(metadata) if metadata else None)
        if metadata:
            _sort_metadata_(temporary)

    _replace(path, write)


MOST_JSON = 2**28
"""Bytes of a JSON file: 256 MiB."""


def read_json(path: Path) -> Any:
    """The content of a JSON file; `strict_json` says what is refused.

    Raises:
        UserError: When the file is missing, unreadable, larger than 256 MiB or not
            JSON; the message names the line.
    """
    text = read_text(path, most=MOST_JSON)
    try:
        return parse_json(text)
    except JsonProblem as error:
        raise UserError(
            f"{path} is not JSON ({error.place}); restore it or name another file"
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; errors as in `read_json`, and for other content."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """The CPU tensors of a safetensors file.

    Raises:
        UserError: When the file is missing, truncated or not a safetensors file, or a
            bool in it is neither 0 nor 1.
    """
    import torch  # takes seconds, and flags are read without it
    from safetensors.torch import load_file

    with _safetensors_errors(path):
        tensors = load_file(path)
    for name, value in tensors.items():
        if value.dtype == torch.bool and (value.view(torch.uint8) > 1).any():
            raise UserError(
                f"{path} is damaged: a byte of the bools {name} is neither 0 nor 1; "
                "restore it or make it again"
            )
    return tensors


def read_shapes(
    path: Path, *, dtypes_of_weights: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes by name in a safetensors file's header.

    Args:
        dtypes_of_weights: The data types that a tensor named `....weight` may have, by
            their names in safetensors (`F32`).

    Raises:
        UserError: As in `read_tensors`, or when a weight has another data type.
    """
    with open_tensors(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        dtypes = {name: piece.get_dtype() for name, piece in slices.items()}
        shapes = {name: tuple(piece.get_shape()) for name, piece in slices.items()}
    for name, dtype in dtypes.items():
        if name.endswith(".weight") and dtype not in dtypes_of_weights:
            raise UserError(
                f"{path} must hold weights in {', '.join(sorted(dtypes_of_weights))}, "
                f"got {dtype} at {name}"
            )
    return shapes


def read_metadata(path: Path) -> dict[str, str]:
    """The text entries of a safetensors file's header; errors as in `read_tensors`."""
    with open_tensors(path) as file:
        return file.metadata() or {}


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file of which only the header is read; errors as in `read_tensors`.

    Yields:
        What `safetensors.safe_open` gives, for torch.
    """
    with _safetensors_errors(path), safe_open(path, framework="pt") as file:
        yield file


@contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into a UserError."""
    check_regular(path)
    try:
        yield
    except OSError as error:
        raise unreadable(path, error) from error
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file ({one_line(error)}); "
            "restore it or make it again"
        ) from error


def jsonable(value: Any) -> Any:
    """`value` in plain JSON types: paths as text, NaN and infinity as None.

    Tuples, sets, arrays and tensors become lists; their scalars become Python numbers.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [jsonable(item) for item in items]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r}")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_as_user_errors(path: Path) -> Iterator[None]:
    """Turn an OSError or SafetensorError into a `WriteError` that names `path`."""
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, _ELSE)
        reason = error.strerror or str(error)
        raise WriteError(f"cannot write {path}: {reason}; {advice}") from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        advice = _ADVICE.get(int(number[1]), _ELSE) if number else _ELSE
        raise WriteError(f"cannot write {path}: {error}; {advice}") from error


def temporary_name(path: Path) -> Path:
    """A new random name in the folder of `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    temporary = temporary_name(path)
    with os_errors_as_user_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors lets only the owner read its files
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _without_views(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """CPU tensors by name, each with its own storage: safetensors refuses views."""
    copies, storages = {}, set()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        storage = value.untyped_storage()
        if storage.nbytes() != value.nbytes or storage.data_ptr() in storages:
            value = value.clone()
        storages.add(storage.data_ptr())
        copies[name] = value
    return copies


def _sort_metadata_(path: Path) -> None:
    """Sort the metadata of a safetensors header; safetensors writes a random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = sorted(header.pop("__metadata__").items())
        ordered = {"__metadata__": dict(metadata), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False)
        assert len(text.encode()) <= length, "a reordered header is as long as before"
        file.seek(8)
        file.write(text.encode().ljust(length))
