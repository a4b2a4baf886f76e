"""Relations of Hernandez et al.: prompt templates, and pairs of subject and object.

Hernandez et al. (2023), "Linearity of Relation Decoding in Transformer Language
Models", https://arxiv.org/abs/2308.09124. One JSON file a relation, in folders by kind;
the relation is named by its file. Both lists of templates are paraphrases.
"""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from circuitcut.data.facts.records import Fact, filled
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.files import files_in, read_text
from circuitcut.storage.reading.strict_json import JsonProblem, parse_json
from circuitcut.storage.reading.typed_fields import check_type

SLOT = "{}"


class _Sample(TypedDict):
    subject: str
    object: str


class _Relation(TypedDict):
    prompt_templates: list[str]
    prompt_templates_zs: NotRequired[list[str]]
    samples: list[_Sample]


def relation_files(path: Path) -> list[Path]:
    """The relations' files: one file, or those of a folder and of its folders."""
    if not path.is_dir():
        return [path]
    inside = files_in(path)
    folders = [folder for folder in inside if folder.is_dir()]
    files = [*inside, *(file for folder in folders for file in files_in(folder))]
    return [file for file in files if file.suffix == ".json" and file.is_file()]


def is_relation(content: Any) -> bool:
    """Whether the content of a JSON file is a relation of this form."""
    return isinstance(content, dict) and "samples" in content


def read_lre(path: Path) -> list[Fact]:
    """A fact for every sample of every relation.

    Args:
        path: A relation's file, or a folder of them.

    Raises:
        UserError: When an entry is missing or of a wrong type, or a template has no
            place for the subject; the message names file and entry.
    """
    return [fact for file in relation_files(path) for fact in _facts(file)]


def json_of(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: When it is malformed, naming file and line.
    """
    try:
        return parse_json(read_text(path))
    except JsonProblem as error:
        line = f", line {error.line}" if error.line else ""
        raise UserError(f"{path}{line}: malformed JSON: {error}") from None


def _facts(file: Path) -> list[Fact]:
    content = json_of(file)
    check_type(content, _Relation, str(file))
    further = content.get("prompt_templates_zs", [])
    templates = list(dict.fromkeys([*content["prompt_templates"], *further]))
    if not templates:
        raise UserError(
            f"{file}: entry prompt_templates must hold a prompt with {SLOT} for the "
            "subject, got none"
        )
    facts = []
    for number, sample in enumerate(content["samples"], start=1):
        where = f"{file}, sample {number}"
        subject, answer = sample["subject"].strip(), sample["object"].strip()
        if not subject or not answer:
            raise UserError(f"{where}: subject and object must hold text")
        prompts = tuple(filled(text, subject, SLOT, where) for text in templates)
        facts.append(Fact(subject, file.stem, answer, prompts, where=where))
    return facts
