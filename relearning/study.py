"""What one relearning study consists of: task, models, mask and settings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from accelerate import Accelerator
from torch import nn

from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.loaded import LoadedModel
from circuitcut.relearning.conditions import Condition
from circuitcut.relearning.lora_rank import lora_rank
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Task


@dataclass(frozen=True)
class RelearnSettings:
    """How every condition is fine-tuned and measured."""

    n_steps: int = 60
    batch_size: int = 8
    lr: float = 5e-5
    weight_decay: float = 0.01
    optimiser: Literal["adam", "adamw", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "late"] = "constant"
    warmup: int = 0
    clip_norm: float | None = 1.0
    trained: str = "all"
    """Which parameters train: see `trained.trained_parameters`. `lora` adds adapters
    of rank 8 and trains them alone, `lora:16` such of rank 16."""
    n_evaluations: int = 8
    """Measured moments after step 0, spread geometrically."""
    evaluation_size: int = 64
    """Examples of one forward pass of the evaluation; changes no score."""
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "n_evaluations", "evaluation_size"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"argument {name} must be at least 1, got {getattr(self, name)}"
                )
        lora_rank(self.trained)  # checks it
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"argument lr must be positive, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise UserError(
                f"argument weight_decay must be at least 0, got {self.weight_decay}"
            )


@dataclass(frozen=True)
class Study:
    """What all conditions of one study share."""

    task: Task
    """Gives the `relearn` batches and the `heldout` scores."""
    loaded: LoadedModel
    """The base model; its weights are left as they are."""
    mask: FrozenMask
    """The cut under study."""
    settings: RelearnSettings
    never_learned: LoadedModel | None = None
    """The base model of the condition of that name, which needs it."""
    accelerator: Accelerator | None = None
    """Device and processes of the training loop; made if None."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the study is made with (`storage.provenance`), for its checkpoints."""

    def base_of(self, condition: Condition) -> LoadedModel:
        """The model that a condition starts from, before any cut.

        Raises:
            UserError: When it is `never_learned`, and the study has no such model.
        """
        if condition.name != "never_learned":
            return self.loaded
        if self.never_learned is None:
            raise UserError(
                "condition never_learned needs a base model of its own, got none; give "
                "one as never_learned of the Study"
            )
        return self.never_learned


AtEnd = Callable[[Condition, nn.Module, FrozenMask | None], dict[str, Any]]
"""(condition, relearned model, mask that still holds) -> JSON-able findings."""
OnLog = Callable[[Condition, int, dict[str, float]], None]
"""(condition, step, numbers of the training step)."""


@dataclass(frozen=True)
class Findings:
    """What is reported of a condition beside its measurements."""

    at_end: AtEnd | None = None
    """Called on every relearned model while its mask holds; its JSON-able result is
    kept as `ConditionRun.at_end`."""
    on_log: OnLog | None = None
    """Called with the numbers of every training step."""
    end_is_slow: bool = False
    """`at_end` takes long: the last state is saved before, so that a killed run does
    not train again."""


NO_FINDINGS = Findings()
"""Nothing beside the measurements."""
