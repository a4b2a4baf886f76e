"""Results of weight_classes.py and select_mask.py by hand: two layers of ten."""

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
