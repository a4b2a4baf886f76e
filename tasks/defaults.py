"""Default settings of a task, as plain data on its class; flags override them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from circuitcut.storage.flag_ranges import (
    BATCH,
    COUNT,
    COUNT_OR_0,
    DECAY,
    LEARNING_RATE,
    SCALE_OR_0,
    WITHIN,
    Range,
)


def _number(default: Any, within: Range) -> Any:
    return field(default=default, metadata={WITHIN: within})


@dataclass(frozen=True)
class BaseRecipe:
    """Size and training settings of a base model."""

    n_steps: int | None = _number(None, COUNT)
    """Training steps; None means three epochs over the base split."""
    batch_size: int = _number(16, BATCH)
    lr: float = _number(1e-4, LEARNING_RATE)
    weight_decay: float = _number(0.01, DECAY)
    schedule: Literal["constant", "linear", "cosine", "late"] = "linear"
    warmup: int = _number(0, COUNT_OR_0)
    tokenizer_kind: Literal["word", "wordpiece", "bpe"] = "word"
    vocab_size: int = _number(4096, Range(1, 10**6))
    n_layers: int = _number(2, Range(1, 1000))
    d_model: int = _number(128, Range(1, 2**16))
    n_heads: int = _number(4, Range(1, 2**16))
    max_positions: int = _number(128, Range(4, 2**20))
    d_hidden: int = _number(50, Range(1, 10**6))
    """Hidden units of the image MLP."""
    embedding_noise: float = _number(0.0, SCALE_OR_0)
    """Normal noise added to token embeddings in training; 1 is their std."""


@dataclass(frozen=True)
class ModelDefaults:
    """Default settings of one model that differ from those of its task."""

    units: tuple[str, ...] | None = None
    mask: Mapping[str, Any] | None = None
    mask_on_edges: Mapping[str, Any] | None = None
    base: BaseRecipe | None = None
    """None means that a pretrained model is fine-tuned with `FINETUNE`."""
    relearn: Mapping[str, Any] | None = None
    """Flags of `scripts/relearn.py` that differ."""
    n_heldout: int | None = None
    """Examples of `tune` and `heldout` that are scored; None: all."""
    languages: tuple[str, ...] = ()
    """Languages of the data where none are named."""
    base_on_own_data: BaseRecipe | None = None
    """Used with `--data`, which is larger than the built-in corpus; None means `base`.
    """


@dataclass(frozen=True)
class TaskDefaults:
    """Default settings of one task, chosen on the `tune` split."""

    model: str
    """Name of the model that is cut."""
    units: tuple[str, ...]
    """Kinds of unit that are cut."""
    has_pairs: bool = False
    """Whether inputs have counterfactuals where the data do."""
    own_options: tuple[str, ...] = ()
    """`TaskOptions` that this task reads and some other tasks do not."""
    mask: Mapping[str, Any] = field(default_factory=dict)
    """Settings of mask training by name (`experiments.settings.MaskSettings`), for soft
    top-k and the direction `break`."""
    mask_on_edges: Mapping[str, Any] | None = None
    """The same settings for edge masks; None means `mask`."""
    of_model: Mapping[str, ModelDefaults] = field(default_factory=dict)
    of_others: ModelDefaults = ModelDefaults()
    """The same of every model that `of_model` does not list."""

    def of(self, model: str) -> ModelDefaults:
        """Settings that differ for `model`."""
        return self.of_model.get(model, self.of_others)


SMOLLM2 = ModelDefaults(
    units=("heads",),
    mask={
        "ablation": "mean",
        "concept_objective": "uniform",
        "k_min": 1.0,
        "k_max": 16.0,
        "retain_weight": 16.0,
        "n_steps": 60,
    },
    mask_on_edges={
        "ablation": "mean",
        "concept_objective": "uniform",
        "k_min": 1.0,
        "k_max": 32.0,
        "retain_weight": 4.0,
        "n_steps": 80,
        "batch_size": 16,
    },
    relearn={
        "limits": ["16"],
        "n_steps": 16,
        "batch_size": 8,
        "n_evaluations": 2,
    },
    n_heldout=400,
)
"""Settings for prompts with an answer on a real language model."""
FINETUNE = BaseRecipe()
"""Settings for a pretrained model with a new head."""
GENERATED_STEPS = 400
"""Enough steps for a pretrained model on a generated corpus (3 epochs are 3,000)."""
