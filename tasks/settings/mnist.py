"""Default settings of handwritten digits."""

from dataclasses import replace

from circuitcut.tasks.defaults import BaseRecipe, ModelDefaults, TaskDefaults

_MLP = BaseRecipe(
    n_steps=1500, batch_size=64, lr=1e-3, weight_decay=0.0, schedule="constant"
)

DEFAULTS = TaskDefaults(
    model="mlp",
    units=("weights",),
    own_options=("concept",),
    mask={
        "ablation": "mean",
        "margin_floor": 6.0,
        "retain_weight": 6.0,
        "k_min": 100.0,
        "k_max": 1500.0,
        "n_steps": 1500,
        "batch_size": 128,
    },
    of_model={
        "mlp": ModelDefaults(
            base=_MLP,
            base_on_own_data=replace(
                _MLP, n_steps=12_000, d_hidden=128, schedule="linear"
            ),
        )
    },
)
