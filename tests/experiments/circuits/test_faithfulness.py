"""Shares of circuits, counted by our units or by the edges of MIB."""

import torch

from circuitcut.experiments.circuits.faithfulness import n_within
from circuitcut.masks.edges.sites import by_site
from circuitcut.masks.formats.edge_matrices import (
    copies_per_edge,
    per_query_head,
    regrouped,
)
from circuitcut.models.architectures import sites_of
from tests.models.tiny import tiny_model


def test_the_top_of_a_ranking_has_the_share_of_edges_that_mib_counts():
    sites = sites_of(tiny_model("llama"), ["edges"])
    graph = sites[0].graph
    assert graph is not None
    wide = per_query_head(graph)
    rng = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 40, (graph.n_edges,), generator=rng).float()  # with ties
    ranking, counts = by_site(sites, scores), copies_per_edge(graph)
    order = scores.sort(stable=True).indices.flip(0)
    for fraction in (0.001, 0.05, 0.2, 0.5, 0.999, 1.0):
        n_kept = n_within(ranking, sites, counts, fraction)
        allowed = int(fraction * wide.n_edges)
        sizes = []
        for n in (n_kept, n_kept + 1):
            kept = torch.zeros(graph.n_edges, dtype=torch.bool)
            kept[order[:n]] = True
            sizes.append(int(regrouped(graph, kept, wide).sum()))
        assert sizes[0] <= allowed
        assert sizes[1] > allowed or n_kept == graph.n_edges
        ones = torch.ones_like(counts)
        assert n_within(ranking, sites, ones, fraction) == int(fraction * len(ones))
