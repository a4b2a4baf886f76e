"""Default settings of the words of a concept in running text."""

from typing import Any

from circuitcut.tasks.defaults import BaseRecipe, ModelDefaults, TaskDefaults

_MASK: dict[str, Any] = {
    "concept_objective": "ascent",
    "token_cap": 10.0,
    "retain_objective": "cross_entropy",
    "retain_weight": 2.0,
}

DEFAULTS = TaskDefaults(
    model="tiny-decoder",
    units=("neurons", "heads"),
    own_options=("labels_file", "concept", "concept_words"),
    mask=_MASK | {"k_min": 8.0, "k_max": 320.0},
    mask_on_edges=_MASK | {"ablation": "mean", "k_min": 2.0, "k_max": 64.0},
    of_model={
        "tiny-decoder": ModelDefaults(
            base=BaseRecipe(
                n_steps=800,
                batch_size=32,
                lr=3e-3,
                schedule="cosine",
                warmup=50,
                # names of one split only are spelled in pieces
                tokenizer_kind="bpe",
                vocab_size=1000,
            )
        )
    },
    of_others=ModelDefaults(n_heldout=400),
)
