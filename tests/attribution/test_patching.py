"""Exact patching against a run of the cut model for every unit, in double precision."""

import logging
from typing import Any

import pytest
import torch

from circuitcut.attribution.patching import patching
from circuitcut.attribution.registry import METHODS
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.masks.ablation import AblationValues, record_values, zero_values
from circuitcut.models.architectures import edge_sites, sites_of
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.residual.block_modules import PARTS, graph_of
from circuitcut.models.sites import Site
from circuitcut.models.spared import FIRST_POSITION
from tests.attribution.toy import (
    SITES,
    SPECIAL_IDS,
    DoubleTask,
    LinearTokens,
    ToyTask,
    ablation,
    mean_margin,
)
from tests.models.tiny import ENCODERS, exact_norms, tiny_model

SIZE = {"n_batches": 1, "size": 4}


def double(kind: str) -> Any:
    return tiny_model(kind, "token_classification").double().requires_grad_(False)


def subject_of(
    model: Any, sites: Any, ablated: AblationValues, special_ids: Any = ()
) -> Subject:
    return Subject(
        DoubleTask(), model, tuple(sites), ablated, "mask", 1, 4, 0, special_ids
    )


def one_by_one(
    model: Any,
    sites: Any,
    ablated: AblationValues,
    chosen: dict[str, list[int]],
    special_ids: Any = (),
) -> Scores:
    """The definition: one unit of a frozen mask, one run of the cut model."""
    task = ToyTask()

    def run(name: str | None = None, unit: int = 0) -> float:
        keep = {s.name: torch.ones(s.n_units, dtype=torch.bool) for s in sites}
        if name is not None:
            keep[name][unit] = False
        return mean_margin(
            task, model, list(sites), keep, ablated, special_ids=special_ids, **SIZE
        )

    clean = run()
    return {
        name: torch.tensor(
            [clean - run(name, unit) for unit in units], dtype=torch.float64
        )
        for name, units in chosen.items()
    }


def some(sites: Any, most: int) -> dict[str, list[int]]:
    """First, last and evenly spaced units of each site."""
    return {
        site.name: sorted({i * (site.n_units - 1) // most for i in range(most + 1)})
        for site in sites
    }


@pytest.mark.parametrize("special_ids", [(), (*SPECIAL_IDS, FIRST_POSITION)])
@pytest.mark.parametrize("how", ["mean", "counterfactual"])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "toy"])
def test_units_of_modules_score_as_one_run_each(kind: str, how: str, special_ids: Any):
    if kind == "toy":
        model: Any = LinearTokens(relu=True)
        sites: Any = tuple(SITES.values())
    else:
        model = double(kind)
        sites = sites_of(model, [k for k in MODULE_KINDS if k != "weights"])
        sites = [*sites, *sites_of(model, ["weights"])[:2]]
    ablated = ablation(how, ToyTask(), model, list(sites))
    chosen = some(sites, 3)
    expected = one_by_one(model, sites, ablated, chosen, special_ids)
    subject = subject_of(model, sites, ablated, special_ids)
    for n_positions in (1, 70) if kind == "toy" else (10**4,):
        scores = patching(subject, n_positions)
        assert list(scores) == [site.name for site in sites]
        for name, units in chosen.items():
            torch.testing.assert_close(
                scores[name][units], expected[name], rtol=0, atol=1e-9
            )
    assert max(v.abs().max() for v in expected.values()) > 1e-3


@pytest.mark.parametrize("kind", PARTS)
def test_edges_score_as_one_run_each(kind: str):
    model, is_encoder = double(kind), kind in ENCODERS
    # OLMo 2 normalises the keys of all heads together: they do not merge
    ways = ((False, "counterfactual"), (True, "zero"))[: 1 if kind == "olmo2" else 2]
    for merged, how in ways:
        with exact_norms(model):
            sites = edge_sites(model, graph_of(model, separate_qkv=not merged))
            sites = sites[:1] if is_encoder else sites  # a pass an edge
            ablated = ablation(how, ToyTask(), model, list(sites))
            chosen = some(sites, 5)
            expected = one_by_one(model, sites, ablated, chosen)
            scores = patching(subject_of(model, sites, ablated))
        for name, units in chosen.items():
            torch.testing.assert_close(
                scores[name][units], expected[name], rtol=0, atol=1e-9
            )
            assert expected[name].abs().max() > 1e-4


