"""Exact greedy ablation against cutting every weight by hand."""

import torch
from torch.nn import functional

from circuitcut.benchmarks.greedy_edges import greedy_edges
from circuitcut.models.mlp import Mlp


def loss_with(model: Mlp, keep: torch.Tensor, means, pixels, targets) -> float:
    first = model.blocks[0].linear
    inputs = pixels @ (first.weight * keep).T + means @ (first.weight * (1 - keep)).T
    hidden = (inputs + first.bias).relu()
    return functional.cross_entropy(model.output(hidden), targets).item()


def test_every_step_cuts_the_weight_whose_ablation_gains_most():
    torch.manual_seed(0)
    model = Mlp(6, 4, 3).double()
    forgotten, retained = (
        (torch.randn(9, 6).double(), torch.randint(3, (9,))) for _ in range(2)
    )
    means = torch.randn(6).double()
    layers = (model.blocks[0].linear, model.output)
    for weight in (1.0, 0.1):
        others = None if weight == 1.0 else lambda step: retained
        order = greedy_edges(
            layers, means, forgotten, 5, retained=others, forget_weight=weight
        )
        keep = torch.ones(4, 6).double()
        for chosen in order.tolist():
            gains = torch.full((24,), -torch.inf).double()
            for edge in keep.view(-1).nonzero().flatten().tolist():
                keep.view(-1)[edge] = 0
                gains[edge] = weight * loss_with(model, keep, means, *forgotten)
                if others is not None:
                    gains[edge] -= loss_with(model, keep, means, *retained)
                keep.view(-1)[edge] = 1
            assert gains.argmax() == chosen
            keep.view(-1)[chosen] = 0
