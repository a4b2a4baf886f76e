"""Word vectors from a text file: a word and its numbers on each line.

The form of GloVe and of word2vec's text files, whose first line has two numbers. A name
that ends in .gz is gzip.
"""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from circuitcut.storage.errors import UserError, one_line
from circuitcut.storage.reading.files import check_regular

MOST_LINE = 2**20


def read_word_vectors(path: Path, words: Sequence[str]) -> np.ndarray:
    """Vectors of the given words, (word, width) float32, NaN for those without one.

    A word that the file has not is looked up in lower case.

    Raises:
        UserError: When the file is missing or malformed, naming the line, or has none
            of the words.
    """
    wanted: dict[str, list[int]] = {}
    for place, word in enumerate(words):
        for form in dict.fromkeys((word, word.lower())):
            wanted.setdefault(form, []).append(place)
    vectors: np.ndarray | None = None
    is_exact = np.zeros(len(words), dtype=bool)
    for number, line in enumerate(_lines(path), start=1):
        word, *numbers = line.rstrip().split(" ")
        if number == 1 and len(numbers) == 1:
            continue  # number of words and width
        if word not in wanted:
            continue
        row = _row(path, number, numbers)
        if vectors is None:
            vectors = np.full((len(words), len(row)), np.nan, dtype=np.float32)
        if len(row) != vectors.shape[1]:
            raise UserError(
                f"{path}:{number}: expected {vectors.shape[1]} numbers as on the lines "
                f"before, got {len(row)}"
            )
        for place in wanted[word]:
            exact = words[place] == word
            if exact or not is_exact[place]:
                vectors[place] = row
                is_exact[place] |= exact
    if vectors is None:
        raise UserError(
            f"--word_vectors {path} has none of the {len(words)} words, such as "
            f"{', '.join(words[:3])}; give vectors of the data's language, or leave it "
            "out for the model's own embeddings"
        )
    return vectors


def _row(path: Path, number: int, numbers: Iterable[str]) -> np.ndarray:
    try:
        row = np.array([float(text) for text in numbers], dtype=np.float32)
    except ValueError as error:
        raise UserError(
            f"{path}:{number}: expected a word and numbers, separated by one space: "
            f"{one_line(error)}"
        ) from error
    if not len(row) or not np.isfinite(row).all():
        raise UserError(f"{path}:{number}: expected finite numbers after the word")
    return row


def _lines(path: Path) -> Iterator[str]:
    """The lines, one at a time: such files have gigabytes."""
    check_regular(path)
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            while line := file.readline(MOST_LINE):
                if len(line) == MOST_LINE:
                    raise UserError(
                        f"--word_vectors {path} has a line of {MOST_LINE:,} characters "
                        "or more; give a word and its numbers on each line"
                    )
                yield line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read --word_vectors {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--word_vectors {path} is not UTF-8: {error.reason}"
        ) from error
