"""BMLAMA-17: the same facts as cloze prompts in 17 languages, a file for each.

Qi, Fernández & Bisazza (2023), "Cross-Lingual Consistency of Factual Knowledge in
Multilingual Language Models", https://arxiv.org/abs/2310.10378. The files name no
relation: it is the prompt of the English file's same row without its subject, or of the
file's own row where no English file is beside it. Row i is the same fact in every file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitcut.data.facts.records import SUBJECT_SLOT, Fact, checked_prompt
from circuitcut.data.prompts.records import MASK
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, lines_of, read_text
from circuitcut.storage.reading.typed_fields import shown

_HEADER = ("Prompt", "Ans")
_ENGLISH = "en"
_SUFFIXES = (".tsv.gz", ".tsv")
_N_FIELDS = 4


def is_bmlama(path: Path) -> bool:
    """Whether a `.tsv` begins with the columns of BMLAMA."""
    lines = lines_of(read_text(path))
    return tuple((lines or [""])[0].split("\t")[:2]) == _HEADER


def languages_in(folder: Path) -> list[str]:
    """Names of the languages' files in a folder; empty if one is no BMLAMA file."""
    files = [file for file in files_in(folder) if file.name.endswith(_SUFFIXES)]
    if not files or not all(is_bmlama(file) for file in files):
        return []
    return [file.name for file in files]


@dataclass(frozen=True)
class _Row:
    where: str
    prompt: str
    answer: str
    candidates: tuple[str, ...]
    subject: str

    @property
    def template(self) -> str:
        return self.prompt.replace(self.subject, SUBJECT_SLOT, 1)

    def fact(
        self,
        relation: str,
        language: str = "",
        same_as: tuple[str, str, str] | None = None,
    ) -> Fact:
        return Fact(
            self.subject,
            relation,
            self.answer,
            (self.prompt,),
            choices=tuple(c for c in self.candidates if c != self.answer),
            where=self.where,
            language=language,
            same_as=same_as,
        )


def read_bmlama(path: Path) -> list[Fact]:
    """A fact for every row of one language's file, with the wrong candidates.

    Raises:
        UserError: When a row has another number of fields, an empty field, no mask, or
            a prompt without its subject; the message names file and line.
    """
    rows = list(_rows(path))
    relations = [row.template for row in rows]
    english = _file_of(path.parent, _ENGLISH)
    if english is not None and english != path:
        named = [row.template for row in _rows(english)]
        relations = named if len(named) == len(rows) else relations
    return [row.fact(relation) for row, relation in zip(rows, relations, strict=True)]


def read_languages(folder: Path, languages: Sequence[str]) -> list[Fact]:
    """The facts of several languages, those of the first one first.

    A fact is the same in all of them where its rows have the same number. Its relation
    is named by the English row, or by that of the first language without `en.tsv.gz`.

    Args:
        folder: Has a file such as `fr.tsv.gz` for every language.

    Raises:
        UserError: When a language has no file, the files have different numbers of
            rows, or a row is malformed; the message names file and line.
    """
    rows: dict[str, list[_Row]] = {}
    for language in (_ENGLISH, *languages):
        file = _file_of(folder, language)
        if file is None and language in languages:
            raise UserError(
                f"--language must name files of {folder} such as "
                f"{', '.join(languages_in(folder)) or 'en.tsv.gz'}, got "
                f"{shown(language)}"
            )
        if file is not None and language not in rows:
            rows[language] = list(_rows(file))
    reference = rows.get(_ENGLISH, rows[languages[0]])
    for language in languages:
        if len(rows[language]) != len(reference):
            raise UserError(
                f"--data {folder}: row i must be the same fact in every language, got "
                f"{len(reference)} rows and, of {language}, {len(rows[language])}"
            )
    return [
        row.fact(same.template, language, (same.subject, same.template, same.answer))
        for language in languages
        for row, same in zip(rows[language], reference, strict=True)
    ]


def _file_of(folder: Path, language: str) -> Path | None:
    files = [folder / f"{language}{suffix}" for suffix in _SUFFIXES]
    return next((file for file in files if file.is_file()), None)


def _rows(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(lines_of(read_text(path))[1:], start=2):
        where = f"{path}, line {number}"
        fields = [_unquoted(field.strip()) for field in line.split("\t")]
        if len(fields) != _N_FIELDS or not all(fields):
            raise UserError(
                f"{where}: a row must have prompt, answer, candidates and subject, "
                f"none of them empty, got {shown(fields)}"
            )
        prompt, answer, candidates, subject = fields
        prompt = checked_prompt(prompt, where)
        if MASK not in prompt:
            raise UserError(f"{where}: a prompt must have one <mask>, got none")
        if subject not in prompt:
            raise UserError(
                f"{where}: a prompt must hold its subject {shown(subject)}, got "
                f"{shown(prompt)}"
            )
        yield _Row(where, prompt, answer, tuple(candidates.split(", ")), subject)


def _unquoted(field: str) -> str:
    """A field without the quotes of CSV, which a few rows have."""
    if len(field) > 1 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field
