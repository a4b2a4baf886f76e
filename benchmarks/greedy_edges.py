"""Exact greedy edge ablation, the baseline of the published digit experiment.

Each step cuts the input weight with the largest increase of the loss on the forgotten
images, or of this loss minus the loss on a batch of retained images. M. Li, X. Davies
and M. Nadeau (2023), "Circuit Breaking: Removing Model Behaviors with Targeted
Ablation", https://arxiv.org/abs/2309.05973. The loss is computed for every weight:
cutting W[i, j] changes only the input of hidden unit i, by -W[i, j] (x_j - mean_j), so
that all 39,200 candidates of a step share one forward pass to the hidden layer.
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
    """Flat indices into the first layer's weight, in the order of cutting.

    Args:
        layers: The two linear layers of the network linear, ReLU, linear.
        means: Mean of every input; an ablated weight is multiplied with it.
        forgotten: Normalised pixels and classes of the behaviour to remove.
        n_edges: Number of weights to cut.
        retained: Function from the step number to retained images; None: no such term.
        forget_weight: Weight of the loss on `forgotten`; the loss on `retained` has
            weight 1.
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
    """Mean cross-entropy if each weight were ablated in addition to those of `keep`."""
    first, last = layers
    centred = pixels - means
    inputs = functional.linear(centred, first.weight * keep)
    inputs = inputs + functional.linear(means, first.weight, first.bias)
    hidden = inputs.relu()
    logits = last(hidden)
    losses = torch.empty_like(first.weight)
    for unit in range(len(first.weight)):
        cut_inputs = inputs[:, unit, None] - first.weight[unit] * centred
        change = cut_inputs.relu() - hidden[:, unit, None]  # (image, pixel)
        trials = logits[:, None] + change[..., None] * last.weight[:, unit]
        answers = trials.gather(2, targets[:, None, None].expand(-1, len(means), 1))
        losses[unit] = (trials.logsumexp(2) - answers.squeeze(2)).mean(0)
    return losses
