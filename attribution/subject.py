"""The inputs of every ranking: a task, a model, its sites and a number of batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationValues, record_values
from circuitcut.models.sites import Site
from circuitcut.models.spared import spared_positions
from circuitcut.storage.errors import UserError
from circuitcut.storage.progress import shown
from circuitcut.tasks.base import (
    Batch,
    Split,
    Task,
    has_concept,
    rows_of,
    to_device,
)

Scores = dict[str, Tensor]
"""One value per unit by site name; the higher, the earlier the unit is ablated."""


def kept_order(scores: Scores, direction: str | None) -> Scores:
    """A ranking of which the highest are kept longest.

    `break` ablates the most responsible units first. `isolate` keeps what matters
    either way, by absolute scores: a circuit without what holds the concept back is
    another one.
    """
    if direction == "isolate":
        return {name: values.abs() for name, values in scores.items()}
    return {name: -values for name, values in scores.items()}


@dataclass(frozen=True)
class Subject:
    """The arguments of a ranking method.

    Raises:
        UserError: When there are no sites or no batches.
    """

    task: Task
    model: nn.Module
    sites: tuple[Site, ...]
    ablated: AblationValues
    split: Split
    n_batches: int
    size: int
    """Examples per batch."""
    seed: int
    special_ids: tuple[int, ...]
    """No unit is ablated at positions with these `input_ids` (`FIRST_POSITION`: at the
    first position of a text); they are not scored."""

    def __post_init__(self) -> None:
        if not self.sites:
            raise UserError("argument sites must name at least one site, got none")
        if self.n_batches < 1:
            raise UserError(
                f"argument n_batches must be at least 1, got {self.n_batches}"
            )

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the model's parameters."""
        return next(self.model.parameters()).dtype

    def batches(self) -> Iterator[Batch]:
        """The first `n_batches` mask-training batches of the split, on the device."""
        for step in shown(range(self.n_batches), "attribution"):
            batch = self.task.batch(self.split, step, size=self.size, seed=self.seed)
            yield to_device(batch, self.device)

    def concept_batches(self) -> Iterator[Batch]:
        """The same batches without the examples that have no concept position."""
        for batch in self.batches():
            rows = has_concept(batch)
            if rows.any():
                yield rows_of(batch, rows)

    def ablated_at(self, batch: Batch) -> AblationValues:
        """The ablation values of a batch; counterfactual ones are recorded on it."""
        if self.ablated.kind != "counterfactual":
            return self.ablated
        paired = self.task.inputs(self.task.counterfactual(batch))
        return record_values(self.model, self.sites, paired)

    def check_weight(self, total: float, what: str) -> None:
        """Check that an average has a positive total weight.

        Raises:
            UserError: When the batches had no `what`.
        """
        if total == 0:
            raise UserError(
                f"split {self.split!r} gave no {what} in {self.n_batches} batches of "
                f"{self.size} examples; give a larger n_batches"
            )

    def cuttable(self, batch: Batch) -> Bool[Tensor, "*position"]:
        """True at the positions of a batch at which a mask acts."""
        cuttable = torch.ones_like(batch["retain"])
        if self.special_ids:
            ids, mask = batch["input_ids"], batch.get("attention_mask")
            cuttable &= ~spared_positions(ids, mask, self.special_ids)
        return cuttable
