"""Facts from files and folders of every known form."""

from collections.abc import Sequence
from pathlib import Path

from circuitcut.data.facts.bmlama import (
    is_bmlama,
    languages_in,
    read_bmlama,
    read_languages,
)
from circuitcut.data.facts.lre import is_relation, json_of, read_lre, relation_files
from circuitcut.data.facts.pararel import is_pararel, read_pararel
from circuitcut.data.facts.records import Fact, languages_of
from circuitcut.data.facts.tables import facts_of
from circuitcut.data.hub import HUB_PREFIX
from circuitcut.data.tables import (
    TABLE_FORMATS,
    read_hub_table,
    read_tables,
    table_format,
)
from circuitcut.storage.errors import UserError

FORMATS = ("pararel", "lre", "bmlama", *TABLE_FORMATS)


def read_facts(
    data: str,
    data_format: str = "auto",
    hub_config: str | None = None,
    hub_revision: str | None = None,
    languages: Sequence[str] = (),
) -> tuple[list[Fact], list[str]]:
    """The facts of a file, a folder or a hub data set, and texts to retain beside them.

    Args:
        data: ParaRel's folder; a relation of LRE or a folder of them; one language of
            BMLAMA; a table (known_1000, CounterFact, our own) or a folder of tables; or
            `hub:owner/name`.
        data_format: One of `FORMATS`; `auto` looks into the files.
        languages: Facts in these languages alone, in this order: of BMLAMA's folder
            their files, of a table the rows with such a `language`. None: all facts.

    Raises:
        UserError: When it cannot be read, holds no fact, has no facts in a language, or
            a line is malformed; the message names file and line.
    """
    if data.startswith(HUB_PREFIX):
        rows = read_hub_table(data, hub_config, hub_revision)
        facts, texts = facts_of(rows)
        return _in_languages(facts, languages, data), texts
    if data_format not in ("auto", *FORMATS):
        raise UserError(
            f"--data_format must be auto, {', '.join(FORMATS)} for facts, got "
            f"{data_format!r}"
        )
    path = Path(data)
    found = _format_of(path) if data_format == "auto" else data_format
    texts = []
    match found:
        case "pararel":
            facts = read_pararel(path)
        case "lre":
            facts = read_lre(path)
        case "bmlama" if languages and path.is_dir():
            facts = read_languages(path, languages)
        case "bmlama":
            facts = read_bmlama(_one_language(path))
        case _:
            facts, texts = facts_of(read_tables(path, found))
    if not facts:
        raise UserError(f"--data {data} must hold facts, got none")
    return _in_languages(facts, languages, data), texts


def _in_languages(facts: list[Fact], languages: Sequence[str], data: str) -> list[Fact]:
    """The facts in these languages, in the languages' order; all if none is named."""
    if not languages:
        return facts
    names = languages_of(facts)
    for language in languages:
        if language not in names:
            raise UserError(
                f"--language must be one of --data {data}, which has "
                f"{', '.join(names) or 'no languages (a column language names them)'}, "
                f"got {language!r}"
            )
    return [fact for name in languages for fact in facts if fact.language == name]


def _format_of(path: Path) -> str:
    if path.is_dir():
        if is_pararel(path):
            return "pararel"
        if languages_in(path):
            return "bmlama"
        files = relation_files(path)
        return "lre" if files and is_relation(json_of(files[0])) else "auto"
    kind = table_format(path)
    if kind == "json" and is_relation(json_of(path)):
        return "lre"
    return "bmlama" if kind == "tsv" and is_bmlama(path) else "auto"


def _one_language(path: Path) -> Path:
    if path.is_dir():
        raise UserError(
            f"--data must name one language's file in {path}, such as "
            f"{', '.join(languages_in(path)) or 'en.tsv.gz'}, or give several with "
            "--language"
        )
    return path
