"""A step's batch as micro-batches that fit into memory, under one sample of the gates.

Short examples are not padded to the longest where that would cost much.

A task's losses are weighted means over positions, so the loss of a batch is the sum of
its micro-batches' losses, each by its share of the weight: they change nothing but
rounding. Each goes forward and back before the next; the gates' gradients add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from circuitcut.masks.edges.sites import graph_at, modules_and_edges
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError
from circuitcut.tasks.base import Batch, Split, Task, has_concept, rows_of
from circuitcut.tasks.lengths import by_length

BUDGET = 0.5
"""Of the free memory that a step may take: the rest is for what is not counted."""
Shares = dict[str, float]
"""Of each behaviour the share of the whole batch's weight."""
MicroBatchLoss = Callable[
    [Mapping[str, Tensor], Batch, Shares], tuple[Tensor, dict[str, float]]
]
"""(gates, micro-batch, shares) -> its share of the loss and of the logged numbers."""


def rows_that_fit(
    model: nn.Module,
    sites: Sequence[Site],
    length: int,
    *,
    counterfactual: bool = False,
    trained: bool = False,
) -> float:
    """Examples of `length` tokens that a step has memory for.

    Infinite without edges, whose gates take little more than the model itself; else it
    may be below 1.

    Args:
        trained: It trains the model under finished gates, with two moments a weight.
    """
    _, edges = modules_and_edges(sites)
    if not edges:
        return float("inf")
    from circuitcut.masks.edges.gating import (  # loads the engine
        free_bytes,
        residual_model,
        token_bytes,
    )

    residual = residual_model(model, graph_at(edges))
    weight = next(model.parameters())
    config = model.config
    n_classes = getattr(config, "vocab_size", 0)
    needed = token_bytes(residual, stored=False, n_classes=n_classes)
    if counterfactual:
        needed += residual.graph.n_writers * residual.d_model * weight.element_size()
    free = BUDGET * free_bytes(weight.device)
    if trained:
        free -= 3 * sum(w.numel() * w.element_size() for w in model.parameters())
    return free / (needed * length)


def evaluation_size(
    task: Task, model: nn.Module, sites: Sequence[Site], split: Split
) -> int:
    """Examples of one forward pass: the task's `eval_batch`, or what memory holds.

    Memory is counted for the longest examples with the concept.
    """
    n_most = task.eval_batch
    lengths = [
        rows_of(batch, has_concept(batch))["concept"].shape[1:].numel()
        for batch in task.evaluation_batches(split, size=n_most)
        if batch["concept"].any()
    ]
    n_fit = rows_that_fit(model, sites, max(lengths, default=1), counterfactual=True)
    return max(1, int(min(n_most, n_fit)))


def check_memory(
    model: nn.Module, sites: Sequence[Site], length: int, *, counterfactual: bool
) -> None:
    """Refuse what has no memory even one example at a time.

    Raises:
        UserError: With the length that fits.
    """
    rows = rows_that_fit(model, sites, length, counterfactual=counterfactual)
    if rows < 1:
        raise UserError(
            f"--units edges has memory for {int(rows * length)} tokens at once, and "
            f"--max_length is {length}; ask for at most that, for --merged_qkv true, "
            "or for other units"
        )


def check_relearning(
    model: nn.Module, sites: Sequence[Site], length: int, batch_size: int
) -> None:
    """Refuse to train a model under a mask on edges without the memory for a step.

    Raises:
        UserError: With the batch that fits.
    """
    rows = rows_that_fit(model, sites, length, trained=True)
    if rows < 1:
        raise UserError(
            "relearning under a mask on edges has no memory for one example of "
            f"--max_length {length} beside the weights, their gradients and Adam's "
            "moments; ask for shorter examples"
        )
    if rows < batch_size:
        raise UserError(
            f"relearning under a mask on edges has memory for {int(rows)} examples of "
            f"--max_length {length}, and --batch_size is {batch_size}; ask for at "
            f"most {int(rows)}"
        )


def micro_batches(
    batch: Batch, chosen: Sequence[Tensor]
) -> Iterator[tuple[Batch, Shares]]:
    """Pieces of a batch, with their shares of the weight.

    Args:
        chosen: The examples of each piece, by index.
    """
    total = _weights(batch)
    for rows_chosen in chosen:
        rows = rows_of(batch, rows_chosen)
        weights = _weights(rows)
        yield rows, {k: weights[k] / total[k] if total[k] else 0.0 for k in weights}


def _weights(batch: Batch) -> dict[str, float]:
    """Weight of the concept's and of the retained positions."""
    return {
        key: batch["weights"][batch[key]].sum().item() for key in ("concept", "retain")
    }


def loss_in_micro_batches(
    gates: Mapping[str, Tensor], batch: Batch, n_rows: int, loss_of: MicroBatchLoss
) -> tuple[Tensor, dict[str, float]]:
    """The loss of the whole batch, with its gradient for the gates.

    Memory is that of one micro-batch: the loss that comes back depends on the gates
    through the gradient already at hand, loss = total + sum_g (g - g.detach()) dL/dg.
    """
    groups = [group.nonzero().flatten() for group in by_length(batch)]
    chosen = [piece for group in groups for piece in group.split(n_rows)]
    if len(chosen) == 1:
        return loss_of(gates, batch, {"concept": 1.0, "retain": 1.0})
    leaves = {name: gate.detach().requires_grad_() for name, gate in gates.items()}
    total, logs = 0.0, dict[str, float]()
    for rows, shares in micro_batches(batch, chosen):
        loss, numbers = loss_of(leaves, rows, shares)
        loss.backward()
        total += float(loss.detach())
        for name, value in numbers.items():
            logs[name] = logs.get(name, 0.0) + value
    carrier = torch.tensor(total)
    for name, gate in gates.items():
        gradient = leaves[name].grad
        if gradient is not None:
            carrier = carrier.to(gate) + ((gate - gate.detach()) * gradient).sum()
    return carrier, logs
