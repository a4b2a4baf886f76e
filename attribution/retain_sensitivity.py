"""Second-order effect of a unit's ablation on the retained behaviour.

If the gate of unit i changes by d, the output distribution p of a position changes by
KL(p || p_d) = d^2 F_i / 2 + O(d^3), where F_i = E over y ~ p of (d log p(y) / d z_i)^2
is the Fisher information of the gate: S. Amari (1998), "Natural Gradient Works
Efficiently in Learning", https://doi.org/10.1162/089976698300017746. Answers y are
sampled from the model itself. Their derivatives have mean zero and are independent: the
expected square of their sum over a batch is the sum of the expected squares. One
backward pass per sample therefore gives the result for all examples.
"""

import torch
from torch import Tensor
from torch.nn import functional

from circuitcut.attribution.gate_gradients import (
    gated_outputs,
    gradients_of,
    open_gates,
)
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.storage.modes import evaluating
from circuitcut.tasks.base import Predictions

N_DRAWS = 4
_LEAST_SHARE = 1e-4  # smallest sensitivity as a share of the largest: no division by 0


def retain_sensitivity(subject: Subject) -> Scores:
    """Root of the mean Fisher information of every gate over the retained positions.

    Half of its square estimates KL(uncut || model with this unit ablated) in nats per
    retained position. The smallest value is 1e-4 of the largest.

    Raises:
        UserError: When no batch has a retained position.
    """
    rng = torch.Generator().manual_seed(subject.seed)
    squares = {
        site.name: torch.zeros(site.n_units, dtype=torch.float64)
        for site in subject.sites
    }
    total_weight = 0.0
    # with gated edges each forward pass allows only one backward pass
    n_forward = N_DRAWS if any(site.kind == "edges" for site in subject.sites) else 1
    with evaluating(subject.model):
        for batch in subject.batches():
            for _ in range(n_forward):
                gates = open_gates(subject)
                retained = gated_outputs(subject, batch, gates).retain
                for _ in range(N_DRAWS // n_forward):
                    score = _drawn_log_likelihood(retained, rng)
                    gradients = gradients_of(score, gates, retain_graph=True)
                    for name, gradient in gradients.items():
                        squares[name] += gradient.square() / N_DRAWS
            total_weight += retained.weights.sum().item()
    subject.check_weight(total_weight, "retained position")
    roots = {name: (sums / total_weight).sqrt() for name, sums in squares.items()}
    largest = max(root.max().item() for root in roots.values())
    least = largest * _LEAST_SHARE or 1.0
    return {name: root.clamp_min(least) for name, root in roots.items()}


def _drawn_log_likelihood(retained: Predictions, rng: torch.Generator) -> Tensor:
    """Sum over positions of sqrt(weight) log p(y), with y sampled from p."""
    if len(retained.targets) == 0:
        return retained.logits.sum()
    probabilities = retained.logits.detach().softmax(-1).cpu()
    drawn = torch.multinomial(probabilities, 1, generator=rng).squeeze(1)
    losses = functional.cross_entropy(
        retained.logits, drawn.to(retained.logits.device), reduction="none"
    )
    return -(retained.weights.sqrt() * losses).sum()
