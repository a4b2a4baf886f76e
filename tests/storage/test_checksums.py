"""Digests of files: a changed byte, a missing file and another file are noticed."""

import hashlib
import logging
from pathlib import Path

import pytest

from circuitcut.storage.checksums import (
    check_digest,
    damaged_files,
    digests_of,
    file_digest,
)
from circuitcut.storage.errors import UserError


def test_every_file_of_a_folder_is_listed_and_every_damage_found(tmp_path: Path):
    (tmp_path / "part").mkdir()
    for name in ("a", "b", "part/c"):
        (tmp_path / name).write_text(name)
    digests = digests_of(tmp_path)
    assert digests["part/c"] == hashlib.sha256(b"part/c").hexdigest()
    assert damaged_files(tmp_path, digests) == []
    (tmp_path / "a").write_text("A")
    (tmp_path / "part" / "c").unlink()
    assert damaged_files(tmp_path, digests) == ["a", "part/c"]


def test_a_file_without_a_checksum_is_accepted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file, header = tmp_path / "mask.safetensors", tmp_path / "mask.json"
    file.write_bytes(b"1")
    check_digest(file, file_digest(file), header)
    with pytest.raises(UserError, match=r"not the file that mask\.json .* describes"):
        check_digest(file, file_digest(file)[::-1], header)
    with caplog.at_level(logging.INFO):
        check_digest(file, None, header)
    assert "mask.json has no checksum of mask.safetensors" in caplog.text
