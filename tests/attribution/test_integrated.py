"""Integrated gradients with many sites in one pass: the same scores, fewer passes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from circuitcut.attribution.gate_gradients import concept_margin, gate_gradients
from circuitcut.attribution.integrated import integrated_gradients_margin, midpoints
from circuitcut.attribution.subject import Scores, Subject
from circuitcut.models.architectures import sites_of
from circuitcut.models.names import MODULE_KINDS
from circuitcut.models.spared import FIRST_POSITION
from tests.attribution.toy import (
    SEQ,
    SITES,
    SPECIAL_IDS,
    LinearTokens,
    ToyTask,
    ablation,
)
from tests.models.tiny import tiny_model

KINDS = ("zero", "mean", "counterfactual")


def subject_of(model, sites, ablation_kind: str, special_ids=(), size: int = 4):
    task = ToyTask(3)
    ablated = ablation(ablation_kind, task, model, list(sites))
    return Subject(task, model, tuple(sites), ablated, "mask", 2, size, 0, special_ids)


def site_by_site(subject: Subject, n_steps: int) -> Scores:
    """The definition: one site and one step in each forward and backward pass."""
    return {
        site.name: torch.stack(
            [
                gate_gradients(
                    replace(subject, sites=(site,)),
                    concept_margin,
                    {site.name: torch.full((site.n_units,), keep)},
                )[site.name]
                for keep in midpoints(n_steps)
            ]
        ).mean(0)
        for site in subject.sites
    }


FAMILIES = ["gpt2", "llama", "bert", "toy"]
SPARED = [(), (*SPECIAL_IDS, FIRST_POSITION)]


@pytest.mark.parametrize(
    ("kind", "ablation_kind", "special_ids"),
    [
        (kind, how, SPARED[(i + j) % 2])
        for i, kind in enumerate(FAMILIES)
        for j, how in enumerate(KINDS)
    ],
)
def test_all_sites_in_one_pass_score_as_site_by_site(
    kind: str, ablation_kind: str, special_ids: tuple[int, ...]
):
    if kind == "toy":
        model, sites = LinearTokens(3, relu=True), tuple(SITES.values())
    else:
        model = tiny_model(kind, "token_classification").double().requires_grad_(False)
        kinds = [k for k in MODULE_KINDS if k != "weights" or ablation_kind != KINDS[2]]
        sites = sites_of(model, kinds)
    subject = subject_of(model, sites, ablation_kind, special_ids)
    expected = site_by_site(subject, 3)
    for n_positions in (1, 7 * 4 * SEQ, 10**6):
        scores = integrated_gradients_margin(subject, 3, n_positions)
        assert list(scores) == list(expected)
        for name, values in scores.items():
            torch.testing.assert_close(values, expected[name], rtol=1e-5, atol=1e-8)
        assert max(v.abs().max() for v in scores.values()) > 1e-3


def test_a_module_that_sees_batch_and_seq_as_one_axis_is_scored_alike():
    model = tiny_model("opt", "token_classification").double().requires_grad_(False)
    sites = sites_of(model, ["neurons"], layers=[1])
    subject = subject_of(model, sites, "counterfactual", SPECIAL_IDS)
    expected = site_by_site(subject, 2)
    for n_positions in (1, 10**6):
        scores = integrated_gradients_margin(subject, 2, n_positions)
        for name, values in scores.items():
            torch.testing.assert_close(values, expected[name], rtol=1e-5, atol=1e-8)
            assert values.abs().max() > 1e-3


def test_the_number_of_passes_is_that_of_the_copies_that_fit():
    model = tiny_model("gpt2", "token_classification").double().requires_grad_(False)
    sites = sites_of(model, ["neurons", "heads", "hidden"])
    subject = subject_of(model, sites, "mean")
    rows: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    n_copies = 4 * len(sites)
    n_batches = len(list(subject.concept_batches()))
    batch_rows = [len(batch["concept"]) for batch in subject.concept_batches()]
    integrated_gradients_margin(subject, 4)
    assert rows == [n_copies * n for n in batch_rows]
    rows.clear()
    integrated_gradients_margin(subject, 4, n_positions=5 * 4 * SEQ)
    # one more pass a batch records the layers
    assert len(rows) == n_batches * (1 + -(-n_copies // 5))
    assert max(rows) == 5 * max(batch_rows)
    handle.remove()


def test_layers_below_the_sites_of_a_pass_run_once_a_batch():
    model = tiny_model("llama", "token_classification").double().requires_grad_(False)
    sites = sites_of(model, ["neurons", "heads"])
    subject = replace(subject_of(model, sites, "zero"), n_batches=1)
    calls = [0, 0]

    def count(layer: int, *_: object) -> None:
        calls[layer] += 1

    for layer in (0, 1):
        mlp = model.get_submodule(f"model.layers.{layer}.mlp")
        mlp.register_forward_hook(partial(count, layer))
    integrated_gradients_margin(subject, 4, n_positions=1)
    # two sites a layer, four steps; the second layer runs for the sites of both
    assert calls == [1 + 8, 1 + 16]
    assert not any("forward" in vars(module) for module in model.modules())


def test_hooks_are_gone_after_an_error_and_a_trainable_model_gets_no_gradient():
    model = LinearTokens(3).requires_grad_(True)
    subject = subject_of(model, SITES.values(), "zero")
    integrated_gradients_margin(subject)
    assert all(parameter.grad is None for parameter in model.parameters())
    subject.task.first_concept = 99  # no batch has the concept
    with pytest.raises(ValueError, match="gave no position of the behaviour"):
        integrated_gradients_margin(subject)
    model.second.register_forward_pre_hook(lambda *_: 1 / 0)
    subject.task.first_concept = 5
    with pytest.raises(ZeroDivisionError):
        integrated_gradients_margin(subject)
    assert not model.first._forward_hooks
    assert len(model.second._forward_pre_hooks) == 1


def test_edges_are_still_scored_site_by_site_beside_units_of_modules():
    model = tiny_model("gpt2", "token_classification").double().requires_grad_(False)
    sites = sites_of(model, ["edges"])
    subject = subject_of(model, sites, "zero")
    expected = site_by_site(subject, 2)
    scores = integrated_gradients_margin(subject, 2)
    for name, values in scores.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-6, atol=1e-9)
