"""Neurons that earlier runs chose, read from masks and from neurons.json."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitcut.experiments.runs.chosen_neurons import chosen_neurons
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.architectures import sites_of
from circuitcut.storage.errors import UserError
from tests.models.tiny import D_MLP, tiny_model

SIZES = [D_MLP, D_MLP]


@pytest.fixture
def mask() -> FrozenMask:
    """Neurons 1 and 2 of layer 1 are ablated, and one head."""
    sites = sites_of(tiny_model("llama", "causal_lm"), ["neurons", "heads"])
    keep = {site.name: torch.ones(site.n_units, dtype=torch.bool) for site in sites}
    by_place = {(site.kind, site.layer): keep[site.name] for site in sites}
    by_place["neurons", 1][1:3] = False
    by_place["heads", 0][0] = False
    return FrozenMask(keep, sites, zero_values(sites))


def test_a_mask_gives_what_it_ablates_or_if_it_isolates_what_it_keeps(
    mask: FrozenMask, tmp_path: Path
):
    mask.save(tmp_path)
    found = chosen_neurons(tmp_path, SIZES)
    assert (found.kind, found.n_others) == ("ablated", 1)
    assert [of.nonzero()[:, 0].tolist() for of in found.chosen] == [[], [1, 2]]
    (tmp_path / "kept").mkdir()
    replace(mask, provenance={"direction": "isolate"}).save(tmp_path / "kept")
    kept = chosen_neurons(tmp_path / "kept", SIZES)
    assert kept.kind == "kept"
    assert [int(of.sum()) for of in kept.chosen] == [D_MLP, D_MLP - 2]


def test_knowledge_neurons_are_those_of_any_fact(tmp_path: Path):
    facts = [{"refined": [[0, 3], [1, 5]]}, {"refined": [[0, 3]]}, {}]
    (tmp_path / "neurons.json").write_text(json.dumps({"facts": facts}))
    for path in (tmp_path, tmp_path / "neurons.json"):
        found = chosen_neurons(path, SIZES)
        assert found.kind == "knowledge"
        assert [of.nonzero()[:, 0].tolist() for of in found.chosen] == [[3], [5]]


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ([{"refined": [[2, 0]]}], "it has a layer 2, where this model has 2"),
        ([{"refined": [[0, 48]]}], "it has neuron 0.48, where this model has 48"),
        ([{"refined": []}], "has no neurons"),
        ([{"refined": [[0, -1]]}], "facts"),
    ],
)
def test_neurons_of_another_model_are_refused(facts: Any, message: str, tmp_path: Path):
    (tmp_path / "neurons.json").write_text(json.dumps({"facts": facts}))
    with pytest.raises(UserError, match=message):
        chosen_neurons(tmp_path, SIZES)


def test_masks_of_another_model_and_of_no_neurons_are_refused(
    mask: FrozenMask, tmp_path: Path
):
    mask.save(tmp_path)
    with pytest.raises(UserError, match="48 neurons in layer 0, where this"):
        chosen_neurons(tmp_path, [7, 7])
    with pytest.raises(UserError, match="a layer 1, where this model has 1"):
        chosen_neurons(tmp_path, SIZES[:1])
    with pytest.raises(UserError, match=r"another folder with mask\.json"):
        chosen_neurons(tmp_path / "nothing", SIZES)
    (tmp_path / "neurons.json").write_text("{}")
    with pytest.raises(UserError, match=r"must be neurons\.json of a knowledge"):
        chosen_neurons(tmp_path / "neurons.json", SIZES)
