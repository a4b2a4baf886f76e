"""What a task is run with where no flag says otherwise, as plain data on its class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class BaseRecipe:
    """How a base model is built and trained."""

    n_steps: int | None = None
    """Steps; None: three epochs over the base split."""
    batch_size: int = 16
    lr: float = 1e-4
    weight_decay: float = 0.01
    schedule: Literal["constant", "linear", "cosine", "late"] = "linear"
    warmup: int = 0
    tokenizer_kind: Literal["word", "wordpiece", "bpe"] = "word"
    vocab_size: int = 4096
    n_layers: int = 2
    d_model: int = 128
    n_heads: int = 4
    max_positions: int = 128
    d_hidden: int = 50
    """Hidden units of the image MLP."""
    embedding_noise: float = 0.0
    """Normal noise on token embeddings in training, in their standard deviations."""


@dataclass(frozen=True)
class ModelDefaults:
    """What a model changes of its task's defaults."""

    units: tuple[str, ...] | None = None
    mask: Mapping[str, Any] | None = None
    base: BaseRecipe | None = None
    """None fine-tunes a pretrained model with `FINETUNE`."""
    base_on_own_data: BaseRecipe | None = None
    """With `--data`, whose corpora are larger than the built-in one; None: `base`."""


@dataclass(frozen=True)
class TaskDefaults:
    """Defaults of one task; settings were chosen on the `tune` split."""

    model: str
    """The model that is cut."""
    units: tuple[str, ...]
    """The kinds of unit that are cut."""
    mask: Mapping[str, Any] = field(default_factory=dict)
    """Settings of mask training by name (`experiments.settings.MaskSettings`), for soft
    top-k and the direction `break`."""
    mask_on_edges: Mapping[str, Any] | None = None
    """Likewise on edges; None: `mask`."""
    of_model: Mapping[str, ModelDefaults] = field(default_factory=dict)

    def of(self, model: str) -> ModelDefaults:
        """What `model` changes; nothing where it is not named."""
        return self.of_model.get(model, ModelDefaults())


FINETUNE = BaseRecipe()
"""Of a pretrained model with a new head."""
GENERATED_STEPS = 400
"""A pretrained model has learned a generated corpus by then; three epochs are 3,000."""
