"""Greedy edge ablation, the baseline of the published digit experiment, exact.

Each step cuts the input weight whose ablation raises the loss on the forgotten images
most, or the loss on them less that on a batch of the others. M. Li, X. Davies and M.
Nadeau (2023), "Circuit Breaking: Removing Model Behaviors with Targeted Ablation",
https://arxiv.org/abs/2309.05973. Every weight is really tried: cutting W[i, j] only
moves the input of hidden unit i, by -W[i, j] (x_j - mean_j), so all 39,200 trials of a
step share one forward pass up to there.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

Images = tuple[Float[Tensor, "image pixel"], Int[Tensor, "image"]]


def greedy_edges(
    layers: tuple[nn.Linear, nn.Linear],
    means: Float[Tensor, "pixel"],
    forgotten: Images,
    n_edges: int,
    *,
    retained: Callable[[int], Images] | None = None,
    forget_weight: float = 1.0,
) -> Int[Tensor, "edge"]:
    """Flat indices into the first layer's weight, in the order they are cut.

    Args:
        layers: The network: linear, ReLU, linear.
        means: Mean of every input: what an ablated weight meets.
        forgotten: Normalised pixels and classes of the behaviour to remove.
        n_edges: How many weights are cut.
        retained: Images of the rest for step number n; None leaves them out.
        forget_weight: Of the loss on `forgotten`, that on `retained` weighing 1.
    """
    keep = torch.ones_like(layers[0].weight)
    order = []
    for step in range(n_edges):
        gains = forget_weight * _losses_if_cut(layers, means, keep, *forgotten)
        if retained is not None:
            gains -= _losses_if_cut(layers, means, keep, *retained(step))
        gains[keep == 0] = -torch.inf
        best = int(gains.argmax())
        keep.view(-1)[best] = 0
        order.append(best)
    return torch.tensor(order)


@torch.no_grad()
def _losses_if_cut(
    layers: tuple[nn.Linear, nn.Linear],
    means: Tensor,
    keep: Tensor,
    pixels: Tensor,
    targets: Tensor,
) -> Float[Tensor, "hidden pixel"]:
    """Mean cross-entropy with each single weight ablated beside those that are."""
    first, last = layers
    centred = pixels - means
    inputs = functional.linear(centred, first.weight * keep)
    inputs = inputs + functional.linear(means, first.weight, first.bias)
    hidden = inputs.relu()
    logits = last(hidden)
    losses = torch.empty_like(first.weight)
    for unit in range(len(first.weight)):
        moved = inputs[:, unit, None] - first.weight[unit] * centred  # (image, pixel)
        change = moved.relu() - hidden[:, unit, None]
        trials = logits[:, None] + change[..., None] * last.weight[:, unit]
        answers = trials.gather(2, targets[:, None, None].expand(-1, len(means), 1))
        losses[unit] = (trials.logsumexp(2) - answers.squeeze(2)).mean(0)
    return losses
