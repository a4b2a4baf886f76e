"""A mask trained on hidden units, as a ranking: it finds a planted unit."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from circuitcut.experiments.load import Experiment
from circuitcut.experiments.settings import MaskSettings
from circuitcut.experiments.stages.fresh import learned_scores
from tests.attribution.test_methods import PLANTED, planted_model
from tests.attribution.toy import SITES, ToyTask

SETTINGS = MaskSettings(k_min=1.0, k_max=3.0, n_steps=60, batch_size=8)


@dataclass(frozen=True)
class Loaded:
    """What is read of a loaded model."""

    model: nn.Module
    special_ids: tuple[int, ...] = ()


def scores(left_out: list[int] | None = None) -> torch.Tensor:
    model, site = planted_model(), SITES["hidden"]
    nowhere: Any = None
    loaded: Any = Loaded(model)
    accelerator = Accelerator(cpu=True)
    experiment = Experiment(nowhere, ToyTask(), nowhere, loaded, accelerator)
    out = None
    if left_out is not None:
        out = torch.zeros(site.n_units, dtype=torch.bool)
        out[left_out] = True
    return learned_scores(experiment, model, (site,), SETTINGS, out)


def test_the_planted_unit_is_the_first_of_a_trained_mask():
    found = scores()
    order = found.argsort(descending=True)
    assert order[0] == PLANTED
    assert (found[order][:-1] >= found[order][1:]).all()


@pytest.mark.parametrize("constant", [0, PLANTED])
def test_a_unit_without_a_gate_is_the_last(constant: int):
    found = scores([constant])
    assert found.argmin() == constant
    assert found.isfinite().all()
