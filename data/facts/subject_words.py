"""Words of subjects: which words count as attributes of whom.

From a table, from the objects of facts, or from the paragraphs of a corpus that BM25
ranks highest for the subject's name, as M. Geva, J. Bastings, K. Filippova and A.
Globerson (2023), "Dissecting Recall of Factual Associations in Auto-Regressive Language
Models", https://arxiv.org/abs/2304.14767, take them from Wikipedia. The library is
bm25s (X. H. Lu 2024, https://arxiv.org/abs/2407.03618) with its defaults: k1 1.5, b
.75, Lucene's formula, English stop words.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import bm25s
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from circuitcut.data.facts.records import Fact
from circuitcut.data.tables import TableRow, read_tables, suffix_of
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import check_type, shown

Words = dict[str, frozenset[str]]
"""Subject -> its words in lower case."""
N_PARAGRAPHS = 100
_SHORTEST = 3
_WORD = re.compile(r"\w+")


def counts_as_word(text: str) -> bool:
    """Whether a word says anything: three characters or more, and no stop word."""
    return len(text) >= _SHORTEST and text not in ENGLISH_STOP_WORDS


def words_in(texts: Iterable[str]) -> frozenset[str]:
    """The words of some texts that count, in lower case."""
    found = {word for text in texts for word in _WORD.findall(text.lower())}
    return frozenset(word for word in found if counts_as_word(word))


def words_of_facts(facts: Sequence[Fact]) -> Words:
    """Every subject with the words of the objects of all its facts."""
    objects: dict[str, list[str]] = {}
    for fact in facts:
        objects.setdefault(fact.subject, []).append(fact.object)
    return {subject: words_in(found) for subject, found in objects.items()}


def words_of_paragraphs(
    subjects: Sequence[str], paragraphs: Sequence[str], n_paragraphs: int = N_PARAGRAPHS
) -> Words:
    """Every subject with the words of the paragraphs that BM25 ranks highest for it.

    Paragraphs that share no word with the subject's name are never taken.

    Args:
        n_paragraphs: At most so many a subject.

    Raises:
        UserError: When no paragraph has a word.
    """
    if not any(words_in([text]) for text in paragraphs):
        raise UserError(
            "the corpus of the subjects' words must hold words, got none; name another "
            "text"
        )
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    ranked = bm25s.BM25()
    ranked.index(
        bm25s.tokenize(list(paragraphs), show_progress=False), show_progress=False
    )
    found: Words = {}
    for subject in subjects:
        query = bm25s.tokenize([subject], show_progress=False)
        (places,), (scores,) = ranked.retrieve(
            query, k=min(n_paragraphs, len(paragraphs)), show_progress=False
        )
        taken = [
            paragraphs[place]
            for place, score in zip(places, scores, strict=True)
            if score > 0
        ]
        found[subject] = words_in(taken)
    return found


def common_words(paragraphs: Sequence[str], share: float) -> frozenset[str]:
    """Words, in lower case, of more than this share of the paragraphs that have any."""
    sets = [words for text in paragraphs if (words := words_in([text]))]
    counts = Counter(word for words in sets for word in words)
    most = share * len(sets)
    return frozenset(word for word, n in counts.items() if n > most)


def read_subject_words(path: Path) -> Words:
    """Words of subjects from a file.

    Args:
        path: A JSON object {subject: [word, ...]}, or a table (CSV, TSV, JSON, JSON
            lines) with the columns subject and words: one word, several separated by
            `|`, or a list.

    Raises:
        UserError: When it cannot be read or holds no word; naming file and line.
    """
    found = _object(path) if suffix_of(path) == ".json" else None
    if found is None:
        found = _table(read_tables(path, "auto"))
    words = {subject: words_in(texts) for subject, texts in found.items()}
    if not any(words.values()):
        raise UserError(
            f"{path} must hold words of subjects, got none of three letters that is no "
            'stop word; write {"France": ["Paris", "wine"]}, or the columns subject '
            "and words"
        )
    return words


def _object(path: Path) -> Mapping[str, list[str]] | None:
    """The object of a JSON file; None: it is a list of rows."""
    try:
        content = parse_json(read_text(path))
    except JsonProblem as error:
        raise UserError(f"{path}: {error}") from error
    if isinstance(content, list):
        return None
    check_type(content, dict[str, list[str]], str(path))
    return content


def _table(rows: Sequence[TableRow]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        subject, words = _cell(row, "subject"), _cell(row, "words")
        if not isinstance(subject, str) or not subject.strip():
            raise UserError(f"{row.where}: subject must be text, got {shown(subject)}")
        if isinstance(words, str):
            words = words.split("|")
        check_type(words, list[str], f"{row.where}: words")
        found.setdefault(subject.strip(), []).extend(words)
    return found


def _cell(row: TableRow, name: str) -> Any:
    names = {key.strip().lower(): key for key in row.values}
    for column in (name, name.removesuffix("s")):
        if column in names:
            return row.values[names[column]]
    raise UserError(
        f"{row.where}: a row must have the columns subject and words, got "
        f"{shown(list(row.values))}"
    )
