"""Edges on a GPU: logits and gradients of the CPU, finished masks, bfloat16."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.masks.edges.gating import edge_gated, residual_model
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.block_modules import graph_of
from tests.models.tiny import D_MODEL, exact_norms, tiny_inputs, tiny_model

HEADS = {
    "gpt2": "causal_lm",
    "llama": "causal_lm",
    "gpt_neox": "causal_lm",
    "bert": "token_classification",
}


def outputs(
    model: Any, keep: Tensor, values: Tensor | None, *, store_reads: bool = True
) -> list[Tensor]:
    """Logits, and the derivatives of the gates if they are floats, on the CPU."""
    parameter = next(model.parameters())
    stack = EdgeStack(residual_model(model, graph_of(model)), store_reads=store_reads)
    inputs = {k: v.to(parameter.device) for k, v in tiny_inputs(model).items()}
    values = None if values is None else values.to(parameter)
    real = inputs["attention_mask"].bool()
    if keep.dtype == torch.bool:
        with torch.no_grad(), edge_gated(stack, keep.to(parameter.device), values):
            return [model(**inputs).logits[real].double().cpu()]
    gates = keep.to(parameter.device).detach().clone().requires_grad_()
    with edge_gated(stack, gates, values):
        logits = model(**inputs).logits[real]
        (gradient,) = torch.autograd.grad(logits.float().tanh().sum(), gates)
    return [logits.detach().double().cpu(), gradient.double().cpu()]


def setting(kind: str, seed: int = 0) -> tuple[Any, Tensor, Tensor]:
    """A float64 model, a gate for every edge and an ablation value for every writer."""
    model = tiny_model(kind, HEADS[kind]).double().requires_grad_(False)
    graph = graph_of(model)
    rng = torch.Generator().manual_seed(seed)
    keep = torch.rand(graph.n_edges, generator=rng).double()
    values = torch.randn(graph.n_writers, 1, D_MODEL, generator=rng).double()
    return model, keep, values


@pytest.mark.parametrize("store_reads", [True, False])
@pytest.mark.parametrize("has_values", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_logits_and_gradients_of_all_edges_are_those_of_the_cpu(
    kind: str, has_values: bool, store_reads: bool, device: torch.device
):
    model, keep, values = setting(kind)
    used = values if has_values else None
    with exact_norms(model):
        expected = outputs(model, keep, used, store_reads=store_reads)
        found = outputs(model.to(device), keep, used, store_reads=store_reads)
    assert expected[1].abs().max() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("kind", HEADS)
def test_finished_masks_give_the_logits_of_the_cpu(
    kind: str, share: float, device: torch.device
):
    model, gates, values = setting(kind, seed=1)
    keep = gates < share
    with exact_norms(model):
        expected = outputs(model, keep, values)
        found = outputs(model.to(device), keep, values)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", HEADS)
def test_bfloat16_gradients_of_edges_point_where_those_of_float32_do(
    kind: str, device: torch.device
):
    model, keep, values = setting(kind)
    model, keep = model.float().to(device), keep.float()
    exact = outputs(model, keep, values.float())[1]
    rounded = outputs(model.bfloat16(), keep, values.float())[1]
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98
