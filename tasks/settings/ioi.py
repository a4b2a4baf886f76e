"""Default settings of indirect objects."""

from dataclasses import replace

from circuitcut.tasks.defaults import (
    SMOLLM2,
    BaseRecipe,
    ModelDefaults,
    TaskDefaults,
)
from circuitcut.tasks.settings.options import TEXT_OPTIONS

_DECODER = BaseRecipe(
    n_steps=600,
    batch_size=64,
    lr=3e-3,
    schedule="late",
    warmup=30,
    n_heads=8,
    embedding_noise=0.5,
)

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=("retain_data", *TEXT_OPTIONS),
    has_pairs=True,
    mask={
        "ablation": "mean",
        "concept_objective": "uniform",
        "k_min": 1.0,
        "k_max": 64.0,
        "retain_weight": 16.0,
    },
    mask_on_edges={
        "ablation": "mean",
        "concept_objective": "uniform",
        "k_min": 1.0,
        "k_max": 16.0,
        "retain_weight": 4.0,
    },
    of_model={
        "tiny-decoder": ModelDefaults(base=_DECODER),
        "deep-decoder": ModelDefaults(
            base=replace(_DECODER, n_steps=1000, warmup=60, n_layers=4)
        ),
        "smollm2": SMOLLM2,
    },
)
