"""Areas, shares, and the connected part of a circuit against removal by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitcut.attribution.faithfulness import FRACTIONS, areas, faithfulness
from circuitcut.models.residual.connected_edges import connected
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError

GRAPHS = [
    ResidualGraph(2, 2, 2),
    ResidualGraph(2, 2, 2, separate_qkv=False),
    ResidualGraph(3, 4, 2),
    ResidualGraph(2, 2, 2, parallel=True),
    ResidualGraph(2, 2, 1, position="own"),
]


def test_a_circuit_that_is_always_faithful():
    cpr, cmd = areas(FRACTIONS, [1.0] * len(FRACTIONS))
    assert cpr == pytest.approx(0.999)
    assert cmd == pytest.approx(0)


def test_areas_by_hand():
    # a quarter of the mean of 0 and .5, three quarters of that of .5 and 1.5
    assert areas([0.0, 0.25, 1.0], [0.0, 0.5, 1.5]) == pytest.approx((0.8125, 0.5625))
    assert areas([0.1, 1.0], [None, 1.0]) == (None, None)
    with pytest.raises(UserError, match="rise"):
        areas([0.5, 0.1], [1.0, 1.0])


def test_shares_between_none_and_all():
    assert faithfulness(3.0, 3.0, -1.0) == 1
    assert faithfulness(-1.0, 3.0, -1.0) == 0
    assert faithfulness(5.0, 3.0, -1.0) == 1.5
    assert faithfulness(1.0, 2.0, 2.0) is None


def _ends(graph: ResidualGraph) -> list[tuple[str, set[str]]]:
    """Writer and the nodes that read, of every edge; a group's keys are its heads'."""
    per_group = graph.n_heads // graph.n_kv_heads
    found = []
    for name in graph.edges():
        writer, reader = name.split("->")
        node, _, port = reader.rstrip(">").partition("<")
        nodes = {node}
        if port in ("k", "v"):
            layer, group = node.split(".h")
            first = int(group) * per_group
            nodes = {f"{layer}.h{head}" for head in range(first, first + per_group)}
        found.append((writer, nodes))
    return found


def _removed_by_hand(graph: ResidualGraph, keep: list[bool]) -> list[bool]:
    """Edges at nodes without in- or out-edges are removed until none is found."""
    ends, kept = _ends(graph), list(keep)
    sources = {"input", "position"}
    while True:
        with_input = {
            node for (_, ns), k in zip(ends, kept, strict=True) if k for node in ns
        }
        with_output = {w for (w, _), k in zip(ends, kept, strict=True) if k}
        alive_in, alive_out = with_input | sources, with_output | {"logits"}
        after = [
            k and writer in alive_in and any(n in alive_in & alive_out for n in nodes)
            for (writer, nodes), k in zip(ends, kept, strict=True)
        ]
        if after == kept:
            return kept
        kept = after


@given(st.sampled_from(GRAPHS), st.integers(0, 10_000), st.floats(0.05, 0.9))
@settings(max_examples=60, deadline=None)
def test_connected_is_what_removal_leaves(graph: ResidualGraph, seed: int, p: float):
    rng = torch.Generator().manual_seed(seed)
    keep = torch.rand(graph.n_edges, generator=rng) < p
    before = keep.clone()
    found = connected(graph, keep)
    assert torch.equal(keep, before)
    assert found.tolist() == _removed_by_hand(graph, keep.tolist())


@pytest.mark.parametrize("graph", GRAPHS)
def test_everything_and_nothing_are_connected(graph: ResidualGraph):
    everything = torch.ones(graph.n_edges, dtype=torch.bool)
    assert connected(graph, everything).all()
    assert not connected(graph, ~everything).any()
