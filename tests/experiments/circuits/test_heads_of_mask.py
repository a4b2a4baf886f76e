"""Heads of a mask as results.json names them."""

import torch

from circuitcut.experiments.circuits.heads_of_mask import heads_of
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.sites import Site

SITES = (
    Site("heads", "layers.1", 1, 3, unit_size=4),
    Site("heads", "layers.0", 0, 3, unit_size=4),
    Site("neurons", "layers.0.mlp", 0, 5),
)


def mask(first: list[int], second: list[int]) -> FrozenMask:
    keep = {
        SITES[0].name: torch.tensor(second).bool(),
        SITES[1].name: torch.tensor(first).bool(),
        SITES[2].name: torch.zeros(5, dtype=torch.bool),
    }
    return FrozenMask(keep, SITES, zero_values(SITES))


def test_the_fewer_heads_are_named_and_every_head_has_its_score():
    ranking = {site.name: torch.arange(site.n_units) / 2 for site in SITES}
    found = heads_of(mask([1, 0, 1], [1, 1, 0]), ranking)
    assert found == {
        "kept": False,
        "names": ["a0.h1", "a1.h2"],
        "layers": [
            {"layer": 0, "n_heads": 3, "ablated": [1], "scores": [0.0, 0.5, 1.0]},
            {"layer": 1, "n_heads": 3, "ablated": [2], "scores": [0.0, 0.5, 1.0]},
        ],
    }
    circuit = heads_of(mask([0, 0, 1], [0, 0, 0]))
    assert circuit is not None
    assert (circuit["kept"], circuit["names"]) == (True, ["a0.h2"])
    assert circuit["layers"][0] == {
        "layer": 0,
        "n_heads": 3,
        "ablated": [0, 1],
        "scores": None,
    }


def test_without_heads_there_is_none():
    neurons = FrozenMask(
        {SITES[2].name: torch.ones(5, dtype=torch.bool)},
        SITES[2:],
        zero_values(SITES[2:]),
    )
    assert heads_of(neurons) is None
