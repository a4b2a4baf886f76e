"""Default settings of spans of years: those of prompts, but for mask and models."""

from dataclasses import replace
from typing import Any

from circuitcut.tasks.defaults import SMOLLM2, BaseRecipe, ModelDefaults
from circuitcut.tasks.settings import prompts

_MASK: dict[str, Any] = {
    "ablation": "mean",
    "concept_objective": "margin",
    "k_min": 1.0,
    "k_max": 128.0,
    "retain_weight": 4.0,
}

DEFAULTS = replace(
    prompts.DEFAULTS,
    mask=_MASK,
    mask_on_edges=_MASK | {"k_max": 16.0},
    of_model={
        "tiny-decoder": ModelDefaults(
            base=BaseRecipe(n_steps=400, batch_size=64, lr=3e-3, warmup=20, n_heads=8)
        ),
        "smollm2": SMOLLM2,
    },
)
