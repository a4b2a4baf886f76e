"""What every gate gives: samples in [0, 1], a closed-form count and a ranking."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.storage.flag_fields import flag

Direction = Literal["break", "isolate"]


@dataclass(frozen=True)
class DirectionSettings:
    """What the settings of every gate begin with; a gate's own stand in its file."""

    direction: Direction = flag(
        "break",
        "break: ablate few units so that the concept goes; isolate: keep few so that "
        "it alone stays",
    )


class Gate(nn.Module, ABC):
    """A trainable vector of gates over all units of a run: 1 keeps, 0 ablates.

    Args:
        n_units: Number of gates.
        settings: `masks.registry.GateSettings`, of which each gate reads its own.
    """

    recipe: ClassVar[Mapping[str, Any]] = {"penalty": "price", "lr": 0.15}
    """What a run with this gate changes of a task's recipe, by name of the setting;
    recipes are those of soft top-k."""
    recipe_isolating_edges: ClassVar[Mapping[str, Any]] = {"concept_objective": "js"}
    """Likewise, when few edges are kept. A bounded divergence: with KL, noise that
    breaks the circuit makes edges worth keeping that only make a broken circuit's
    answers less wrong."""
    has_threshold: ClassVar[bool] = True
    """A gate at 0.5 divides the kept from the ablated units; else their number is
    chosen by scores on the `tune` split."""
    n_units: int

    def __init__(self, n_units: int, settings: Any):
        del settings
        super().__init__()
        self.n_units = n_units

    @abstractmethod
    def sample(self, rng: torch.Generator) -> Float[Tensor, "unit"]:
        """One draw, once per step and outside the forward; `rng` is a CPU generator."""

    @abstractmethod
    def values(self) -> Float[Tensor, "unit"]:
        """Deterministic test-time gates."""

    @abstractmethod
    def keep_probs(self) -> Float[Tensor, "unit"]:
        """Probability (or, for deterministic gates, degree) of being kept."""

    @abstractmethod
    def scores(self) -> Float[Tensor, "unit"]:
        """Ranking of the units, the highest kept longest."""

    def anneal(self, progress: float) -> None:
        """Move schedules of the gate itself to `progress` in [0, 1] of the run."""
        del progress

    def project_(self) -> None:
        """Bring the parameters back into their range after an optimiser step."""
        return None

    def saturated_share(self) -> float:
        """Share of gates that get (almost) no gradient; 0 where every gate has one."""
        return 0.0
