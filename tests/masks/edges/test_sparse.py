"""Few ablated and few kept edges: the logits of the whole stack, for fewer products."""

from typing import Any

import pytest
import torch
from torch import Tensor

from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.sparse import plan_of
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.folded_model import ResidualModel
from tests.masks.edges.test_stack import FAMILIES, double, exact_norms, run

SWITCHES: list[dict[str, Any]] = [
    {"separate_qkv": False},
    {"attention_bias": "heads"},
    {"value_bias": "output"},
    {"attention_bias": "heads", "value_bias": "output_with_norm"},
    {"position": "own"},
    {"position": "always"},
]


def masks(n_edges: int) -> dict[str, Tensor]:
    """By the form they should take: few ablated, few kept, and the ends."""
    rng = torch.Generator().manual_seed(7)
    order = torch.rand(n_edges, generator=rng).argsort()
    few = torch.zeros(n_edges, dtype=torch.bool)
    few[order[: n_edges // 12]] = True
    nothing = torch.zeros_like(few)
    return {"ablated": ~few, "kept": few, "none": nothing, "all": ~nothing}


def check(model: Any, switches: dict[str, Any]) -> set[str]:
    stack = EdgeStack(ResidualModel(model, **switches))
    graph = stack.model.graph
    rng = torch.Generator().manual_seed(8)
    values = torch.randn(graph.n_writers, 1, 32, generator=rng).double()
    forms = set()
    with exact_norms(model), torch.no_grad():
        for keep in masks(graph.n_edges).values():
            for ablated in (None, values):
                whole = run(model, stack, keep.double(), ablated)
                sparse = run(model, stack, keep, ablated)
                torch.testing.assert_close(sparse, whole, atol=1e-10, rtol=0)
            forms.add(plan_of(stack.model, keep).form)
    return forms


@pytest.mark.parametrize("kind", FAMILIES)
def test_finished_masks_give_the_logits_of_the_whole_stack(kind: str):
    forms = check(double(kind), {})
    assert "ablated" in forms
    if kind not in (
        "olmo2",
        "gemma2",
        "gemma3_text",
    ):  # a norm over what all heads write
        assert "kept" in forms


@pytest.mark.parametrize("switches", SWITCHES)
def test_finished_masks_of_other_graphs(switches: dict[str, Any]):
    assert check(double("gpt2"), switches) >= {"ablated", "kept"}


def test_merged_readers_of_families_with_interleaved_projections():
    assert check(double("gpt_neox"), {"separate_qkv": False}) >= {"ablated", "kept"}


def test_values_may_differ_by_token():
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    values = torch.randn(graph.n_writers, 12, 32).double()
    with torch.no_grad():
        for keep in masks(graph.n_edges).values():
            whole = run(model, stack, keep.double(), values)
            sparse = run(model, stack, keep, values)
            torch.testing.assert_close(sparse, whole, atol=1e-10, rtol=0)


def test_what_reaches_nothing_is_not_run():
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model))
    names = list(stack.model.graph.edges())
    chain = {"input->m0", "m0->logits", "input->a1.h2<q>"}
    keep = torch.tensor([name in chain for name in names])
    plan = plan_of(stack.model, keep)
    assert plan.form == "kept"
    assert plan.heads == ((), ())
    assert plan.mlps == {0}
    called = []
    handle = model.transformer.h[1].mlp.register_forward_hook(
        lambda *_: called.append(1)
    )
    with torch.no_grad(), edge_gated(stack, keep):
        model(torch.arange(5, 9)[None])
    handle.remove()
    assert not called


def test_shrinking_circuits_hold_no_more_memory_than_the_whole_stack():
    model = double("gpt2")
    stack = EdgeStack(ResidualModel(model))
    n_edges = stack.model.graph.n_edges
    rng = torch.Generator().manual_seed(9)
    order = torch.rand(n_edges, generator=rng).argsort()
    with torch.no_grad():
        run(model, stack, torch.full((n_edges,), 0.5).double(), None)
        whole = stack.buffers.n_bytes
        for n_kept in range(n_edges, 0, -1):
            keep = torch.zeros(n_edges, dtype=torch.bool)
            keep[order[:n_kept]] = True
            run(model, stack, keep, None)
            assert stack.buffers.n_bytes <= whole
