"""Counts and names of edges against formulas and the published numbers."""

import pytest

from circuitcut.models.residual.graph import ResidualGraph


@pytest.mark.parametrize(
    ("graph", "n_edges"),
    [
        (ResidualGraph(12, 12, 12), 32_491),
        (ResidualGraph(12, 12, 12, separate_qkv=False), 11_611),
        (ResidualGraph(12, 12, 12, position="own"), 32_936),
    ],
)
def test_gpt2_small_has_the_published_numbers_of_edges(graph, n_edges: int):
    assert graph.n_edges == n_edges
    assert len(set(graph.edges())) == n_edges


def test_edges_lie_reader_by_reader():
    graph = ResidualGraph(1, 2, 1)
    assert list(graph.edges()) == [
        "input->a0.h0<q>",
        "input->a0.h1<q>",
        "input->a0.h0<k>",
        "input->a0.h0<v>",
        "input->m0",
        "a0.h0->m0",
        "a0.h1->m0",
        "input->logits",
        "a0.h0->logits",
        "a0.h1->logits",
        "m0->logits",
    ]
    assert list(graph.edges()).index("a0.h1->m0") == 6


def test_parallel_blocks_have_no_edge_from_heads_to_their_own_mlp():
    names = set(ResidualGraph(2, 2, 2, parallel=True).edges())
    assert "a0.h0->m0" not in names
    assert "a0.h0->m1" in names


def test_graphs_name_their_difference():
    graph = ResidualGraph(2, 4, 2)
    assert graph.difference_from(ResidualGraph(2, 4, 2)) is None
    difference = graph.difference_from(ResidualGraph(3, 4, 2, separate_qkv=False))
    assert (
        difference
        == "layers 2 against 3; separate queries, keys and values True against False"
    )
