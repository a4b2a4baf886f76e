"""A linear probe of the concept on all hidden units at once; its weights rank them.

Logistic regression of concept against other words on standardised states, by stochastic
gradient descent over batches as they come (scikit-learn), so that nothing is collected.
The score of a unit is the absolute value of its weight. F. Dalvi et al. (2019), "What
Is One Grain of Sand in the Desert?", https://arxiv.org/abs/1812.09355, use the elastic
penalty. Departures: both classes have the same weight in the sum, and the order is by
weight alone instead of by growing shares of each class's weight.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import SGDClassifier
from torch import Tensor

from circuitcut.attribution.words.moments import Moments
from circuitcut.attribution.words.states import Words

EPOCHS = 10
ALPHA = 1e-3
"""Weight of the penalty."""
Passes = Callable[[], Iterable[tuple[Words, Tensor]]]
"""Begins one pass over the words and their states."""


def linear_probe(
    passes: Passes, moments: Moments, *, penalty: str, seed: int
) -> Float[Tensor, "unit"]:
    """Absolute weights of the probe after `EPOCHS` passes; 0 for a constant unit.

    Args:
        passes: The same words each time.
        moments: Of these words.
        penalty: `l1`, `l2` or `elasticnet`.
        seed: Of the order of the words in a batch.
    """
    n_units = len(moments.mean)
    probe = SGDClassifier(
        loss="log_loss",
        penalty=penalty,
        alpha=ALPHA,
        l1_ratio=0.5,
        learning_rate="constant",
        eta0=1 / n_units,  # standardised states have a squared norm of about n_units
        average=True,
        random_state=seed,
    )
    std = moments.std
    scale = torch.where(std > 0, 1 / std.clamp(min=torch.finfo(std.dtype).tiny), 0.0)
    n_concept = moments.counts[moments.is_concept].sum().item()
    total = moments.counts.sum().item()
    weight_of = np.array([0.5 / (total - n_concept), 0.5 / n_concept]) * total
    for _ in range(EPOCHS):
        for words, states in passes():
            if not len(words.labels):
                continue
            x = ((states.double().cpu() - moments.mean) * scale).numpy()
            y = words.is_concept.cpu().numpy().astype(int)
            probe.partial_fit(x, y, classes=[0, 1], sample_weight=weight_of[y])
    return torch.from_numpy(np.abs(probe.coef_[0]))