def test_edges_leave_a_spared_first_position_alone():
    model = double("gpt2")
    sites = sites_of(model, ["edges"], [1])
    ablated = ablation("counterfactual", ToyTask(), model, list(sites))
    chosen = some(sites, 9)
    spared, all_cut = (
        one_by_one(model, sites, ablated, chosen, ids)
        for ids in ((FIRST_POSITION,), ())
    )
    scores = patching(subject_of(model, sites, ablated, (FIRST_POSITION,)))
    name = sites[0].name
    torch.testing.assert_close(
        scores[name][chosen[name]], spared[name], rtol=0, atol=1e-9
    )
    assert (spared[name] - all_cut[name]).abs().max() > 1e-4


@pytest.mark.parametrize("units", ["heads", "edges"])
def test_small_changes_are_those_that_gradients_estimate(units: str):
    """With a - a0 = e a the error of the estimate falls with the square of e."""
    model, task = double("gpt2"), ToyTask()
    sites = sites_of(model, [units])
    errors = []
    for share in (0.1, 0.01):
        ablated = near_activations(model, sites, share)
        exact, estimated = (
            METHODS[name](task, model, sites, ablated, n_batches=1, size=1)
            for name in ("patching", "gradient_margin")
        )
        difference = max((exact[n] - estimated[n]).abs().max() for n in exact)
        errors.append((difference / max(v.abs().max() for v in exact.values())).item())
    assert errors[1] < 0.2 * errors[0] < 0.02


def near_activations(model: Any, sites: Any, share: float) -> AblationValues:
    """Ablation values (1 - share) a, of the one text that is scored."""
    task = ToyTask()
    inputs = task.inputs(task.batch("mask", 0, size=1, seed=0))
    recorded = record_values(model, sites, inputs).values
    values = {
        name: ((1 - share) * value).squeeze(1 if value.dim() == 4 else 0)
        for name, value in recorded.items()
    }
    return AblationValues("mean", values)


def test_blocks_below_a_site_run_once(caplog: pytest.LogCaptureFixture):
    model = double("gpt2")
    sites = sites_of(model, ["heads", "edges"])
    runs = [0, 0]
    hooks = []
    for layer in (0, 1):

        def count(*_: Any, layer: int = layer) -> None:
            runs[layer] += 1

        hooks.append(model.transformer.h[layer].ln_1.register_forward_hook(count))
    with caplog.at_level(logging.INFO):
        METHODS["patching"](ToyTask(), model, sites, zero_values(sites), **SIZE)
    for hook in hooks:
        hook.remove()
    n = {layer: sum(s.n_units for s in sites if s.layer == layer) for layer in (0, 1)}
    # 20 positions a copy: 102 copies a pass; one pass each for the margin, the
    # recorded blocks and the writers, and one for each site, of edges two a layer
    assert n[0] > 0 < n[1]
    assert runs[0] < runs[1]
    assert "copies of each of 1 batches of 4 examples" in caplog.text


def test_a_site_of_another_order_keeps_its_scores():
    model = double("gpt2")
    sites = sites_of(model, ["edges"])
    subject = subject_of(model, sites, zero_values(sites))
    turned = subject_of(model, sites[::-1], zero_values(sites))
    one, two = patching(subject), patching(turned)
    assert list(two) == list(one)[::-1]
    for name, values in one.items():
        torch.testing.assert_close(values, two[name], rtol=0, atol=1e-12)


def test_a_group_of_all_neurons_is_a_unit_of_its_own():
    """A whole MLP is one unit of a site that is as wide."""
    model, task = double("gpt2"), ToyTask()
    neurons = sites_of(model, ["neurons"])
    whole = [Site("neurons", s.module, s.layer, 1, s.width) for s in neurons]
    ablated = ablation("mean", task, model, whole)
    scores = patching(subject_of(model, whole, ablated))
    expected = one_by_one(model, whole, ablated, {s.name: [0] for s in whole})
    for name, value in scores.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-9)
