"""Sites by module path say what they gate, and refuse what cannot be told."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from circuitcut.masks.ablation import zero_values
from circuitcut.masks.gating import gated
from circuitcut.models.module_sites import module_site
from circuitcut.storage.errors import UserError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "layers": nn.ModuleList([nn.Linear(6, 4), nn.Linear(4, 8)]),
            "conv1d": Conv1D(5, 6),
            "norm": nn.LayerNorm(6),
            "act": nn.ReLU(),
        }
    )


@pytest.mark.parametrize(
    ("path", "kind", "size", "expected"),
    [
        ("layers.1", "neurons", 1, (4, 1, 1)),
        ("layers.1", "hidden", 1, (8, 1, 1)),
        ("layers.1", "weights", 1, (32, 1, 1)),
        ("layers.0", "heads", 3, (2, 3, 0)),
        ("conv1d", "neurons", 1, (6, 1, 1)),
        ("conv1d", "hidden", 1, (5, 1, 1)),
        ("norm", "hidden", 2, (3, 2, 0)),
    ],
)
def test_units_and_layer_come_from_the_module(
    path: str, kind: Any, size: int, expected: tuple[int, int, int]
):
    site = module_site(network(), path, kind, unit_size=size)
    assert (site.n_units, site.unit_size, site.layer) == expected


@pytest.mark.parametrize("kind", ["neurons", "hidden", "weights"])
def test_a_closed_site_is_the_network_with_zeros_there(kind: Any):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, layer = torch.randn(5, 6), model[2]
    site = module_site(model, "2", kind)
    keep = {site.name: torch.zeros(site.n_units)}
    with gated(model, [site], keep, zero_values([site])):
        cut = model(x)
    expected = torch.zeros(5, 3) if kind == "hidden" else layer.bias.expand(5, 3)
    torch.testing.assert_close(cut, expected)


@pytest.mark.parametrize(
    ("path", "kind", "more", "message"),
    [
        ("layers.7", "neurons", {}, "no module 'layers.7'"),
        ("layers.0", "edges", {}, "for edges use sites_of"),
        ("act", "neurons", {}, "width unknown"),
        ("layers.0", "heads", {"unit_size": 4}, "has width 6, units have 4"),
        ("layers.0", "neurons", {"n_units": 5}, "must be the width 6"),
        ("act", "weights", {}, "width unknown"),
    ],
)
def test_what_cannot_be_a_site_is_refused(
    path: str, kind: Any, more: dict[str, int], message: str
):
    with pytest.raises(UserError, match=message):
        module_site(network(), path, kind, **more)


def test_a_module_without_weights_takes_the_number_that_is_given():
    site = module_site(network(), "act", "hidden", n_units=4, layer=3)
    assert (site.width, site.layer) == (4, 3)
