"""How many units are ablated where the concept's score is a loss."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from circuitcut.experiments import freeze as freezing
from circuitcut.experiments.defaults.of_mask import PRETRAINED_KL, retain_kl_of
from circuitcut.experiments.freeze import freeze
from circuitcut.experiments.mask_config import MaskConfig
from circuitcut.experiments.plan import Plan, Size
from circuitcut.experiments.settings import MaskSettings
from circuitcut.masks.ablation import zero_values
from circuitcut.masks.mask_set import MaskSet
from circuitcut.models.module_sites import module_site
from circuitcut.tasks.base import Metric

N_UNITS = 100
SIZES = [2, 3, 4, 5, 7, 10, 13, 18, 25, 34, 47, 64]
"""The grid between k_min and k_max."""


@pytest.mark.parametrize(
    ("retain_cost", "retain_kl", "wiki", "expected"),
    [
        (0.02, math.inf, 4.0, 18),  # 20 units cost 2 %
        (0.02, 0.1, 4.0, 10),  # 10 units cost 0.1 nats
        (0.005, 0.1, 4.0, 5),
        (0.0001, 0.1, 4.0, 2),  # the fewest, though they cost too much
        (0.02, 0.0, 4.0, 2),
        (0.02, math.inf, 0.7, 3),  # 4 units cost 2.3 % of one kind of retained text
        (0.02, math.inf, math.nan, 18),  # no text of that kind
        (1.0, math.inf, 4.0, 64),
    ],
)
def test_all_limits_of_retained_text_hold(
    retain_cost: float,
    retain_kl: float,
    wiki: float,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
):
    """An ablated unit costs 0.1 % of the loss, 0.01 nats of KL, .004 nats of wiki."""
    measured: list[int] = []

    def scores(*args: Any, cut: Any = None, reference: Any = False, **_: Any) -> Any:
        k = cut.n_ablated if cut else 0
        found = {"toxic_nll": 5.0 + k, "retain_nll": 4.0 * (1 + k / 1000)}
        found["wiki_nll"] = wiki + 0.004 * k
        if cut:
            measured.append(k)
            assert reference  # else no KL is measured
            found["kl_retain"] = k / 100
        return SimpleNamespace(scores=found)

    monkeypatch.setattr(freezing, "evaluate", scores)
    monkeypatch.setattr(freezing, "cut_with", lambda _, mask: mask)
    monkeypatch.setattr(freezing, "provenance", lambda *_: {})
    model = nn.Linear(N_UNITS, 2)
    sites = (module_site(nn.Sequential(model), "0"),)
    settings = MaskSettings(k_min=2.0, k_max=64.0)
    experiment: Any = SimpleNamespace(
        task=SimpleNamespace(
            concept_metric=Metric("toxic_nll", False, "nats/token"),
            retain_losses=("retain_nll", "wiki_nll"),
        ),
        loaded=SimpleNamespace(model=model, special_ids=()),
        references={},
    )
    size = Size(retain_cost=retain_cost, retain_kl=retain_kl)
    plan = Plan(sites, settings, size, (), 0, ())
    masks = MaskSet(sites, settings.gate, settings)
    frozen = freeze(plan, experiment, masks, zero_values(sites))
    assert frozen.mask.n_ablated == expected
    assert torch.stack([~keep for keep in frozen.mask.keep.values()]).sum() == expected
    assert len(measured) <= 4  # of 12 sizes


def test_pretrained_models_alone_have_a_limit_of_kl():
    built_in = MaskConfig(task="toxicity", model="tiny-decoder")
    pretrained = MaskConfig(task="toxicity", model="smollm2")
    given = MaskConfig(task="toxicity", model="smollm2", retain_kl=0.3)
    limits = [retain_kl_of(config) for config in (built_in, pretrained, given)]
    assert limits == [math.inf, PRETRAINED_KL, 0.3]
