"""Plain text as sentences without tags, for words that a list marks."""

import re
from collections.abc import Iterator
from pathlib import Path

from circuitcut.data.ner.tagged import OUTSIDE
from circuitcut.data.text.files import read_rows

_ENDS = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


def plain_sentences(path: Path) -> Iterator[tuple[list[str], list[str], int]]:
    """Words, tags (all outside) and document number of every piece of a text file.

    A piece is a line, or at most 80 words of one. A heading of WikiText begins a
    document; without one every line is a document. Punctuation at either end of a word
    is a word of its own.
    """
    documents: dict[str, int] = {}
    for row in read_rows(str(path), "text", None, None):
        words = words_of(str(row.values["text"]))
        document = str(row.values["document"])
        if words:
            number = documents.setdefault(document, len(documents))
            yield words, [OUTSIDE] * len(words), number


def words_of(text: str) -> list[str]:
    """`["Hello", ",", "Ann"]` of `Hello, Ann`."""
    words: list[str] = []
    for piece in text.split():
        match = _ENDS.match(piece)
        assert match is not None
        words += [part for part in match.groups() if part]
    return words
