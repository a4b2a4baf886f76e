"""Default settings of toxic text."""

from typing import Any

from circuitcut.tasks.defaults import BaseRecipe, ModelDefaults, TaskDefaults
from circuitcut.tasks.settings.options import TEXT_OPTIONS

_MASK: dict[str, Any] = {
    "concept_objective": "ascent",
    "token_cap": 10.0,  # with a lower cap a weak model's tokens have no gradient
    "retain_objective": "cross_entropy",
    "n_steps": 500,
    "batch_size": 48,
}
_OF_PRETRAINED: dict[str, Any] = {
    # cross-entropy on these texts does not see all that such a model loses elsewhere
    "retain_objective": "kl",
    "retain_weight": 8.0,
    "n_steps": 120,
    "batch_size": 16,
}

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=("concept_values", "retain_data", "n_prompts", *TEXT_OPTIONS),
    mask=_MASK | {"retain_weight": 2.7, "k_min": 20.0, "k_max": 300.0},
    mask_on_edges=_MASK
    | {
        "ablation": "mean",
        "retain_weight": 2.0,
        "k_min": 2.0,
        "k_max": 64.0,
        "n_steps": 300,
    },
    of_model={
        "tiny-decoder": ModelDefaults(
            base=BaseRecipe(
                n_steps=600, batch_size=32, lr=3e-3, schedule="cosine", warmup=30
            ),
            # a user's corpus is larger and has an open vocabulary
            base_on_own_data=BaseRecipe(
                n_steps=1500,
                batch_size=32,
                lr=3e-3,
                schedule="cosine",
                warmup=100,
                tokenizer_kind="bpe",
                n_layers=4,
            ),
        )
    },
    of_others=ModelDefaults(
        mask=_MASK | _OF_PRETRAINED | {"k_min": 20.0, "k_max": 600.0},
        mask_on_edges=_MASK
        | _OF_PRETRAINED
        | {"ablation": "mean", "k_min": 2.0, "k_max": 64.0},
        n_heldout=400,
    ),
)
