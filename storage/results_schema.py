"""Which entries results.json has, by kind of run; their meaning: docs/schema.md."""

from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 2
HEADER = frozenset(
    {
        *("schema_version", "kind", "task", "model", "units", "ablation"),
        *("n_ablated", "n_units", "concept_metric", "retain_metric", "base", "next"),
    }
)
"""Of every kind."""
_SCORED = frozenset({"scores", "unseen", "intervals", "curve"})
ENTRIES: dict[str, frozenset[str]] = {
    "train_mask": _SCORED
    | {"gate", "direction", "expected_ablated", "asked_ablated", "per_site"}
    | {"circuit", "published_circuit", "edges"},
    "evaluate": _SCORED | {"split", "mask", "circuit", "published_circuit"},
    "attribute": frozenset({"scores", "curve"}),
    "faithfulness": frozenset({"split", "masks", "scores", "curve", "areas"}),
    "import_mask": frozenset({"file", "format", "per_site", "circuit"}),
    "relearn": frozenset({"mask", "rows", "summary", "recovery", "never_learned"})
    | {"probe", "after", "words_note"},
}
"""Of one kind, beside the header."""


def check_schema(results: Mapping[str, Any]) -> None:
    """Whether results have exactly the entries of their kind.

    Raises:
        AssertionError: When one is missing or unknown: a fault of this program.
    """
    expected = HEADER | ENTRIES[results["kind"]]
    missing, unknown = expected - set(results), set(results) - expected
    assert not missing, f"results.json lacks {sorted(missing)}"
    assert not unknown, f"results.json has the undocumented {sorted(unknown)}"
