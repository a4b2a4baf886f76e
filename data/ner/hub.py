"""Tagged sentences of hub data sets: a column of words and a column of tags."""

from collections.abc import Mapping
from typing import Any

from circuitcut.data.ner.files import TaggedFiles
from circuitcut.data.ner.tables import TAG_COLUMNS, TOKEN_COLUMNS
from circuitcut.data.ner.tagged import TaggedSentence, normalised
from circuitcut.data.splits import SOURCES, Source
from circuitcut.storage.errors import UserError


def tagged_from_hub(
    parts: Mapping[str, Any], token_column: str | None, tag_column: str | None
) -> TaggedFiles:
    """Sentences of every part; the column's `ClassLabel` gives the names of the tags.

    Parts called train, validation and test are official; every sentence is a group.

    Raises:
        UserError: When a column is missing or a row has more words than tags or fewer.
    """
    words: list[tuple[str, ...]] = []
    tags: list[list[str]] = []
    sources: list[Source] = []
    for part, table in parts.items():
        tokens_of = _column(table, token_column, TOKEN_COLUMNS, "--text_column")
        tags_of = _column(table, tag_column, TAG_COLUMNS, "--label_column")
        names = _tag_names(table.features[tags_of])
        rows = zip(table[tokens_of], table[tags_of], strict=True)
        for number, (row_words, row_tags) in enumerate(rows):
            if len(row_words) != len(row_tags):
                raise UserError(
                    f"row {number} of {part!r} has {len(row_words)} words but "
                    f"{len(row_tags)} tags; choose --text_column and --label_column"
                )
            if names is None and any(isinstance(tag, int) for tag in row_tags):
                raise UserError(
                    f"column {tags_of!r} holds numbers without names; choose another "
                    "--label_column"
                )
            if row_words:
                words.append(tuple(map(str, row_words)))
                tags.append([names[t] if names else str(t) for t in row_tags])
                sources.append(SOURCES.get(part.lower(), "train"))
    numbers = range(len(words))
    sentences = map(TaggedSentence, words, normalised(tags), numbers)
    return TaggedFiles(tuple(sentences), tuple(numbers), tuple(sources))


def _tag_names(feature: Any) -> list[str] | None:
    return getattr(getattr(feature, "feature", None), "names", None)


def _column(table: Any, name: str | None, usual: tuple[str, ...], flag: str) -> str:
    candidates = usual if name is None else (name,)
    for column in candidates:
        if column in table.column_names:
            return column
    raise UserError(
        f"{flag} must name a column of the data set, got {name or 'none'}; it has "
        f"{', '.join(table.column_names)}"
    )
