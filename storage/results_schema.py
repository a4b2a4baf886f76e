"""The entries of results.json for each kind of run; docs/schema.md explains them."""

SCHEMA_VERSION = 2
HEADER = frozenset(
    {
        *("schema_version", "kind", "task", "model", "units", "ablation"),
        *("n_ablated", "n_units", "concept_metric", "retain_metric", "base", "next"),
        "provenance",
    }
)
"""Entries of every kind of run."""
_SCORED = frozenset({"scores", "unseen", "intervals", "curve"})
ENTRIES: dict[str, frozenset[str]] = {
    "train_mask": _SCORED
    | {"gate", "direction", "expected_ablated", "asked_ablated", "per_site"}
    | {"circuit", "published_circuit", "edges", "heads", "warning"},
    "evaluate": _SCORED
    | {"split", "mask", "circuit", "published_circuit", "heads", "warning"}
    | {"direction"},
    "attribute": frozenset({"scores", "curve"}),
    "faithfulness": frozenset({"split", "masks", "scores", "curve", "areas"}),
    "stability": frozenset({"chosen", "masks", "pairs", "mean", "per_site"})
    | {"by_number_of_masks", "shared"},
    "trace": frozenset({"tracing", "prompts", "effects"}),
    "weight_classes": frozenset({"weights", "beta", "layers", "total", "tying"})
    | {"series", "change", "beside", "vocabulary", "chosen"},
    "class_effects": frozenset({"selection", "corpus", "clean", "effects", "summary"})
    | {"activity", "activity_by_layer", "changed", "attributes", "edges"},
    "import_mask": frozenset({"file", "format", "per_site", "circuit"}),
    "select_mask": frozenset({"selection", "per_site"}),
    "knowledge": frozenset({"facts", "sizes", "layers", "effects", "overlap"})
    | {"per_site", "groups", "languages", "activity", "triggers"}
    | {"edits", "masks"},
    "relearn": frozenset({"mask", "rows", "summary", "recovery", "never_learned"})
    | {"probe", "after", "words_note", "warning", "selection"},
    "relearn_stages": frozenset({"levels", "seeds", "shares", "retrained", "choice"})
    | {"arms", "relearned", "changes"}
    | {"scan", "rows", "summary", "recovery", "rankings", "stages", "overlap"}
    | {"similarity", "took_over", "words_note", "warning"},
}
"""Further entries of each kind of run."""
_ADDED: dict[str, frozenset[str]] = {
    "train_mask": frozenset({"heads", "warning"}),
    "evaluate": frozenset({"heads", "warning", "direction"}),
    "relearn": frozenset({"warning", "selection"}),
    "knowledge": frozenset({"groups", "languages", "activity", "triggers"})
    | {"edits", "masks"},
    "relearn_stages": frozenset({"relearned", "changes"}),
    "class_effects": frozenset({"attributes", "edges"}),
    "weight_classes": frozenset({"chosen"}),
}
"""Entries that the first runs of version 2 lack, and that a report can do without."""


_OF_VERSION_1: dict[str, frozenset[str]] = {
    "train_mask": frozenset({"scores", "n_ablated", "n_units", "per_site"}),
    "relearn": frozenset({"summary", "recovery"}),
    "evaluate": frozenset({"scores", "curve"}),
    "attribute": frozenset({"curve"}),
    "import_mask": frozenset({"n_ablated", "n_units", "per_site", "format", "file"}),
    "faithfulness": frozenset({"curve", "areas", "scores"}),
}
"""What a report needs of runs before December 2026, which name no version; kinds that
came later have all their entries."""


def entries_of(kind: str) -> frozenset[str]:
    """The entries that results.json of a kind must have; it has no others.

    Args:
        kind: A key of `ENTRIES`.
    """
    return HEADER | ENTRIES[kind]


def needed_for_report(kind: str, version: int = SCHEMA_VERSION) -> frozenset[str]:
    """The entries without which a report of a run cannot be written.

    Args:
        kind: A key of `ENTRIES`.
        version: `schema_version` of the file, 1 where it names none.
    """
    if version == 1:
        return frozenset({"kind", "task", "model"}) | _OF_VERSION_1.get(
            kind, ENTRIES[kind]
        )
    return entries_of(kind) - _ADDED.get(kind, frozenset()) - {"provenance"}
