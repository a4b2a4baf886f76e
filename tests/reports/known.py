"""Results of knowledge.py by hand: two facts of two relations, two layers of ten."""

from itertools import combinations_with_replacement
from typing import Any

RELATIONS = ("capital", "The native language of [X] is [MASK].")
LANGUAGES = ("en", "fr", "nl")


def knowledge_results() -> dict[str, Any]:
    """Suppressing the units of a fact takes half of its probability."""

    def effect(on: str, units: str, operation: str, change: float) -> dict[str, Any]:
        return {
            "on": on,
            "units": units,
            "operation": operation,
            "n_facts": 2,
            "before": 0.5,
            "after": 0.5 * (1 + change),
            "change": change,
            "change_interval": [change - 0.05, change + 0.05],
            "change_of_mean": change,
            "change_of_mean_interval": [change - 0.05, change + 0.05],
        }

    def edit(units: str, measure: str, before: float, after: float) -> dict[str, Any]:
        gain = after / before - 1 if measure == "perplexity_inside" else after - before
        return {
            "units": units,
            "measure": measure,
            "n_facts": 2,
            "before": before,
            "after": after,
            "gain": gain,
            "gain_interval": [gain - 0.5, gain + 0.5],
        }

    return {
        "kind": "knowledge",
        "task": "locations",
        "model": "minilm",
        "units": ["neurons"],
        "n_ablated": 0,
        "n_units": 20,
        "facts": {
            "n_data": 9,
            "n_asked": 8,
            "n_known": 4,
            "n_facts": 2,
            "n_prompts": 6,
            "n_relations": 2,
            "n_right": 5,
        },
        "sizes": {
            "coarse": {"mean": 4.0, "median": 4.0, "most": 5, "n_empty": 0},
            "refined": {"mean": 1.5, "median": 1.5, "most": 2, "n_empty": 0},
            "share_of_prompts": 0.5,
        },
        "layers": [
            {"layer": 0, "n_units": 10, "coarse": 0.25, "refined": 0.0},
            {"layer": 1, "n_units": 10, "coarse": 0.75, "refined": 1.0},
        ],
        "effects": [
            effect("own", "refined", "suppress", -0.5),
            effect("own", "refined", "enhance", 0.25),
            effect("own", "random", "suppress", -0.01),
            effect("others", "refined", "suppress", -0.02),
        ],
        "overlap": [
            {"pairs": "same relation", "n_pairs": 0, "jaccard": None, "random": None},
            {"pairs": "other relations", "n_pairs": 1, "jaccard": 0.2, "random": 0.05},
        ],
        "edits": {
            "formula": "relative",
            "n_edited": 2,
            "n_units": 1.5,
            "left_out": {"not predicted": 1},
            "rows": [
                edit("refined", "success", 0.0, 0.5),
                edit("refined", "success_at_5", 0.0, 1.0),
                edit("refined", "perplexity_inside", 2.0, 3.0),
                edit("random", "success", 0.0, 0.0),
            ],
        },
        "masks": [],
        "per_site": [],
        "groups": [
            *(
                _group("relation", one, other, "facts of two relations", 0.02)
                if one != other
                else _group("relation", one, other, "two facts of one relation", 0.3)
                for one, other in combinations_with_replacement(RELATIONS, 2)
            ),
            *(
                _group("language", one, other, "the same fact", 0.6)
                for one, other in combinations_with_replacement(LANGUAGES, 2)
                if one != other
            ),
            *(
                _group("language", one, other, "two facts of one relation", 0.25)
                for one, other in combinations_with_replacement(LANGUAGES, 2)
            ),
        ],
        "languages": [
            {"language": name, "n_asked": 8, "n_known": 4, "n_facts": 2}
            for name in LANGUAGES
        ],
        "activity": [
            {
                "units": units,
                "prompts": prompts,
                "n_facts": 2,
                "mean": value,
                "interval": [value - 0.1, value + 0.1],
            }
            for units, values in (
                ("refined", (1.5, 0.6, 0.9, 0.2)),
                ("random", (0.1, 0.1, 0.1, -0.05)),
            )
            for prompts, value in zip(
                ("fact", "head", "relation", "other"), values, strict=True
            )
        ],
        "triggers": [
            {
                "unit": [1, 7],
                "n_facts": 2,
                "median": 0.1,
                "prompts": [
                    {
                        "text": "The capital of Peru is",
                        "object": "Lima",
                        "activation": 2.5,
                    },
                    {"text": "Peru is in", "object": "America", "activation": 1.5},
                ],
            }
        ],
    }


def _group(by: str, one: str, other: str, pairs: str, jaccard: float) -> dict[str, Any]:
    return {
        **{"by": by, "one": one, "other": other, "pairs": pairs},
        **{"n_pairs": 3, "jaccard": jaccard, "random": 0.01},
    }
