"""Files are opened here: whole, of a limited size, gzipped or not, and never a device.

Everything else in this program that reads a file calls these functions, so that a pipe
does not block, a small gzipped file does not fill the memory, and a text of another
encoding is refused by its line.
"""

import errno
import gzip
import os
import stat
import zlib
from pathlib import Path

from circuitcut.storage.errors import UserError

MOST_BYTES = 2**30
"""Of a file of data, decompressed: 1 GiB."""
_CHUNK = 2**20
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def check_regular(path: Path) -> None:
    """Refuse what cannot be read as a file: what is missing, a folder, a device.

    Raises:
        UserError: Naming it, and what to do.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read {path}: it is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise UserError(
            f"cannot read {path}: it is a pipe or a device; save its content to a file "
            "and name that"
        )


def unreadable(path: Path, error: Exception) -> UserError:
    """The error of a file that the system does not give."""
    reason = getattr(error, "strerror", None) or str(error)
    missing = getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR)
    return UserError(f"cannot read {path}: {reason}{'; check the path' * missing}")


def files_in(folder: Path) -> list[Path]:
    """What lies in a folder, by name.

    Raises:
        UserError: When it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error


def read_bytes(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """The content of a file, decompressed if its name ends in `.gz`.

    Args:
        most: Number of bytes that the content may have.

    Raises:
        UserError: When it cannot be read, is larger, or is damaged gzip.
    """
    check_regular(path)
    is_gzip = path.name.lower().endswith(".gz")
    content = bytearray()
    try:
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                content += chunk
                if len(content) > most:
                    raise UserError(
                        f"{path} holds more than {most // 2**20:,} MiB"
                        f"{' when decompressed' * is_gzip}, the most that is read; "
                        "split it into several files, or take a part of it"
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: truncated or not gzip ({error}); download or compress it again"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    return bytes(content)


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file; errors as in `read_bytes`, and for other content."""
    return as_text(read_bytes(path, most=most), path)


def as_text(raw: bytes, path: Path) -> str:
    """The bytes of a file as text, without the mark that begins some UTF-8 files.

    Raises:
        UserError: When they are not UTF-8, or hold the character 0, which no text has.
    """
    if raw.startswith(_UTF_16):
        raise UserError(f"{path}, line 1: text must be UTF-8, got UTF-16; convert it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # the position is that after a mark at the beginning
        line = len(lines_of(error.object[: error.start].decode("utf-8") + "?"))
        raise UserError(
            f"{path}, line {line}: text must be UTF-8; convert the file"
        ) from error
    if "\0" in text:
        line = len(lines_of(text[: text.index("\0") + 1]))
        raise UserError(
            f"{path}, line {line}: text must not hold the character 0; it is no text "
            "file, or damaged"
        )
    return text


def lines_of(text: str) -> list[str]:
    r"""The lines of a text without their ends: `\n`, `\r\n` or `\r`.

    Unlike `str.splitlines`, no other character ends a line: corpora have form feeds and
    Unicode's line separators within their lines.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines
