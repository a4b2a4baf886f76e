"""Default settings of repeated words: those of prompts, but for the models."""

from dataclasses import replace

from circuitcut.tasks.defaults import SMOLLM2, BaseRecipe, ModelDefaults
from circuitcut.tasks.settings import prompts

DEFAULTS = replace(
    prompts.DEFAULTS,
    of_model={
        "tiny-decoder": ModelDefaults(
            base=BaseRecipe(n_steps=600, batch_size=64, lr=3e-3, warmup=30, n_heads=8)
        ),
        "smollm2": SMOLLM2,
    },
)
