"""Sites of kind `edges` taken together: their gates, ablation values and names.

One of the two doors of this folder; nothing here loads the engine, so that masks on
other units do without it.

The sites of one mask are pieces of one `ResidualGraph`; edges of layers that have no
site stay open. The ablation value at a site belongs to the writers that its readers can
read: (writer, d_model), (writer, position, d_model) or, for counterfactuals, (writer,
batch, position, d_model), the first writers of the graph, so that the values of the
site that can read most are those of all sites.
"""

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from circuitcut.models.residual.block_modules import graph_of
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.models.sites import Site, split_by_site
from circuitcut.storage.errors import UserError


def modules_and_edges(
    sites: Sequence[Site],
) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """Sites gated in their own module, and those of kind `edges` in graph order."""
    edges = [site for site in sites if site.kind == "edges"]
    modules = tuple(site for site in sites if site.kind != "edges")
    return modules, tuple(sorted(edges, key=lambda site: site.layer))


def graph_at(sites: Sequence[Site]) -> ResidualGraph:
    """The one graph that sites of kind `edges` are part of.

    Raises:
        UserError: When they are of two graphs.
    """
    check_one_graph(sites)
    return next(site.graph for site in sites if site.graph is not None)


def check_one_graph(sites: Sequence[Site]) -> None:
    """Refuse sites whose edges are of two graphs; other kinds are left alone.

    Raises:
        UserError: With the difference between the graphs.
    """
    graphs = list(dict.fromkeys(site.graph for site in sites if site.graph))
    for other in graphs[1:]:
        raise UserError(
            "edges of two graphs cannot be taken together: "
            f"{graphs[0].difference_from(other)}; use masks made with the same flags"
        )


def graph_difference(sites: Sequence[Site], model: nn.Module) -> str | None:
    """The difference between the sites' graph and that of `model`, same switches."""
    _, edges = modules_and_edges(sites)
    if not edges:
        return None
    graph = graph_at(edges)
    try:
        model_graph = graph_of(
            model,
            separate_qkv=graph.separate_qkv,
            attention_bias=graph.attention_bias,
            position=graph.position,
            value_bias=graph.value_bias,
        )
    except UserError as error:
        return str(error)
    difference = graph.difference_from(model_graph)
    return difference and f"another residual graph: {difference} here"


def n_seen(site: Site) -> int:
    """Writers that the readers of a site of `edges` can read."""
    assert site.graph is not None
    return site.graph.n_seen_at(site.layer)


def flat_gates(
    sites: Sequence[Site], keep: Mapping[str, Tensor], *, elsewhere: float = 1.0
) -> Float[Tensor, "edge"] | Bool[Tensor, "edge"]:
    """Gates of all edges of the graph; `elsewhere` at those that no site has.

    Bools where all are a finished mask.
    """
    graph = graph_at(sites)
    by_layer = {site.layer: keep[site.name] for site in sites}
    floats = [gate for gate in by_layer.values() if gate.dtype != torch.bool]
    like = next(iter(floats or by_layer.values()))
    pieces = [
        by_layer[layer].to(like)
        if layer in by_layer
        else like.new_full((graph.n_edges_at(layer),), elsewhere)
        for layer in range(graph.n_layers + 1)
    ]
    return torch.cat(pieces)


def by_site(
    sites: Sequence[Site], edges: Shaped[Tensor, "edge"]
) -> dict[str, Shaped[Tensor, "_edge"]]:
    """A vector of all edges of the graph in pieces; `sites` are all of them, in order.

    Inverse of `flat_gates`.
    """
    return {name: p.clone() for name, p in split_by_site(edges, sites).items()}


def writer_values(
    site: Site, values: Float[Tensor, "seen *token d_model"]
) -> Float[Tensor, "writer #batch #seq d_model"]:
    """Ablation values of all writers, of those at the site that can read most.

    Raises:
        UserError: When they are not of as many writers as the site can read.
    """
    if not 2 <= values.dim() <= 4 or len(values) != n_seen(site):
        raise UserError(
            f"the ablation values at {site.name} must be of {n_seen(site)} writers, "
            f"got the shape {tuple(values.shape)}"
        )
    while values.dim() < 4:
        values = values.unsqueeze(1)
    assert site.graph is not None
    n_unread = site.graph.n_writers - len(values)
    if n_unread:
        values = torch.cat([values, values.new_zeros(n_unread, *values.shape[1:])])
    return values


def edge_names(
    sites: Sequence[Site], keep: Mapping[str, Tensor], *, kept: bool
) -> list[str]:
    """Names of the kept or of the ablated edges of a frozen mask, in graph order."""
    _, edges = modules_and_edges(sites)
    if not edges:
        return []
    is_named = flat_gates(edges, keep, elsewhere=float(not kept)) == float(kept)
    return list(compress(graph_at(edges).edges(), is_named.tolist()))
