"""Integrated gradients of the margin, from ablated to kept, one site at a time.

M. Sundararajan, A. Taly and Q. Yan (2017), "Axiomatic Attribution for Deep Networks",
https://arxiv.org/abs/1703.01365, with the ablation value as baseline; all units of a
site move together, as in D. Dai et al. (2022), "Knowledge Neurons in Pretrained
Transformers", https://arxiv.org/abs/2104.08696. Departure: the steps are midpoints,
whose error falls with the square of their number. Completeness: the scores of a site
sum to what the margin loses when the whole site is ablated.
"""

from dataclasses import replace

import torch

from circuitcut.attribution.gate_gradients import concept_margin, gate_gradients
from circuitcut.attribution.subject import Scores, Subject

N_STEPS = 4


def integrated_gradients_margin(subject: Subject, n_steps: int = N_STEPS) -> Scores:
    """Nats of the margin that each unit accounts for on the way of its whole site.

    Costs `n_steps` forward and backward passes per site and batch.
    """
    scores: Scores = {}
    for site in subject.sites:
        alone = replace(subject, sites=(site,))
        steps = [
            gate_gradients(
                alone,
                concept_margin,
                {site.name: torch.full((site.n_units,), (step + 0.5) / n_steps)},
            )[site.name]
            for step in range(n_steps)
        ]
        scores[site.name] = torch.stack(steps).mean(0)
    return scores
