"""Default settings of facts."""

from dataclasses import replace
from typing import Any

from circuitcut.tasks.defaults import BaseRecipe, ModelDefaults, TaskDefaults
from circuitcut.tasks.settings.options import TEXT_OPTIONS

_BASE = BaseRecipe(
    n_steps=500, batch_size=64, lr=3e-3, schedule="cosine", warmup=30, n_heads=16
)
_MASK: dict[str, Any] = {
    "ablation": "mean",
    "concept_objective": "margin",
    "k_min": 1.0,
    "k_max": 128.0,
    "retain_weight": 4.0,
}

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=(
        *("retain_data", "concept", "split_by", "n_facts", "n_paraphrases", "language"),
        *TEXT_OPTIONS,
    ),
    mask=_MASK,
    mask_on_edges=_MASK | {"k_max": 16.0},
    of_model={
        "tiny-decoder": ModelDefaults(base=replace(_BASE, embedding_noise=0.5)),
        "tiny-encoder": ModelDefaults(base=_BASE),
        "multilingual-encoder": ModelDefaults(
            base=_BASE,
            base_on_own_data=replace(_BASE, n_steps=600, vocab_size=16_384),
            languages=("en", "fr", "es", "nl"),
        ),
    },
    of_others=ModelDefaults(
        mask=_MASK
        | {
            "k_max": 512.0,
            "n_steps": 120,
            "retain_weight": 16.0,
            "start": "gradient_margin",
            "stretch_temperature_end": 0.1,
        },
        n_heldout=400,
    ),
)
