"""The units of a run as published: a JSON file for every relation and language."""

import re
from pathlib import Path
from typing import Any

from circuitcut.attribution.knowledge.unit_sets import Units, of_relation
from circuitcut.experiments.knowledge.results import listed
from circuitcut.experiments.knowledge.study import Study
from circuitcut.storage.atomic import write_json

FOLDER = "units"
_LONGEST = 60
"""Characters of a file's name."""


def write_unit_files(study: Study, folder: Path) -> list[Path]:
    """Write `units/RELATION.json`, or `units/LANGUAGE/RELATION.json`, in a run.

    Every file has the units of the relation and of each of its facts as `[layer,
    number]` lists, and of every prompt the prediction beside the object.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    sets: dict[tuple[str, str], list[Units]] = {}
    for record in study.found:
        units = study.refined_sets[record["fact"]]
        group = record.get("language", ""), record["relation"]
        sets.setdefault(group, []).append(units)
        groups.setdefault(group, []).append(
            {
                "subject": record["subject"],
                "object": record["object"],
                "units": listed(units),
                "prompts": record["prompts"],
            }
        )
    names = _file_names([relation for _, relation in groups])
    written = []
    for (language, relation), facts in groups.items():
        units = of_relation(sets[language, relation], study.config.relation_share)
        path = folder / FOLDER / language / names[relation]
        content = {"relation": relation, "units": listed(units), "facts": facts}
        write_json(path, {"language": language or None, **content})
        written.append(path)
    return written


def _file_names(relations: list[str]) -> dict[str, str]:
    """A name for every relation, without signs, no two of them equal."""
    names: dict[str, str] = {}
    for relation in relations:
        if relation in names:
            continue
        name = re.sub(r"\W+", "_", relation).strip("_")[:_LONGEST] or "relation"
        taken = {other.lower() for other in names.values()}
        number = 1
        while f"{name if number == 1 else f'{name}_{number}'}.json".lower() in taken:
            number += 1
        names[relation] = f"{name if number == 1 else f'{name}_{number}'}.json"
    return names
