"""Tables of knowledge neurons: overlap of groups, activation, triggers, languages."""

from collections.abc import Mapping
from typing import Any

from circuitcut.reports.words import percent, with_interval

Results = Mapping[str, Any]
Row = dict[str, Any]
PROMPTS = {
    "fact": "head, asks for tail",
    "head": "head alone",
    "relation": "other head and tail",
    "other": "other relation",
}
SETS = {"refined": "found", "random": "as many random ones"}
_LONGEST = 32
MOST_GROUPS = 60


def short(name: str) -> str:
    """A relation's name as far as an axis has room for it."""
    name = name.replace("[MASK]", "…").replace("[X]", "X")
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def group_rows(results: Results) -> list[Row]:
    """The groups that share most, beyond random sets."""
    rows = [row for row in results.get("groups") or [] if row["jaccard"] is not None]
    rows.sort(key=lambda row: row["random"] - row["jaccard"])
    return [
        {
            "one": short(row["one"]),
            "other": short(row["other"]),
            "pairs": row["pairs"],
            "number of pairs": row["n_pairs"],
            "jaccard": row["jaccard"],
            "random": row["random"],
        }
        for row in rows[:MOST_GROUPS]
    ]


def group_data(results: Results) -> list[Row]:
    """Every two groups, for the CSV file."""
    return [dict(row) for row in results.get("groups") or []]


def activity_rows(results: Results) -> list[Row]:
    """Mean activations by kind of prompt, found beside random units."""
    rows = results.get("activity") or []
    of = {(row["units"], row["prompts"]): row for row in rows}
    return [
        {
            "prompts": name,
            "facts": of["refined", kind]["n_facts"],
            **{
                label: with_interval(
                    of[units, kind]["mean"], of[units, kind]["interval"]
                )
                for units, label in SETS.items()
                if (units, kind) in of
            },
        }
        for kind, name in PROMPTS.items()
        if ("refined", kind) in of
    ]


def trigger_rows(results: Results) -> list[Row]:
    """The prompts on which the units of the most facts are most active."""
    return [
        {
            "unit": "{}.{}".format(*entry["unit"]),
            "facts": entry["n_facts"],
            "median activation": entry["median"],
            "activation": prompt["activation"],
            "prompt": prompt["text"],
            "object": prompt["object"],
        }
        for entry in results.get("triggers") or []
        for prompt in entry["prompts"]
    ]


def language_rows(results: Results) -> list[Row]:
    """Facts of every language."""
    return [
        {
            "language": row["language"],
            "facts": row["n_asked"],
            "known": row["n_known"],
            "share known": percent(row["n_known"] / max(1, row["n_asked"])),
            "in this run": row["n_facts"],
        }
        for row in results.get("languages") or []
    ]
