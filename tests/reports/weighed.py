"""Results of the scripts about classes of neurons by hand: two layers of ten."""

from typing import Any

from circuitcut.weight_classes.names import CLASSES, COARSE, HALF_COARSE

COSINES = ("gate_in", "gate_out", "in_out")


def _entry(n_weakening: int, n_units: int) -> dict[str, Any]:
    classes = dict.fromkeys(CLASSES, 0)
    classes |= {
        "weakening": n_weakening,
        "orthogonal output": n_units - n_weakening,
    }

    def grouped(groups: Any) -> dict[str, int]:
        sums = dict.fromkeys(groups.values(), 0)
        for name, number in classes.items():
            sums[groups[name]] += number
        return sums

    quartiles = {key: [-0.9, -0.1, 0.1, 0.2, 0.8] for key in COSINES}
    quartiles |= {
        key: [1, 2, 3, 4, 5.0] for key in ("norm_gate", "norm_in", "norm_out")
    }
    return {
        "n_units": n_units,
        "classes": classes,
        "half_coarse": grouped(HALF_COARSE),
        "coarse": grouped(COARSE),
        "bins": {key: [n_weakening, n_units - n_weakening] for key in COSINES},
        "quartiles": quartiles,
        "outside": {
            region: dict.fromkeys(COSINES, n_weakening)
            for region in ("beta", "beta_corrected", "mismatched")
        },
    }


CHOSEN = {
    "path": "runs/ioi",
    "kind": "ablated",
    "n": 4,
    "n_others": 0,
    "classes": [
        {
            "class": "weakening",
            "n_class": 3,
            "n": 2,
            "expected": 0.6,
            "interval": [0, 2],
            "expected_by_layer": 0.5,
            "interval_by_layer": [0, 1],
            "p": 0.04,
        }
    ],
}


def weight_results() -> dict[str, Any]:
    """Three of twenty neurons weaken what they read, two of them in layer 1."""
    region = {key: [-0.1, 0.1] for key in COSINES}
    layers = [
        {"layer": layer, "n_mlps": 1, "mismatched_region": region, **_entry(n, 10)}
        for layer, n in enumerate((1, 2))
    ]
    return {
        "kind": "weight_classes",
        "task": "locations",
        "model": "minilm",
        "units": ["neurons"],
        "chosen": [CHOSEN],
        "n_units": 20,
        "weights": {
            "family": "llama",
            "revision": None,
            "commit": None,
            "gated": True,
            "centred": False,
            "d_model": 8,
            "convention": "folded",
            "tau": 0.5,
            "classes": list(CLASSES),
            "n_bins": 2,
            "n_pairs": 100,
        },
        "beta": {
            "alpha": 0.05,
            "corrected_alpha": 0.0025,
            "n_dimensions": 8,
            "region": region,
            "corrected_region": region,
        },
        "layers": layers,
        "total": _entry(3, 20),
        "tying": {"tied": False, "quartiles": [0.1, 0.25, 0.4]},
        "series": [],
        "change": [],
        "beside": [],
        "vocabulary": [
            {
                "unit": "1.3",
                "vectors": [
                    {"vector": "out", "tokens": [" Paris|"], "scores": [2.5]},
                ],
            }
        ],
    }


def select_results() -> dict[str, Any]:
    """Two neurons of the class weakening are ablated."""
    return {
        "kind": "select_mask",
        "task": "locations",
        "model": "minilm",
        "units": ["neurons"],
        "n_ablated": 2,
        "n_units": 20,
        "selection": {
            "classes": ["weakening"],
            "n_of_classes": 3,
            "control": "none",
            "tau": 0.5,
            "convention": "folded",
            "gated": True,
        },
        "per_site": [
            {
                "site": f"layers.{layer}.mlp.down_proj:neurons",
                "kind": "neurons",
                "layer": layer,
                "n_units": 10,
                "n_ablated": 1,
            }
            for layer in range(2)
        ],
    }


def _spread(mean: float) -> dict[str, Any]:
    return {
        "mean": mean,
        "interval": [mean - 0.1, mean + 0.1],
        "least": mean - 3,
        "quantiles": [mean + k / 10 for k in range(-3, 4)],
        "greatest": mean + 3,
    }


