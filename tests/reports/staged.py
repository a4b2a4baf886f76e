"""Made-up results of a relearning study in stages: two levels, two stages, two arms."""

from pathlib import Path
from typing import Any

import torch

from circuitcut.storage.atomic import write_json, write_tensors
from circuitcut.storage.checksums import file_digest
from tests.reports.conftest import METRICS

ARMS = (("cut", "lasting", 0.1), ("uncut", None, 0.0))
SCORES = {"cut": ((0.02, 0.6), (0.9, 0.7)), "uncut": ((0.95, 0.8), (0.96, 0.81))}


NAMES = ("condition", "holding", "share")


CHANGES = (
    ("salient_share", 0, 0.5, 0.25, [0.125, 0.375]),
    ("salient_share", 1, 0.5, -0.25, [-0.375, -0.125]),
    ("salient_share", None, 0.5, -0.25, [-0.375, -0.125]),
    ("salient_share_of_others", 0, 0.5, 0.02, [-0.125, 0.165]),
    ("salient_share_of_others", 1, 0.5, -0.02, [-0.165, 0.125]),
    ("salient_share_of_others", None, 0.5, -0.02, [-0.165, 0.125]),
    ("polysemantic", None, 0.25, 0.125, [None, None]),
)
"""Measure, level, value, change and its interval, at every stage of the cut."""


def _word(word: str, concept: bool = False) -> dict[str, Any]:
    return {"word": word, "concept": concept}


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
        "relearned": [
            dict(zip(NAMES, arm, strict=True))
            | {"stage": stage, "concept": share, "concept_interval": [0.96, 1.02]}
            | {"retain": None, "retain_interval": [None, None]}
            | ({"beyond_random": None} if arm[0] == "cut" else {})
            | ({"beyond_random_interval": [None, None]} if arm[0] == "cut" else {})
            for arm, shares in ((ARMS[0], (0.02, 0.99)), (ARMS[1], (1.0, 1.0)))
            for stage, share in enumerate(shares)
        ],
        "changes": [
            dict(zip(NAMES, ARMS[0], strict=True))
            | {"stage": stage, "level": level, "measure": measure}
            | {"value": value, "change": change}
            | {"value_interval": [None, None], "change_interval": interval}
            | {"beyond_random": 0.0, "beyond_random_interval": [-0.01, 0.01]}
            for stage in range(2)
            for measure, level, value, change, interval in CHANGES
        ],
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
                "salient_share_interval": [-3.0, 4.0],
                "saliency": 0.4 + 0.2 * level,
                "saliency_interval": [-3.0, 4.0],
                "polysemantic": 0.1,
                "polysemantic_interval": [None, None],
            }
            for name, holding, share, stage in named
            for level in range(2)
        ],
        "overlap": [
            dict(zip(NAMES, ARMS[0], strict=True))
            | {"stage": 1, "n_compared": 20, "with_base": 0.25}
            | {"with_base_interval": [0.125, 0.375]}
        ],
        "similarity": [
            dict(zip(NAMES, ARMS[0], strict=True))
            | {"one": one, "other": 1, "similarity": 0.5, "interval": [None, None]}
            | {"n_units": 7.0}
            for one in (None, 0)
        ],
        "took_over": [
            {
                "holding": "lasting",
                "share": 0.1,
                "seed": seed,
                "place": 0,
                "level": 1,
                "unit": 3,
                "saliency": [0.25, None, 1.0],
                "similarity": 0.5,
                "words": [
                    [_word("runs"), _word("eats")],
                    [],
                    [_word("Oslo", True), _word("runs", seed == 1)],
                ],
            }
            for seed in range(2)
        ],
        "words_note": None,
        "warning": None,
        "next": None,
        **METRICS,
    }


def write_records(run: Path) -> None:
    """The records of both seeds: 200 units, of which unit u has a saliency of u / 200.

    At level 1 every similarity is .5, but that of the last unit, which is missing;
    those of level 0 are missing. After the last stage, units 150 on have saliency 1.
    """
    similarity = torch.full((200,), 0.5)
    similarity[:100] = similarity[199] = torch.nan
    saliency = torch.arange(200) / 200
    last = saliency.clone()
    last[150:] = 1.0
    for seed in range(2):
        folder = run / "seeds" / f"seed-{seed}"
        _record(folder / "base", {"saliency": saliency})
        arm = folder / "arms" / "cut"
        _record(arm / "stage-0", {"saliency": saliency, "similarity": similarity})
        _record(arm / "stage-1", {"saliency": last, "similarity": similarity})


def _record(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    write_tensors(folder / "units.safetensors", tensors)
    digests = {"units.safetensors": file_digest(folder / "units.safetensors")}
    write_json(folder / "stage.json", {"sha256": digests})
