"""A batch divided among processes so that they do together what one process does.

Gradients are averaged over processes, a batch's loss is a mean over its targets, and
shares of a batch differ in targets: each share's loss is weighted by its part of them.
"""

from collections.abc import Mapping

from torch import Tensor

NO_TARGET = -100


def own_share(
    batch: Mapping[str, Tensor], index: int, n_processes: int
) -> tuple[dict[str, Tensor], float]:
    """Every `n_processes`-th example from `index` on, and the weight of their loss.

    The mean over processes of weight times loss is the loss of the whole batch, so the
    result of a training does not depend on the number of processes but for rounding. A
    batch of which some process would get no target goes to all of them, with weight 1.

    Args:
        batch: Tensors whose first dimension is the example, `targets` among them
            (-100 where there is none), the same on every process.
        index: Number of this process.
        n_processes: Number of processes.
    """
    n_targets = [
        int((batch["targets"][i::n_processes] != NO_TARGET).sum())
        for i in range(n_processes)
    ]
    if n_processes == 1 or 0 in n_targets:
        return dict(batch), 1.0
    share = {name: values[index::n_processes] for name, values in batch.items()}
    return share, n_targets[index] * n_processes / sum(n_targets)
