"""Words of a list, such as first names, as the entity type of a corpus."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from circuitcut.data.ner.files import TaggedFiles
from circuitcut.data.ner.tagged import OUTSIDE, normalised
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, lines_of, read_text

SUFFIX = ".txt"
"""Of the lists in a folder."""
Entry = tuple[str, ...]


def read_word_list(path: Path) -> frozenset[Entry]:
    """The entries of a file, one a line, or of all `.txt` files of a folder.

    An entry of several words stands for these words in this order.

    Raises:
        UserError: When the file is missing, or there is no entry.
    """
    if not path.exists():
        raise UserError(
            f"--concept_words must be an existing file or folder, got {path}"
        )
    files = [path]
    if path.is_dir():
        files = [file for file in files_in(path) if file.suffix == SUFFIX]
    lines = (line for file in files for line in lines_of(read_text(file)))
    entries = frozenset(entry for line in lines if (entry := tuple(line.split())))
    if not entries:
        raise UserError(f"--concept_words {path} holds no word; give one a line")
    return entries


def marked(tagged: TaggedFiles, entries: Collection[Entry], kind: str) -> TaggedFiles:
    """The sentences with the entity type `kind` on every entry, longest ones first.

    Upper and lower case differ. Other words keep their tags; an entity of which a part
    becomes `kind` is shortened or divided.

    Raises:
        UserError: When no entry occurs, or no word is of none.
    """
    known = set(entries)
    longest = max(map(len, known))
    has_begins = any(t[:2] == "B-" for s in tagged.sentences for t in s.tags)
    is_plain = all(t == OUTSIDE for s in tagged.sentences for t in s.tags)
    first = f"B-{kind}" if has_begins or is_plain else f"I-{kind}"
    tags: list[list[str]] = []
    n_marked = n_others = 0
    for sentence in tagged.sentences:
        new = list(sentence.tags)
        for start, stop in _entries_in(sentence.words, known, longest):
            new[start:stop] = [first, *[f"I-{kind}"] * (stop - start - 1)]
            n_marked += 1
        n_others += sum(tag not in (f"B-{kind}", f"I-{kind}") for tag in new)
        tags.append(new)
    if not n_marked:
        raise UserError(
            f"none of the {len(known)} entries of --concept_words occurs in --data; "
            "upper and lower case differ, and --data must be divided into words"
        )
    if not n_others:
        raise UserError(
            "the entries of --concept_words are all words of --data: none is left to "
            "retain; give a shorter list"
        )
    pairs = zip(tagged.sentences, normalised(tags), strict=True)
    return replace(tagged, sentences=tuple(replace(s, tags=t) for s, t in pairs))


def _entries_in(
    words: Sequence[str], known: Collection[Entry], longest: int
) -> list[tuple[int, int]]:
    """First word and one past the last of every entry, from left to right."""
    found, start = [], 0
    while start < len(words):
        for stop in range(min(len(words), start + longest), start, -1):
            if tuple(words[start:stop]) in known:
                found.append((start, stop))
                start = stop - 1
                break
        start += 1
    return found
