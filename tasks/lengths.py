"""Examples of a batch by length: short ones are not run with the padding of long ones.

A batch is padded to its longest example. Where that costs more than a second pass of
the model, it is run in groups of like length; scores and losses are the same up to
rounding.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitcut.tasks.base import Batch, rows_of

PASS = 256
"""Positions that cost as much as one more pass of the model."""


def by_length(batch: Batch) -> list[Bool[Tensor, "batch"]]:
    """Rows of each group, the longest first; one group where padding costs little.

    The groups have the lowest sum of padded positions, with `PASS` for each group.
    """
    mask = batch.get("attention_mask")
    n_rows = len(next(iter(batch.values())))
    if mask is None or mask.dim() != 2 or mask.numel() <= PASS:
        return [torch.ones(n_rows, dtype=torch.bool)]
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    lengths = (mask.bool() * places).amax(1).cpu()
    order = lengths.sort(descending=True, stable=True).indices
    longest = lengths[order].tolist()
    # least[i]: cost of the rows from the i-th longest on; ends[i]: where a group ends
    least, ends = [0.0] * (n_rows + 1), [n_rows] * (n_rows + 1)
    for i in reversed(range(n_rows)):
        costs = [
            PASS + longest[i] * (j - i) + least[j] for j in range(i + 1, n_rows + 1)
        ]
        least[i] = min(costs)
        ends[i] = i + 1 + costs.index(least[i])
    groups, i = [], 0
    while i < n_rows:
        rows = torch.zeros(n_rows, dtype=torch.bool)
        rows[order[i : ends[i]]] = True
        groups.append(rows)
        i = ends[i]
    return groups


def parts_by_length(batch: Batch) -> list[Batch]:
    """The groups of `by_length`, each without the padding that only others needed."""
    return [rows_of(batch, like) for like in by_length(batch)]
