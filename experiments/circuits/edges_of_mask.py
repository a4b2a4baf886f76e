"""The edges of a mask: graph, scores, and the circuit as results.json names it."""

from collections.abc import Mapping
from itertools import compress
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.masks.edges.sites import flat_gates, graph_at, modules_and_edges
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError


def edges_of(mask: FrozenMask) -> tuple[ResidualGraph, Bool[Tensor, "edge"]]:
    """The graph of a mask on edges, and which of them it keeps, those of all layers.

    Raises:
        UserError: When the mask cuts other units, alone or beside edges.
    """
    modules, edges = modules_and_edges(mask.sites)
    if modules or not edges:
        kinds = sorted({site.kind for site in mask.sites})
        raise UserError(
            f"--mask must cut edges alone, got a mask on {' and '.join(kinds)}; train "
            "one with --units edges"
        )
    return graph_at(edges), flat_gates(edges, mask.keep).bool()


def scores_of(mask: FrozenMask, ranking: Mapping[str, Tensor]) -> Float[Tensor, "edge"]:
    """The ranking of a run (high keeps) as a score of every edge; NaN without one."""
    _, edges = modules_and_edges(mask.sites)
    ranked = {site.name: ranking[site.name].float() for site in edges}
    return flat_gates(edges, ranked, elsewhere=float("nan"))


def circuit_of(
    mask: FrozenMask, ranking: Mapping[str, Tensor] | None = None
) -> dict[str, Any] | None:
    """The kept or the ablated edges, whichever are fewer, as results.json names them.

    None without edges, or where all are kept or all are ablated.
    """
    _, edges = modules_and_edges(mask.sites)
    if not edges:
        return None
    graph, kept = graph_at(edges), flat_gates(edges, mask.keep).bool()
    are_kept = int(kept.sum()) <= graph.n_edges / 2
    chosen = kept if are_kept else ~kept
    if not chosen.any():
        return None
    scores = None if ranking is None else scores_of(mask, ranking)[chosen].tolist()
    return {
        "kept": are_kept,
        "n_edges": graph.n_edges,
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "edges": list(compress(graph.edges(), chosen.tolist())),
        "scores": scores,
    }
