"""Default settings of repeated words."""

from typing import Any

from circuitcut.tasks.defaults import (
    SMOLLM2,
    BaseRecipe,
    ModelDefaults,
    TaskDefaults,
)
from circuitcut.tasks.settings.options import TEXT_OPTIONS

_MASK: dict[str, Any] = {
    "ablation": "mean",
    "concept_objective": "uniform",
    "k_min": 1.0,
    "k_max": 64.0,
    "retain_weight": 16.0,
}

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=("retain_data", *TEXT_OPTIONS),
    has_pairs=True,
    mask=_MASK,
    mask_on_edges=_MASK | {"k_max": 16.0, "retain_weight": 4.0},
    of_model={
        "tiny-decoder": ModelDefaults(
            base=BaseRecipe(n_steps=600, batch_size=64, lr=3e-3, warmup=30, n_heads=8)
        ),
        "smollm2": SMOLLM2,
    },
)
