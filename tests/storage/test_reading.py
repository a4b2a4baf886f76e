"""Files are opened in one place: lines, encodings, sizes, pipes and devices."""

import gzip
import os
from pathlib import Path

import pytest

from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import lines_of, read_bytes, read_text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_end_of_a_line_gives_the_same_lines(end: str):
    assert lines_of(f"a b{end}{end}c{end}") == ["a b", "", "c"]
    assert lines_of(f"a{end}b") == ["a", "b"]


def test_separators_within_a_line_do_not_end_it():
    assert lines_of("a\u2028b\x0cc\x85d\n") == ["a\u2028b\x0cc\x85d"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n\xffc", "line 3: text must be UTF-8"),
        (b"a\rb\rc\r\xe9", "line 4: text must be UTF-8"),
        (b"\xef\xbb\xbfa\n\xff", "line 2: text must be UTF-8"),
        ("a".encode("utf-16"), "line 1: text must be UTF-8, got UTF-16"),
        (b"a\nb\0c", "line 2: text must not hold the character 0"),
    ],
)
def test_other_encodings_are_refused_by_their_line(
    content: bytes, expected: str, tmp_path: Path
):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"a.txt, {expected}"):
        read_text(tmp_path / "a.txt")


def test_the_mark_that_begins_some_files_is_no_part_of_the_text(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "a.txt") == "a"


def test_a_small_gzipped_file_that_fills_the_memory_is_refused(tmp_path: Path):
    bomb = gzip.compress(bytes(8 * 2**20))
    assert len(bomb) < 10_000
    (tmp_path / "a.gz").write_bytes(bomb)
    assert len(read_bytes(tmp_path / "a.gz", most=8 * 2**20)) == 8 * 2**20
    with pytest.raises(UserError, match="more than 4 MiB when decompressed"):
        read_bytes(tmp_path / "a.gz", most=4 * 2**20)
    (tmp_path / "a").write_bytes(bytes(3 * 2**20))
    with pytest.raises(UserError, match="more than 2 MiB, the most"):
        read_bytes(tmp_path / "a", most=2 * 2**20)


@pytest.mark.parametrize("cut", [0, 10, 25])
def test_damaged_gzip_is_told(cut: int, tmp_path: Path):
    whole = gzip.compress(b"a text of some length " * 9)
    (tmp_path / "a.gz").write_bytes(whole[:cut] + b"?" + whole[cut + 9 :])
    with pytest.raises(UserError, match=r"a\.gz: truncated or not gzip"):
        read_bytes(tmp_path / "a.gz")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path, expected in (
        (tmp_path / "pipe", "it is a pipe or a device"),
        (Path(os.devnull), "it is a pipe or a device"),
        (tmp_path, "it is a folder"),
        (tmp_path / "none", "No such file or directory; check the path"),
        (tmp_path / "nul\0", "embedded null byte"),
    ):
        with pytest.raises(UserError, match=expected):
            read_bytes(path)
