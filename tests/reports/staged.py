"""Made-up results of a relearning study in stages: two levels, two stages, two arms."""

from typing import Any

from tests.reports.conftest import METRICS

ARMS = (("cut", "lasting", 0.1), ("uncut", None, 0.0))
SCORES = {"cut": ((0.02, 0.6), (0.9, 0.7)), "uncut": ((0.95, 0.8), (0.96, 0.81))}


def stages_results() -> dict[str, Any]:
    """Base .95 and .80, pruned .02 and .60, after one stage .90 and .70."""
    summary = [
        {
            "share": 0.1,
            "condition": name,
            "holding": holding,
            "limit": None,
            "n_seeds": 2,
            "step": 10 * stage,
            "stage": stage,
            "examples": 80 * stage,
            "distance": 0.1 * stage,
            "concept": SCORES[name][stage][0],
            "concept_interval": [0.0, 1.0],
            "retain": SCORES[name][stage][1],
            "retain_interval": [None, None],
            "unseen_concept": None,
            "unseen_concept_interval": [None, None],
        }
        for name, holding, _ in ARMS
        for stage in range(2)
    ]
    named = [("base", None, 0.0, None)]
    named += [(*arm, stage) for arm in ARMS for stage in range(2)]
    return {
        "kind": "relearn_stages",
        "task": "locations",
        "model": "minilm",
        "n_ablated": 0,
        "n_units": 200,
        "levels": [
            {"level": level, "site": f"site {level}", "n_units": 100}
            for level in range(2)
        ],
        "seeds": [
            {"seed": seed, "base": {}, "base_sha256": "00", "unseen": {}, "tune": {}}
            | {"scores": {"concept_f1": 0.94 + 0.02 * seed, "retain_f1": 0.8}}
            for seed in range(2)
        ],
        "shares": [0.1, 0.5],
        "retrained": [0.1],
        "choice": {"share": 0.1, "reason": "the smallest share that is small"},
        "arms": [
            {"share": share, "condition": name, "holding": holding, "seed": seed}
            | {"folder": f"seeds/seed-{seed}/arms/{name}", "n_pruned": [10, 10]}
            for seed in range(2)
            for name, holding, share in ARMS
        ],
        "scan": [
            {
                "condition": "cut",
                "holding": "lasting",
                "share": share,
                "seed": seed,
                "n_pruned": round(200 * share),
                "tune": {},
                "heldout": {"concept_f1": 0.02 * seed, "retain_f1": 0.6},
            }
            for seed in range(2)
            for share in (0.1, 0.5)
        ],
        "rows": [],
        "summary": summary,
        "recovery": [],
        "rankings": {"names": ["probeless"], "seconds": {}, "overlap": []},
        "stages": [
            {
                "share": share,
                "condition": name,
                "holding": holding,
                "stage": stage,
                "level": level,
                "n_units": 100,
                "salient_share": 0.25 + 0.5 * level,
            }
            for name, holding, share, stage in named
            for level in range(2)
        ],
        "overlap": [],
        "similarity": [],
        "took_over": [],
        "words_note": None,
        "warning": None,
        "next": None,
        **METRICS,
    }
