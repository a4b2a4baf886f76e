"""Edges as matrices, and the same edges in graphs with other readers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuitcut.masks.formats.conventions import translated
from circuitcut.masks.formats.edge_matrices import (
    copies_per_edge,
    flat_edges,
    joined_scores,
    matrices,
    parts_in,
    per_query_head,
    regrouped,
)
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError

GRAPHS = st.builds(
    ResidualGraph,
    n_layers=st.integers(1, 3),
    n_heads=st.sampled_from([2, 4]),
    n_kv_heads=st.sampled_from([1, 2]),
    separate_qkv=st.booleans(),
    parallel=st.booleans(),
    position=st.sampled_from(["merged", "own", "always"]),
)
SMALL = ResidualGraph(12, 12, 12)


@given(graph=GRAPHS)
def test_matrices_hold_the_edges_that_their_names_say(graph: ResidualGraph):
    numbers = torch.arange(graph.n_edges)
    found = matrices(graph, numbers)
    assert torch.equal(flat_edges(graph, found), numbers)
    names, writers = list(graph.edges()), graph.writers()
    for part in parts_in(graph):
        reader = {"mlp": f"m{part.layer}", "logits": "logits"}.get(part.reads)
        for i in range(part.n_readers):
            head = f"a{part.layer}.h{i}"
            tagged = head if part.reads == "qkv" else f"{head}<{part.reads}>"
            for j in range(part.n_writers):
                edge = names[int(found[part.layer, part.reads][i, j])]
                assert edge == f"{writers[j]}->{reader or tagged}"


@given(graph=GRAPHS, seed=st.integers(0, 99))
def test_what_is_carried_to_a_reader_per_query_head_comes_back(
    graph: ResidualGraph, seed: int
):
    rng = torch.Generator().manual_seed(seed)
    kept = torch.rand(graph.n_edges, generator=rng) > 0.5
    wide = per_query_head(graph)
    there = regrouped(graph, kept, wide)
    assert len(there) == wide.n_edges
    assert torch.equal(regrouped(wide, there, graph), kept)


def test_gpt2_small_carries_11611_merged_edges_to_32491_and_32936():
    merged = ResidualGraph(12, 12, 12, separate_qkv=False)
    own = ResidualGraph(12, 12, 12, position="own")
    assert len(regrouped(merged, torch.ones(11_611), SMALL)) == 32_491
    assert len(translated(merged, torch.ones(11_611), own)) == 32_936


def test_copies_that_differ_are_refused_or_decided():
    graph = ResidualGraph(1, 4, 2)
    wide = per_query_head(graph)
    values = torch.zeros(wide.n_edges, dtype=torch.bool)
    place = list(wide.edges()).index("input->a0.h3<k>")
    values[place] = True
    told = "1 edges of layer 0 .* the <k> edges are one edge, first input into a0.h2 to"
    with pytest.raises(UserError, match=told):
        regrouped(wide, values, graph)
    here = list(graph.edges()).index("input->a0.h1<k>")
    assert regrouped(wide, values, graph, shared="keep").nonzero().tolist() == [[here]]
    assert not regrouped(wide, values, graph, shared="ablate").any()
    merged = ResidualGraph(1, 4, 2, separate_qkv=False)
    with pytest.raises(UserError, match="q, k and v are one edge, first input into"):
        regrouped(wide, values, merged)


def test_scores_of_copies_that_differ_are_summed_and_equal_ones_are_kept():
    graph = ResidualGraph(2, 6, 2)
    wide = per_query_head(graph)
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(graph.n_edges, generator=rng)
    scores[3] = float("nan")
    copies = regrouped(graph, scores, wide, shared="refuse").clone()
    back = joined_scores(wide, copies, graph)
    torch.testing.assert_close(back, scores, rtol=0, atol=0, equal_nan=True)
    # an edge into a key stands for three in the file
    names = list(wide.edges())
    three = [names.index(f"a0.h2->a1.h{head}<k>") for head in (3, 4, 5)]
    copies[three] = torch.tensor([1.0, -4.0, 2.5])
    own = joined_scores(wide, copies, graph)
    place = {name: n for n, name in enumerate(graph.edges())}
    assert own[place["a0.h2->a1.h1<k>"]] == -0.5
    torch.testing.assert_close(
        own[place["m0->a1.h0<v>"]], 3 * scores[place["m0->a1.h0<v>"]]
    )
    assert own[place["m0->a1.h4<q>"]] == scores[place["m0->a1.h4<q>"]]


def test_an_edge_counts_for_as_many_as_there_are_in_mib():
    for graph, n_edges in (
        (ResidualGraph(12, 12, 12), 32_491),
        (ResidualGraph(12, 12, 12, separate_qkv=False), 32_491),
        (ResidualGraph(30, 9, 3), 30 * 29 // 2 * 10 * 28 + 30 * 28 + 270 + 301),
        (ResidualGraph(2, 4, 2, separate_qkv=False, parallel=True), 13 + 6 * 13 + 11),
    ):
        counts = copies_per_edge(graph)
        assert len(counts) == graph.n_edges
        assert int(counts.sum()) == per_query_head(graph).n_edges
        assert per_query_head(graph).n_edges == n_edges
    grouped = ResidualGraph(1, 4, 2)
    named = dict(zip(grouped.edges(), copies_per_edge(grouped).tolist(), strict=True))
    assert named["input->a0.h3<q>"] == 1
    assert named["input->a0.h1<k>"] == named["input->a0.h1<v>"] == 2
    assert named["a0.h3->m0"] == named["m0->logits"] == 1


def test_positions_that_become_a_node_follow_the_input_or_stay_on():
    merged = ResidualGraph(1, 1, 1)
    own = ResidualGraph(1, 1, 1, position="own")
    kept = torch.ones(merged.n_edges, dtype=torch.bool)
    kept[0] = False
    named = dict(zip(own.edges(), translated(merged, kept, own).tolist(), strict=True))
    assert [e for e, k in named.items() if not k] == [
        "input->a0.h0<q>",
        "position->a0.h0<q>",
    ]
    always = ResidualGraph(1, 1, 1, position="always")
    named = dict(zip(own.edges(), translated(always, kept, own).tolist(), strict=True))
    assert [e for e, k in named.items() if not k] == ["input->a0.h0<q>"]
