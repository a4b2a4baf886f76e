"""Run directories with made-up results, in the documented schema."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitcut.reports.load import Run, load_run
from circuitcut.storage.run_directory import RunDirectory

METRICS = {
    "concept_metric": {
        "name": "concept_f1",
        "higher_is_better": True,
        "unit": "span F1",
    },
    "retain_metric": {"name": "retain_f1", "higher_is_better": True, "unit": "span F1"},
}
LIMITS = (1, 4, 16, None)
STEPS = (0, 1, 3, 8, 22, 60)


def _scores(concept: float, retain: float) -> dict[str, float]:
    return {"concept_f1": concept, "retain_f1": retain, "kl_retain": 0.037}


def _interval(concept: float, retain: float) -> dict[str, list[float]]:
    return {
        "concept_f1": [concept - 0.021, concept + 0.034],
        "retain_f1": [retain - 0.015, retain + 0.016],
    }


def mask_results() -> dict[str, Any]:
    """Results of a mask on two kinds of units of six layers."""
    sites = [
        {
            "site": f"layer.{layer}.{kind}",
            "kind": kind,
            "layer": layer,
            "n_units": n_units,
            "n_ablated": (layer * 7) % 5 if kind == "neurons" else layer % 2,
        }
        for kind, n_units in (("neurons", 1536), ("heads", 12))
        for layer in range(6)
    ]
    sizes = (8, 12, 16, 24, 50, 200)
    methods = {"learned": 9, "gradient_margin": 12, "random": 4000}
    return {
        "kind": "train_mask",
        "task": "locations",
        "model": "minilm",
        "units": ["neurons", "heads"],
        "direction": "break",
        "ablation": "mean",
        "n_ablated": sum(site["n_ablated"] for site in sites),
        "n_units": sum(site["n_units"] for site in sites),
        "per_site": sites,
        "heads": heads_entry(6, 12, [f"a{layer}.h{2 * layer}" for layer in (1, 3, 5)]),
        "scores": {
            "uncut": _scores(0.7331, 0.5662),
            "cut": _scores(0.0123, 0.5204),
            "cut_before_rounding": _scores(0.0157, 0.5211),
            "random": [_scores(0.7222, 0.5655), _scores(0.7301, 0.5607)],
            "attribution": {
                "gradient_margin": _scores(0.0171, 0.5143),
                "probeless": _scores(0.2934, 0.5521),
            },
        },
        "intervals": {
            "uncut": _interval(0.7331, 0.5662),
            "cut": _interval(0.0123, 0.5204),
        },
        "unseen": {"uncut": _scores(0.6912, 0.5418), "cut": _scores(0.0087, 0.5022)},
        "curve": [
            {
                "method": method,
                "n_ablated": size,
                "scores": _scores(
                    0.7331 * math.exp(-size / fall), 0.5662 - 0.0002 * size
                ),
            }
            for method, fall in methods.items()
            for size in sizes
        ],
        "next": "python scripts/relearn.py",
        **METRICS,
    }


def heads_entry(n_layers: int, n_heads: int, ablated: list[str]) -> dict[str, Any]:
    """Entry `heads` of results.json: scores are 1 or, of ablated heads, -1."""
    layers = []
    for layer in range(n_layers):
        cut = [h for h in range(n_heads) if f"a{layer}.h{h}" in ablated]
        scores = [-1.0 if head in cut else 1.0 for head in range(n_heads)]
        layers.append(
            {"layer": layer, "n_heads": n_heads, "ablated": cut, "scores": scores}
        )
    return {"kept": False, "names": ablated, "layers": layers}


def _share(name: str, limit: int | None, step: int) -> tuple[float, float]:
    """Concept and retain score of a made-up condition."""
    examples = 64 if limit is None else limit
    speed = 1 - math.exp(-step * examples**0.5 / 40)
    top = 0.55 + 0.03 * math.log(examples + 1)
    start = {"cut": 0.012, "uncut": 0.733, "random": 0.722}[name]
    return start + (top - start) * speed, 0.566 - 0.2 * speed / examples


def relearn_results() -> dict[str, Any]:
    """Results of three conditions, one of them under two ways of holding the cut."""
    conditions = [
        ("cut", "lasting"),
        ("cut", "one_shot"),
        ("uncut", None),
        ("random", "lasting"),
    ]
    summary = []
    for limit in LIMITS:
        for name, holding in conditions:
            for step in STEPS:
                concept, retain = _share(name, limit, step)
                concept += 0.02 * (holding == "one_shot") * (step > 0)
                summary.append(
                    {
                        "condition": name,
                        "holding": holding,
                        "limit": limit,
                        "n_seeds": 3,
                        "step": step,
                        "examples": step * min(8, limit or 8),
                        "distance": 0.01 * step,
                        "concept": concept,
                        "concept_interval": [concept - 0.03, concept + 0.04],
                        "retain": retain,
                        "retain_interval": [retain - 0.02, retain + 0.02],
                        "unseen_concept": concept - 0.01,
                        "unseen_concept_interval": [None, None],
                    }
                )
    return {
        "kind": "relearn",
        "task": "locations",
        "model": "minilm",
        "mask_run": "runs/locations-minilm-1",
        "n_ablated": 25,
        "n_units": 9216,
        "settings": {"n_steps": 60, "lr": 5e-5},
        "rows": [
            entry | {"seed": seed, "scores": _scores(entry["concept"] + d, 0.5)}
            for entry in summary
            for seed, d in ((0, -0.01), (1, 0.0), (2, 0.04))
        ],
        "summary": summary,
        "recovery": [
            _recovery(*key, limit) for limit in LIMITS for key in conditions[::3]
        ],
        "probe": [
            {
                "condition": name,
                "seed": seed,
                "levels": [_level(i, fall) for i in range(-1, 6)],
            }
            for name, seed, fall in (
                ("uncut", None, 0),
                ("cut", None, 1),
                ("random", 0, 0.1),
            )
        ],
        "after": [_after(seed) for seed in range(2)],
        "next": "python scripts/report.py",
        **METRICS,
    }


def _recovery(name: str, holding: str, limit: int | None) -> dict[str, Any]:
    points = []
    for step in STEPS:
        cut, uncut = (_share(n, limit, step)[0] for n in (name, "uncut"))
        start = _share(name, limit, 0)[0]
        known = name == "cut"
        points.append(
            {
                "step": step,
                "examples": step * min(8, limit or 8),
                "ratio": cut / uncut,
                "ratio_interval": [cut / uncut - 0.04, cut / uncut + 0.05],
                "normalised": (cut - start) / (uncut - start) if known else None,
                "normalised_interval": [None, None],
                "reason": None if known else "normalised: uncut - cut is below 0.05",
            }
        )
    reached = [
        {"fraction": f, "step": s, "examples": s and 8 * s, "step_interval": [s, s]}
        for f, s in ((0.5, 8), (0.9, 60), (0.95, None))
    ]
    return {
        "condition": name,
        "holding": holding,
        "limit": limit,
        "uncut_limit": limit,
        "n_seeds": 3,
        "minimum": 0.05,
        "points": points,
        "reached": {"ratio": reached, "normalised": reached},
        "area": 0.4321,
        "area_interval": [0.39, 0.47],
        "final_gap": 0.0765,
        "final_gap_interval": [0.05, 0.1],
    }


def _level(layer: int, fall: float) -> dict[str, Any]:
    auc = 0.8 + 0.03 * layer - 0.02 * fall * max(layer, 0)
    scores = {"f1": auc - 0.1, "accuracy": auc - 0.05, "auc": auc, "control_auc": 0.51}
    return {"layer": layer, **scores, "n_train": 4000, "n_test": 3000}


def _after(seed: int) -> dict[str, Any]:
    before, after = (25, 15, 10, 20, 20, 10), (40, 25, 15, 10, 5, 5)
    layers = [
        {
            "layer": layer,
            "kind": "neurons",
            "top_before": {"n": before[layer], "share": before[layer] / 100},
            "top_after": {"n": after[layer], "share": after[layer] / 100},
            "mask": {"n": 4, "share": 1 / 6},
            "fresh_mask": {"n": layer, "share": layer / 15},
        }
        for layer in range(6)
    ]
    overlaps = {"n_compared": 100, "overlap": 0.31, "overlap_with_mask": 0.0}
    overlaps |= {"fresh_n": 15, "fresh_overlap": 0.123, "layers": layers}
    return {
        "condition": "cut",
        "holding": "lasting",
        "seed": seed,
        "limit": None,
        "redistribution": overlaps,
        "words": [
            _unit("before", 37, True, {"before": ["Paris", "Rome"], "after": []}),
            _unit("after", 5, False, {"before": ["eats"], "after": [f"<Oslo{seed}>"]}),
        ],
    }


def _unit(
    top: str, unit: int, ablated: bool, words: dict[str, list[str]]
) -> dict[str, Any]:
    return {
        "top": top,
        "site": "encoder.layer.1.output.dense:neurons",
        "kind": "neurons",
        "layer": 1,
        "unit": unit,
        "ablated": ablated,
        "words": {
            moment: [{"word": word, "activation": 1.25} for word in top_words]
            for moment, top_words in words.items()
        },
    }


def curve_results(kind: str) -> dict[str, Any]:
    """Results of evaluate.py or attribute.py."""
    keys = ("task", "model", "scores", "curve", *METRICS)
    results = {key: value for key, value in mask_results().items() if key in keys}
    models = ("uncut", "cut") if kind == "evaluate" else ("uncut",)
    scores = {name: results["scores"][name] for name in models}
    return {**results, "kind": kind, "scores": scores}


def import_results() -> dict[str, Any]:
    """Results of import_mask.py: five edges cut of a small graph."""
    edges = ["input->a0.h0<q>", "a0.h1->m0", "m0->a1.h1<v>", "m0->m1", "m1->logits"]
    levels = [(0, "h.0", 14, 2), (1, "h.1", 30, 2), (2, "ln_f", 7, 1)]
    sites = [
        {
            "site": f"{name}:edges",
            "kind": "edges",
            "layer": layer,
            "n_units": n_units,
            "n_ablated": n_ablated,
        }
        | ({"level": "logits"} if layer == 2 else {})
        for layer, name, n_units, n_ablated in levels
    ]
    return {
        "kind": "import_mask",
        "task": "locations",
        "model": "minilm",
        "file": "graph.json",
        "format": "mib",
        "n_ablated": 5,
        "n_units": 51,
        "per_site": sites,
        "circuit": {
            "kept": False,
            "n_edges": 51,
            "n_layers": 2,
            "n_heads": 2,
            "edges": edges,
            "scores": [-0.5, -0.25, 0.0, 0.125, 12.5],
        },
    }


def faithfulness_results() -> dict[str, Any]:
    """Results of two rankings at three sizes, one of them by two seeds."""
    shares = {("topk", 0): (0.4, 0.97, 1.0), ("random", 0): (0.0, 0.1, 1.0)}
    shares["random", 1] = (0.2, None, 1.0)
    curve = [
        {
            "method": method,
            "order": "signed",
            "seed": seed,
            "fraction": fraction,
            "n_kept": int(1000 * fraction),
            "n_connected": int(900 * fraction),
            "faithfulness": share,
            "scores": _scores(0.7 * (share or 0.0), 0.5) | {"kl_concept": 0.2},
            "without": {"faithfulness": 0.5, "scores": _scores(0.3, 0.5)},
        }
        for (method, seed), by_size in shares.items()
        for fraction, share in zip((0.01, 0.1, 1.0), by_size, strict=True)
    ]
    areas = [
        {"method": method, "order": "signed", "seed": seed, "cpr": cpr, "cmd": cmd}
        for method, seed, cpr, cmd in (
            ("topk", 0, 0.9, 0.05),
            ("random", 0, 0.5, 0.4),
            ("random", 1, None, None),
        )
    ]
    return {
        "kind": "faithfulness",
        "task": "locations",
        "model": "minilm",
        "units": ["edges"],
        "n_units": 1000,
        "scores": {"uncut": _scores(0.7, 0.5), "nothing kept": _scores(0.0, 0.1)},
        "curve": curve,
        "areas": areas,
        **METRICS,
    }


def stability_results() -> dict[str, Any]:
    """Results of stability.py: two masks of 1,000 units share 3 of 7."""
    random = {"mean": 0.0025, "interval": [0.0, 0.111]}
    overlap = {"jaccard": 3 / 7, "random": random}
    masks = [
        {"mask": f"runs/seed{seed}", "seed": seed, "gate": "topk", "n_chosen": 5}
        for seed in range(2)
    ]
    site = {"site": "h.0:heads", "kind": "heads", "layer": 0, "n_units": 1000}
    both = overlap | {"random_per_site": random}
    return {
        "kind": "stability",
        "task": "locations",
        "model": "minilm",
        "units": ["heads"],
        "n_units": 1000,
        "chosen": "ablated",
        "masks": masks,
        "pairs": [{"first": 0, "second": 1, "n_shared": 3, **both}],
        "mean": {"n_pairs": 1, **both},
        "per_site": [{**site, "n_chosen": [5, 5], **overlap}],
        "by_number_of_masks": [
            {"n_masks": 0, "n_units": 993, "expected": 990.025},
            {"n_masks": 1, "n_units": 4, "expected": 9.95},
            {"n_masks": 2, "n_units": 3, "expected": 0.025},
        ],
        "shared": [
            {"unit": f"h.0:heads[{unit}]", "kind": "heads", "layer": 0, "n_masks": 2}
            for unit in (1, 4, 9)
        ],
    }


def trace_results() -> dict[str, Any]:
    """Results of trace.py: the MLPs bring 60 % back at the last subject token."""
    shares = {
        ("hidden", "last subject"): (0.1, 0.5),
        ("hidden", "last"): (0.0, 0.9),
        ("mlp", "last subject"): (0.6, 0.2),
        ("mlp", "last"): (None, None),
    }
    effects = [
        {
            "restored": restored,
            "tokens": tokens,
            "layer": layer,
            "n_prompts": 2,
            "indirect": 0.5 * (share or 0.0),
            "normalised": share,
            "interval": None if share is None else [share - 0.1, share + 0.1],
        }
        for (restored, tokens), of_layers in shares.items()
        for layer, share in enumerate(of_layers)
    ]
    prompt = {"subject": "Paris", "object": "France", "clean": 0.75, "corrupted": 0.25}
    return {
        "kind": "trace",
        "task": "locations",
        "model": "minilm",
        "units": [],
        "n_units": None,
        "tracing": {
            "noise": 3.0,
            "sigma": 0.25,
            "n_noise": 10,
            "window": 2,
            "n_asked": 5,
            "left_out": {"prompts whose object does not have rank 1": 3},
            "clean": 0.75,
            "corrupted": 0.25,
            "total_effect": 0.5,
        },
        "prompts": [{"text": f"{i}. Paris lies in", **prompt} for i in range(2)],
        "effects": effects,
        **METRICS,
    }


WriteRun = Callable[..., Path]


@pytest.fixture(scope="session")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> WriteRun:
    """write_run(results, finished=True) -> folder of a new run."""

    def write(results: dict[str, Any], *, finished: bool = True) -> Path:
        run = RunDirectory.create(
            tmp_path_factory.mktemp("runs"),
            kind=results["kind"],
            task=str(results.get("task")),
            model="minilm",
            config={"seed": 3, "task": results.get("task")},
        )
        for step in range(0, 100, 5):
            run.log(
                step,
                loss=2 * math.exp(-step / 30),
                concept_loss=1.5 * math.exp(-step / 20),
                expected_ablated=60 * (1 - math.exp(-step / 25)),
            )
        if finished:
            run.write_results(results)
        return run.path

    return write


@pytest.fixture
def mask_run(write_run: WriteRun) -> Run:
    """A finished train_mask run."""
    return load_run(write_run(mask_results()))


@pytest.fixture
def relearn_run(write_run: WriteRun) -> Run:
    """A finished relearn run."""
    return load_run(write_run(relearn_results()))