def effect_results() -> dict[str, Any]:
    """Two neurons ablated: entropy + .5, that of two draws of a control 0 and + .02."""
    measures = ("loss", "entropy", "rank", "log_scale")

    def effect(of_set: str, draw: int | None, entropy: float) -> dict[str, Any]:
        return {
            "set": of_set,
            "draw": draw,
            "when": "all",
            "ablated": dict.fromkeys(measures, 3.0) | {"entropy": 2.0 + entropy},
            "difference": {m: _spread(0.0) for m in measures}
            | {"entropy": _spread(entropy)},
        }

    def summed(of_set: str, entropy: float, n_draws: int) -> dict[str, Any]:
        one = {"mean": 0.0, "interval": [-0.1, 0.1], "range": None}
        most = {"mean": entropy, "interval": [entropy - 0.1, entropy + 0.1]}
        ends = {"range": [0.0, 0.02] if n_draws else None}
        return {
            "set": of_set,
            "when": "all",
            "n_draws": n_draws,
            "measures": dict.fromkeys(measures, one) | {"entropy": most | ends},
        }

    quadrants = ("gate+/post+", "gate+/post-", "gate-/post+", "gate-/post-")
    words = [{"token": " a", "change": 0.25}]
    return {
        "kind": "class_effects",
        "task": "locations",
        "model": "minilm",
        "units": ["neurons"],
        "ablation": "zero",
        "n_ablated": 2,
        "n_units": 20,
        "selection": {
            "classes": ["weakening"],
            "take": "drawn",
            "tolerance": 0.05,
            "tau": 0.5,
            "convention": "folded",
            "n_of_classes": 3,
            "controls": ["layer"],
            "draws": 2,
            "gated": True,
            "theta": None,
            "at_positions": [],
        },
        "corpus": {
            "data": "valid.txt",
            "n_texts": 4,
            "n_tokens": 900,
            "length": 256,
            "sample": 900,
        },
        "clean": {m: _spread(2.0) for m in measures},
        "effects": [
            effect("class", None, 0.5),
            effect("layer", 0, 0.0),
            effect("layer", 1, 0.02),
        ],
        "summary": [summed("class", 0.5, 0), summed("layer", 0.01, 2)],
        "activity": [
            {"set": "class", "draw": None, "on": 0.7, "written": 0.4}
            | dict.fromkeys(quadrants, 0.25)
        ],
        "activity_by_layer": [
            {
                "layer": 0,
                "n_of_classes": 0,
                "on": None,
                "on_of_others": 0.3,
                "correlations": {"on:in_out": -0.9, "written:in_out": None},
            }
        ],
        "changed": [
            {
                "when": "all",
                "text": 2,
                "position": 7,
                "context": "all that",
                "next": " a",
                "clean": 1.0,
                "ablated": 3.0,
                "promoted": words,
                "suppressed": [{"token": " b", "change": -0.5}],
                "lens": [
                    {
                        "layer": 1,
                        "sublayer": "mlp",
                        "clean": _prediction(" b", 0.75),
                        "ablated": _prediction(" a", 0.5),
                        "promoted": words,
                        "suppressed": [{"token": " b", "change": -0.5}],
                    }
                ],
                "continued": {"clean": " is a town", "ablated": " was"},
            }
        ],
        "edges": {
            "measure": "loss",
            "n_tokens": 30,
            "sets": [
                {
                    "set": "class",
                    "draw": None,
                    "when": "all",
                    "logits": 0.5,
                    "readers": [{"reader": "m1", "effect": 0.25}],
                    "edges": [{"edge": "m0->m1", "effect": 0.125}],
                    "layers": [
                        {"layer": 1, "queries": 0, "keys": 0, "values": 0, "mlp": 0.25}
                    ],
                }
            ],
        },
        "attributes": {
            "source": "facts",
            "n_subjects": 4,
            "left_out": {},
            "words_of_a_subject": 1.5,
            "n_top": 50,
            "clean": [{"layer": 0, "n": 4, "rate": 25.0, "interval": [20.0, 30.0]}],
            "effects": [
                {
                    "set": "class",
                    "when": "all",
                    "n_draws": 0,
                    "layers": [
                        {
                            "layer": 0,
                            "n": 4,
                            "rate": 15.0,
                            "interval": [10.0, 20.0],
                            "difference": -10.0,
                            "difference_interval": [-12.0, -8.0],
                        }
                    ],
                }
            ],
        },
    }


def _prediction(top: str, probability: float) -> dict[str, Any]:
    return {
        "top": top,
        "top_probability": probability,
        "next_probability": 0.25,
        "entropy": 0.5,
    }
