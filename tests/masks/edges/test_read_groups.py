"""Layers read in groups: the reads, logits and gradients of layers read one by one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from circuitcut.masks.edges import read_groups
from circuitcut.masks.edges.buffers import Buffers
from circuitcut.masks.edges.gating import edge_gated
from circuitcut.masks.edges.memory import token_bytes
from circuitcut.masks.edges.read_groups import layers_of_group
from circuitcut.masks.edges.sparse import plan_of
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.models.residual.folded_model import ResidualModel
from tests.models.tiny import exact_norms

D_MODEL = 32
READERS = {"one by one": 1, "twos": 26, "all of them": 10_000}
"""`READERS` by how the five layers of 13 readers are read."""


def deep(dtype: torch.dtype = torch.float64) -> Any:
    """Five layers of grouped queries: two groups of two and one of one."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=D_MODEL,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)


def ids() -> Tensor:
    return torch.arange(18).view(2, 9) % 11


@pytest.mark.parametrize(
    ("n_layers", "n_readers"), [(7, 16), (30, 16), (1, 70), (3, 1)]
)
def test_every_layer_is_in_one_group_and_no_group_has_too_many_readers(
    n_layers: int, n_readers: int
):
    groups = [layers_of_group(i, n_layers, n_readers) for i in range(n_layers)]
    for layer, group in enumerate(groups):
        assert layer in group
        assert all(groups[other] == group for other in group)
        assert len(group) == 1 or len(group) * n_readers <= read_groups.READERS


def results(
    model: Any, n_readers: int, monkeypatch: pytest.MonkeyPatch, **how: Any
) -> list[Tensor]:
    """Logits and gradients of gates and of the input, with that many readers."""
    monkeypatch.setattr(read_groups, "READERS", n_readers)
    merged = how.pop("merged", False)
    stack = EdgeStack(ResidualModel(model, separate_qkv=not merged), **how)
    graph, rng = stack.model.graph, torch.Generator().manual_seed(1)
    dtype = model.dtype
    keep = torch.rand(graph.n_edges, generator=rng, dtype=dtype).requires_grad_()
    # ablation values make x0 grow from layer to layer
    ablated = torch.randn(graph.n_writers, 1, D_MODEL, generator=rng, dtype=dtype)
    embedded = model.get_input_embeddings()(ids()).detach().requires_grad_()
    found = []
    for _ in range(2):  # the second pass runs in the buffers of the first
        with edge_gated(stack, keep, ablated):
            logits = model(inputs_embeds=embedded).logits
        found = [logits, *torch.autograd.grad(logits.sin().sum(), (keep, embedded))]
    return found


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("tile", [2**22, 2000])
@pytest.mark.parametrize("name", ["twos", "all of them"])
def test_groups_of_layers_give_what_layers_one_by_one_give(
    name: str, tile: int, merged: bool, monkeypatch: pytest.MonkeyPatch
):
    model = deep()
    monkeypatch.setattr("circuitcut.masks.edges.reads.TILE", tile)
    with exact_norms(model):
        alone = results(model, 1, monkeypatch, store_reads=True, merged=merged)
        for stores in (True, False):
            grouped = results(
                model, READERS[name], monkeypatch, store_reads=stores, merged=merged
            )
            for one, other in zip(alone, grouped, strict=True):
                assert float(one.detach().abs().max()) > 1e-3
                torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", READERS)
def test_stored_and_recomputed_reads_are_the_same_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    model = deep(torch.float32)
    stored, recomputed = (
        results(model, READERS[name], monkeypatch, store_reads=stores)
        for stores in (True, False)
    )
    for one, other in zip(stored, recomputed, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.97])
def test_finished_masks_in_groups_give_the_logits_of_the_whole_stack(
    name: str, share: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(read_groups, "READERS", READERS[name])
    model, rng = deep(), torch.Generator().manual_seed(2)
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    ablated = torch.randn(graph.n_writers, 1, D_MODEL, generator=rng).double()
    keep = torch.rand(graph.n_edges, generator=rng) < share
    assert plan_of(stack.model, keep).form in ("kept", "ablated")
    with exact_norms(model), torch.no_grad():
        for values in (None, ablated):
            with edge_gated(stack, keep.double(), values):
                whole = model(ids()).logits
            with edge_gated(stack, keep, values):
                sparse = model(ids()).logits
            torch.testing.assert_close(sparse, whole, atol=1e-10, rtol=0)


def test_a_circuit_may_skip_the_first_layer_of_a_group(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(read_groups, "READERS", 10_000)
    model = deep()
    stack = EdgeStack(ResidualModel(model))
    graph = stack.model.graph
    chain = {"input->a1.h2<v>", "a1.h2->m3", "m3->logits", "input->a4.h0<q>"}
    chain |= {"a1.h2->a4.h0<v>", "a4.h0->logits"}
    keep = torch.tensor([name in chain for name in graph.edges()])
    plan = plan_of(stack.model, keep)
    assert (plan.form, plan.readers[0], plan.mlps) == ("kept", (), {3})
    values = torch.randn(graph.n_writers, 1, D_MODEL).double()
    with exact_norms(model), torch.no_grad():
        with edge_gated(stack, keep.double(), values):
            whole = model(ids()).logits
        with edge_gated(stack, keep, values):
            sparse = model(ids()).logits
    torch.testing.assert_close(sparse, whole, atol=1e-10, rtol=0)


def test_buffers_of_groups_are_given_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(read_groups, "READERS", 26)
    model = deep()
    taken = []
    borrow, give_back = Buffers.borrow, Buffers.give_back
    monkeypatch.setattr(
        Buffers, "borrow", lambda *a, **k: taken.append(1) or borrow(*a, **k)
    )
    monkeypatch.setattr(
        Buffers,
        "give_back",
        lambda self, *all_of: (
            taken.extend([-1] * len(all_of)) or give_back(self, *all_of)
        ),
    )
    results(model, 26, monkeypatch, store_reads=True)
    results(model, 26, monkeypatch, store_reads=False)
    assert sum(taken) == 0


def test_memory_counts_the_reads_of_a_group(monkeypatch: pytest.MonkeyPatch):
    residual = ResidualModel(deep(torch.float32))
    counts = []
    for n_readers in (1, 26):
        monkeypatch.setattr(read_groups, "READERS", n_readers)
        counts.append(token_bytes(residual, stored=False))
    # one layer more: 12 attention readers and the MLP, of 32 numbers of 4 bytes
    assert counts[1] - counts[0] == 13 * D_MODEL * 4
