"""A batch divided among processes so that they do together what one process does.

Gradients are averaged over processes, a batch's loss is a weighted mean over positions,
and shares of a batch differ in weight: each share's loss counts by its part of it.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def own_share(
    batch: Mapping[str, Tensor],
    weights: Float[Tensor, "batch *position"],
    index: int,
    n_processes: int,
) -> tuple[dict[str, Tensor], float]:
    """Every `n_processes`-th example from `index` on, and the weight of their loss.

    The mean over processes of weight times loss is the loss of the whole batch, so the
    result of training depends on the number of processes by rounding alone. A
    batch of which some process would get no weight goes to all of them, with weight 1.

    Args:
        batch: Tensors whose first dimension is the example, the same on every process.
        weights: Weight of every position in the loss, 0 where there is no target.
        index: Number of this process.
        n_processes: Number of processes.
    """
    if n_processes == 1:
        return dict(batch), 1.0
    sums = [weights[i::n_processes].sum().item() for i in range(n_processes)]
    if 0 in sums:
        return dict(batch), 1.0
    share = {name: values[index::n_processes] for name, values in batch.items()}
    return share, sums[index] * n_processes / sum(sums)
