"""Integrated gradients of the margin from ablated to kept gates, site by site.

M. Sundararajan, A. Taly and Q. Yan (2017), "Axiomatic Attribution for Deep Networks",
https://arxiv.org/abs/1703.01365, with the ablation value as baseline. The gates of all
units of a site change together, as in D. Dai et al. (2022), "Knowledge Neurons in
Pretrained Transformers", https://arxiv.org/abs/2104.08696. Departure: the steps are
midpoints; their error is of order 1 / n_steps^2. Completeness: the scores of a site sum
to the decrease of the margin when the whole site is ablated.

Each step of a site is a copy of the batch in which this site alone has gates below 1.
Many copies go through the model in one pass (`attribution/row_blocks.py`). Edges are
run site by site, because their gates are shared by all rows of a pass.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch

from circuitcut.attribution.gate_gradients import concept_margin, gate_gradients
from circuitcut.attribution.row_blocks import Block, block_gradients
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.models.residual.replayed import record_blocks
from circuitcut.models.sites import Site
from circuitcut.storage.modes import evaluating

N_STEPS = 4
POSITIONS = 2048
"""Positions (tokens, or images) in one pass, copies counted: this bounds memory. On
GPT-2's shape 2,048 tokens need about 2.5 GB."""


def integrated_gradients_margin(
    subject: Subject, n_steps: int = N_STEPS, n_positions: int = POSITIONS
) -> Scores:
    """Share of each unit, in nats, in the margin's decrease when its site is ablated.

    Costs `n_steps` copies of each batch per site. One forward and one backward pass
    has as many copies as fit into `n_positions` positions, and at least one; it leaves
    out the layers below its sites, whose outputs one more pass a batch has recorded.
    """
    modules = [site for site in subject.sites if site.kind != "edges"]
    scores = _of_modules(subject, modules, n_steps, n_positions) if modules else {}
    for site in subject.sites:
        if site.kind == "edges":
            scores[site.name] = _of_edges(subject, site, n_steps)
    return {site.name: scores[site.name] for site in subject.sites}


def _of_modules(
    subject: Subject, sites: list[Site], n_steps: int, n_positions: int
) -> Scores:
    """Scores of units in modules, (n_units,) by site name."""
    # by layer: the forward pass begins and the backward pass ends at the lowest site
    blocks = [
        Block(site, keep)
        for site in sorted(sites, key=lambda site: site.layer)
        for keep in midpoints(n_steps)
    ]
    scores = {s.name: torch.zeros(s.n_units, dtype=torch.float64) for s in sites}
    total_weight = 0.0
    with evaluating(subject.model):
        for batch in subject.concept_batches():
            ablated = subject.ablated_at(batch)
            n_at_once = max(1, n_positions // batch["concept"].numel())
            recorded: list[Any] = []
            if n_at_once < len(blocks):
                run = partial(subject.task.outputs, subject.model, batch)
                recorded = record_blocks(subject.model, run)
            for first in range(0, len(blocks), n_at_once):
                group = blocks[first : first + n_at_once]
                gradients, weight = block_gradients(
                    subject, batch, ablated, group, concept_margin, recorded
                )
                for name, gradient in gradients.items():
                    scores[name] += gradient / n_steps
            total_weight += weight
    subject.check_weight(total_weight, "position of the behaviour")
    return {name: total / total_weight for name, total in scores.items()}


def _of_edges(subject: Subject, site: Site, n_steps: int) -> torch.Tensor:
    """Scores of the edges of one site, (n_units,)."""
    one_site = replace(subject, sites=(site,))
    steps = [
        gate_gradients(
            one_site, concept_margin, {site.name: torch.full((site.n_units,), keep)}
        )[site.name]
        for keep in midpoints(n_steps)
    ]
    return torch.stack(steps).mean(0)


def midpoints(n_steps: int) -> list[float]:
    """Gates in the middle of `n_steps` equal parts of the path from 0 to 1."""
    return [(step + 0.5) / n_steps for step in range(n_steps)]
