"""How a mask of GPT-2 small agrees with the published circuit of indirect objects.

K. Wang et al. (2022), "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small", https://arxiv.org/abs/2211.00593: 26 of 144 heads in
seven classes.
"""

from itertools import compress
from typing import Any

from torch import nn

from circuitcut.masks.edges.sites import flat_gates, graph_at, modules_and_edges
from circuitcut.masks.formats.edge_lists import split_edge
from circuitcut.masks.frozen_mask import FrozenMask
from circuitcut.models.residual.connected_edges import connected

Head = tuple[int, int]
"""Layer and number."""
CLASSES: dict[str, tuple[Head, ...]] = {
    "name mover": ((9, 6), (9, 9), (10, 0)),
    "backup name mover": (
        *((9, 0), (9, 7), (10, 1), (10, 2)),
        *((10, 6), (10, 10), (11, 2), (11, 9)),
    ),
    "negative name mover": ((10, 7), (11, 10)),
    "S-inhibition": ((7, 3), (7, 9), (8, 6), (8, 10)),
    "induction": ((5, 5), (5, 8), (5, 9), (6, 9)),
    "duplicate token": ((0, 1), (0, 10), (3, 0)),
    "previous token": ((2, 2), (4, 11)),
}
N_LAYERS = N_HEADS = 12


def published_overlap(
    task: str, name: str, model: nn.Module, mask: FrozenMask
) -> dict[str, Any] | None:
    """Heads of the mask that are in the published circuit, class by class.

    Heads of a mask are the kept or the ablated ones, whichever are fewer; of edges,
    those on a path of kept edges from the input to the logits, or those at an end of an
    ablated edge.

    Args:
        name: Of the model as it was asked for: `gpt2`, or a path or hub name that ends
            so.

    Returns:
        `n_heads` of the mask, `n_shared` with the published, `n_published`, `expected`
        (shared, were as many heads drawn at random), `precision`, `recall` and
        `classes`: `{"class", "heads", "found"}` with heads as `a9.h6`. None for other
        tasks and models, and for masks without heads or edges.
    """
    config: Any = model.config
    small = ("gpt2", N_LAYERS, N_HEADS)
    is_small = small == (
        config.model_type,
        getattr(config, "n_layer", 0),
        getattr(config, "n_head", 0),
    )
    if task != "ioi" or not is_small or name.rstrip("/").split("/")[-1] != "gpt2":
        return None
    heads = _heads_of(mask)
    if heads is None:
        return None
    published = {head for found in CLASSES.values() for head in found}
    shared = heads & published
    return {
        "n_heads": len(heads),
        "n_shared": len(shared),
        "n_published": len(published),
        "expected": len(heads) * len(published) / (N_LAYERS * N_HEADS),
        "precision": len(shared) / len(heads) if heads else None,
        "recall": len(shared) / len(published),
        "classes": [
            {
                "class": kind,
                "heads": [_named(head) for head in found],
                "found": [_named(head) for head in found if head in heads],
            }
            for kind, found in CLASSES.items()
        ],
    }


def _heads_of(mask: FrozenMask) -> set[Head] | None:
    modules, edges = modules_and_edges(mask.sites)
    if edges:
        return _heads_on_edges(mask)
    sites = [site for site in modules if site.kind == "heads"]
    if not sites:
        return None
    n_kept = sum(int(mask.keep[site.name].sum()) for site in sites)
    kept = n_kept <= sum(site.n_units for site in sites) / 2
    return {
        (site.layer, head)
        for site in sites
        for head, on in enumerate(mask.keep[site.name].tolist())
        if on == kept
    }


def _heads_on_edges(mask: FrozenMask) -> set[Head]:
    _, edges = modules_and_edges(mask.sites)
    graph, keep = graph_at(edges), flat_gates(edges, mask.keep).bool()
    is_circuit = int(keep.sum()) <= graph.n_edges / 2
    chosen = connected(graph, keep) if is_circuit else ~keep
    names = compress(graph.edges(), chosen.tolist())
    nodes = {node for name in names for node in split_edge(name)[:2]}
    return {
        (int(layer), int(head))
        for node in nodes
        if node.startswith("a")
        for layer, head in [node[1:].split(".h")]
    }


def _named(head: Head) -> str:
    return f"a{head[0]}.h{head[1]}"
