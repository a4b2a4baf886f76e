"""Word vectors: exact words first, lower case else, NaN without one."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from circuitcut.data.word_vectors import read_word_vectors
from circuitcut.storage.errors import UserError

WORDS = ["Paris", "paris", "Rome", "absent"]


def written(folder: Path, text: str) -> Path:
    path = folder / "vectors.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "order", [("paris 1 2", "Paris 3 4"), ("Paris 3 4", "paris 1 2")]
)
def test_a_word_has_its_own_vector_else_that_of_its_lower_case(
    order: tuple[str, str], tmp_path: Path
):
    path = written(tmp_path, "\n".join(["3 2", *order, "rome 5 6", "other 7 8"]))
    found = read_word_vectors(path, WORDS)
    assert found[:3].tolist() == [[3, 4], [1, 2], [5, 6]]
    assert np.isnan(found[3]).all()


def test_a_gzip_file_is_read(tmp_path: Path):
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(gzip.compress(b"Rome 1.5 -2\n"))
    assert read_word_vectors(path, WORDS)[2].tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Rome 1 x\n", ":1: expected a word and numbers"),
        ("Rome 1 nan\n", ":1: expected finite numbers"),
        ("Rome 1 2\nparis 1\n", ":2: expected 2 numbers"),
        ("london 1 2\n", "has none of the 4 words, such as Paris"),
        ("", "has none of the 4 words"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, tmp_path: Path):
    with pytest.raises(UserError, match=said):
        read_word_vectors(written(tmp_path, text), WORDS)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.txt: .*check the path"):
        read_word_vectors(tmp_path / "nowhere.txt", WORDS)
