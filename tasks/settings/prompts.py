"""Default settings of the user's own prompts."""

from dataclasses import replace
from typing import Any

from circuitcut.tasks.defaults import (
    SMOLLM2,
    BaseRecipe,
    ModelDefaults,
    TaskDefaults,
)
from circuitcut.tasks.settings.options import TEXT_OPTIONS

_BASE = BaseRecipe(
    n_steps=500, batch_size=64, lr=3e-3, schedule="cosine", warmup=30, n_heads=16
)
_MASK: dict[str, Any] = {
    "ablation": "mean",
    "concept_objective": "uniform",
    "k_min": 1.0,
    "k_max": 64.0,
    "retain_weight": 16.0,
}
# a small model's heads serve the prompts and all other text
_SMALL_MASK = _MASK | {"k_max": 128.0, "retain_weight": 4.0}

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=("retain_data", *TEXT_OPTIONS),
    has_pairs=True,
    mask=_MASK,
    mask_on_edges=_MASK | {"k_max": 16.0, "retain_weight": 4.0},
    of_model={
        "tiny-decoder": ModelDefaults(
            base=replace(_BASE, embedding_noise=0.5), mask=_SMALL_MASK
        ),
        "tiny-encoder": ModelDefaults(base=_BASE, mask=_SMALL_MASK),
        "smollm2": SMOLLM2,
    },
)
