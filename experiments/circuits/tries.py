"""Tries of masks: examples that fit into memory, a budget of tries, and pieces.

Zeller and Hildebrandt (2002), "Simplifying and Isolating Failure-Inducing Input",
https://doi.org/10.1109/32.988498, halve the input of a program until each part that is
left is needed. Here all pieces of one size are tried before they are halved, so that a
budget that ends early was spent on the largest ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from circuitcut.experiments.gate_training import counterfactual_values
from circuitcut.experiments.load import Experiment
from circuitcut.experiments.micro_batches import rows_that_fit
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import AblationValues
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.masks.gating import gated
from circuitcut.models.sites import split_by_site
from circuitcut.storage.progress import Progress
from circuitcut.tasks.base import Batch, has_concept, rows_of, to_device

MOST_TRIES = 256
"""Masks that one search tries, each a run of the model on its examples."""
_EXAMPLES = 64


class Budget:
    """Counts tries, and shows them with the time that the others take at most."""

    def __init__(self, bar: Progress, n_tries: int):
        self._bar, self._n_tries = bar, n_tries
        self.n_done = 0

    @property
    def is_spent(self) -> bool:
        """Whether there is no try left."""
        return self.n_done >= self._n_tries

    def spend(self) -> None:
        """One try is done."""
        self._bar.advance(self.n_done)
        self.n_done += 1


@contextmanager
def budget(label: str, n_tries: int) -> Iterator[Budget]:
    """A budget of tries with a progress bar."""
    with Progress(label, 0, n_tries, unit="try", summary=False) as bar:
        yield Budget(bar, n_tries)


def change_in_pieces(
    left: Callable[[], Tensor], change: Callable[[Tensor], bool], tries: Budget
) -> None:
    """Change all that can be changed: halves, quarters ..., then one by one.

    One by one it goes on until none of those left can be changed, or no try is left.

    Args:
        left: The edges that are not changed yet, (edge,), in the order of trying.
        change: Changes a piece of them, (edge,), where that does no harm, by one try;
            says whether it did.
        tries: Looked at before every piece.
    """
    pieces = _halves(left())
    while pieces:
        refused = []
        for piece in pieces:
            if tries.is_spent:
                return
            if not change(piece):
                refused.append(piece)
        pieces = [half for p in refused if len(p) > 1 for half in _halves(p)]
    is_changed = True
    while is_changed:
        is_changed = False
        edges = left()
        for place in range(len(edges)):
            if tries.is_spent:
                return
            is_changed |= change(edges[place : place + 1])


def _halves(piece: Tensor) -> list[Tensor]:
    return [half for half in piece.tensor_split(2) if len(half)]


@dataclass(frozen=True)
class Examples:
    """Some examples of `tune`, and the values that cut edges take there."""

    batch: Batch
    ablated: AblationValues


def examples_of(
    experiment: Experiment,
    settings: MaskSettings,
    mask: FrozenMask,
    *,
    with_concept: bool,
) -> list[Examples]:
    """Examples with, or without, a position of the concept, as many as memory allows
    in each piece.

    The values of counterfactual inputs are recorded once for all tries.
    """
    batch = experiment.task.batch("tune", 0, size=_EXAMPLES, seed=settings.seed)
    chosen = rows_of(batch, has_concept(batch) == with_concept)
    is_paired = mask.ablated.kind == "counterfactual"
    n_rows = rows_that_fit(
        experiment.loaded.model,
        mask.sites,
        chosen["concept"].shape[1:].numel(),
        counterfactual=is_paired,
    )
    n_rows = max(1, int(min(_EXAMPLES, n_rows)))
    pieces = []
    for start in range(0, len(chosen["concept"]), n_rows):
        piece = {name: v[start : start + n_rows] for name, v in chosen.items()}
        ablated = mask.ablated
        if is_paired:
            ablated = counterfactual_values(experiment, mask.sites, piece)
        moved = to_device(piece, experiment.accelerator.device)
        pieces.append(Examples(moved, ablated))
    return pieces


def cut_by_gates(model: Any, mask: FrozenMask, keep: Tensor, examples: Examples) -> Any:
    """The context in which other edges of the mask's sites are kept, for examples.

    Args:
        keep: Of all edges.
    """
    named = split_by_site(keep, mask.sites)
    return gated(
        model, mask.sites, named, examples.ablated, special_ids=mask.special_ids
    )
