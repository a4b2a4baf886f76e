"""Tagged sentences from local files: CoNLL columns, JSON, a token and a label file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitcut.data.ner.plain import plain_sentences
from circuitcut.data.ner.tables import is_tagged_table, table_sentences
from circuitcut.data.ner.tagged import TaggedSentence, normalised
from circuitcut.data.splits import SOURCES, Source
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, lines_of, read_text

DOCUMENT_START = "-DOCSTART-"
SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".tsv", ".txt", ".json", ".jsonl")
_COMMENTS = ("# id", "# newdoc", "# sent_id", "# text")


@dataclass(frozen=True)
class TaggedFiles:
    """Sentences with their groups and official parts, which the splits respect."""

    sentences: tuple[TaggedSentence, ...]
    groups: tuple[int, ...]
    """Document of each sentence, or its file if the file marks no documents."""
    sources: tuple[Source, ...]
    """Official part of each sentence; `train` for all if the data have no parts."""


def read_tagged(
    path: Path,
    labels_file: Path | None,
    data_format: str,
    text_column: str | None = None,
    label_column: str | None = None,
) -> TaggedFiles:
    """Sentences of a CoNLL or JSON file, a folder of them, or a token/label pair.

    With the format `text` every word has the tag `O` (`data.ner.plain`).

    Raises:
        UserError: When a file is missing or malformed; the message names file and line.
    """
    if not path.exists():
        raise UserError(f"--data must be an existing file or folder, got {path}")
    if data_format not in ("auto", "conll", "parallel", "text"):
        raise UserError(
            "--data_format must be auto, conll or parallel for tagged text, or text "
            f"with --concept_words, got {data_format!r}"
        )
    if (data_format == "parallel") > (labels_file is not None):
        raise UserError(
            "--data_format parallel needs --labels_file, the labels of --data"
        )
    if labels_file is not None:
        if data_format in ("conll", "text") or path.is_dir():
            raise UserError(
                f"--labels_file needs --data to be a token file, got {path}"
            )
        return _collected([(path, list(_pairs(path, labels_file)))])

    def sentences(file: Path) -> list[_Lines]:
        if data_format == "text":
            return list(plain_sentences(file))
        if data_format == "auto" and is_tagged_table(file):
            return list(table_sentences(file, text_column, label_column))
        return list(_conll(file))

    if not path.is_dir():
        return _collected([(path, sentences(path))])
    files = [file for file in files_in(path) if _is_tagged_text(file)]
    if not files:
        raise UserError(
            f"--data folder {path} holds no file ending in {', '.join(SUFFIXES)}"
        )
    return _collected([(file, sentences(file)) for file in files])


_Lines = tuple[list[str], list[str], int]
"""Words and tags of one sentence, and the number of its document within the file."""


def _is_tagged_text(file: Path) -> bool:
    name = file.name.removesuffix(".gz").lower()
    return file.is_file() and name.endswith(SUFFIXES) and not name.startswith("readme")


def _collected(files: Sequence[tuple[Path, list[_Lines]]]) -> TaggedFiles:
    words: list[tuple[str, ...]] = []
    tags: list[list[str]] = []
    documents: list[int] = []
    groups: list[int] = []
    sources: list[Source] = []
    numbers: dict[tuple[int, int], int] = {}
    for file_number, (file, sentences) in enumerate(files):
        official = SOURCES.get(file.name.split(".")[0].lower(), "train")
        marked = len({document for _, _, document in sentences}) > 1
        for sentence_words, sentence_tags, document in sentences:
            group = numbers.setdefault((file_number, document), len(numbers))
            # without marked documents each sentence is one, with a negative number
            documents.append(group if marked else -1 - len(words))
            words.append(tuple(sentence_words))
            tags.append(sentence_tags)
            groups.append(group)
            sources.append(official if len(files) > 1 else "train")
    if not words:
        raise UserError(
            f"{files[0][0]} holds no sentence; give one word and tag per line"
        )
    tagged = map(TaggedSentence, words, normalised(tags), documents)
    return TaggedFiles(tuple(tagged), tuple(groups), tuple(sources))


def _conll(file: Path) -> Iterator[_Lines]:
    """Sentences of one file; the first column is the word, the last one the tag."""
    words: list[str] = []
    tags: list[str] = []
    document, n_columns = 0, 0
    for number, line in enumerate([*lines_of(read_text(file)), ""], start=1):
        columns = line.rstrip().split("\t") if "\t" in line else line.split()
        starts_document = bool(columns) and columns[0].startswith(DOCUMENT_START)
        if not line.strip() or starts_document:
            if words:
                yield words, tags, document
                words, tags = [], []
            document += starts_document
            continue
        if not words and line.startswith(_COMMENTS):
            continue
        n_columns = n_columns or max(len(columns), 2)
        if len(columns) != n_columns:
            raise UserError(
                f"{file}:{number}: expected {n_columns} columns, word first, tag last, "
                f"got {line.strip()[:60]!r}"
            )
        if columns[0].strip():  # some words of tweets have no visible character
            words.append(columns[0])
            tags.append(columns[-1])


def _pairs(tokens_file: Path, labels_file: Path) -> Iterator[_Lines]:
    """Sentence i: its words are line i of one file, its labels line i of the other."""
    tokens = lines_of(read_text(tokens_file))
    labels = lines_of(read_text(labels_file))
    if len(tokens) != len(labels):
        raise UserError(
            f"{tokens_file} has {len(tokens)} lines but {labels_file} has "
            f"{len(labels)}; both must have one line per sentence"
        )
    for number, (token_line, label_line) in enumerate(
        zip(tokens, labels, strict=True), start=1
    ):
        words, tags = token_line.split(), label_line.split()
        if len(words) != len(tags):
            raise UserError(
                f"{labels_file}:{number}: expected {len(words)} labels, one per word "
                f"of {tokens_file.name}:{number}, got {len(tags)}"
            )
        if words:
            yield words, tags, 0
