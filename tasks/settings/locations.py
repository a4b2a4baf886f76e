"""Default settings of named entities."""

from circuitcut.tasks.defaults import BaseRecipe, ModelDefaults, TaskDefaults

_TINY = ModelDefaults(
    # the small built-in models also need attention heads for the concept
    units=("neurons", "heads"),
    mask={"ablation": "mean", "k_min": 8.0, "k_max": 320.0, "lr": 0.2},
    base=BaseRecipe(
        n_steps=1200,
        batch_size=32,
        lr=2e-3,
        schedule="cosine",
        warmup=50,
        vocab_size=1000,
    ),
)

DEFAULTS = TaskDefaults(
    model="tiny-encoder",
    units=("neurons",),
    own_options=("labels_file", "concept", "concept_words"),
    has_pairs=True,
    # a real encoder has thousands of edges, and a concept uses dozens of them
    mask_on_edges={"k_min": 4.0, "k_max": 400.0},
    of_model={"tiny-encoder": _TINY, "tiny-decoder": _TINY},
)
