"""SHA-256 digests of files, and the check of a file against the JSON that names it."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import check_regular

_log = logging.getLogger(__name__)


def file_digest(path: Path) -> str:
    """SHA-256 hex digest of a file.

    Raises:
        UserError: When it is missing, or is no regular file.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 hex digest of every file in a folder and below, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def damaged_files(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing or have another digest, in order."""

    def is_whole(name: str) -> bool:
        try:
            return file_digest(folder / name) == digests[name]
        except (OSError, UserError):
            return False

    return [name for name in sorted(digests) if not is_whole(name)]


def check_digest(file: Path, digest: str | None, header: Path) -> None:
    """Check a file against the SHA-256 in the JSON file that belongs to it.

    Args:
        file: The file with the tensors.
        digest: Its SHA-256 hex digest; None, from an older version of this program, is
            accepted and logged.
        header: The JSON file, for the message.

    Raises:
        UserError: When the file has another digest.
    """
    if digest is None:
        _log.info("%s has no checksum of %s: it is not checked", header, file.name)
    elif file_digest(file) != digest:
        raise UserError(
            f"{file} is not the file that {header.name} beside it describes (its "
            "SHA-256 differs): it is damaged, or of another run; restore it or make it "
            "again"
        )
