"""The flat vector of all edges as matrices, and its values on another graph's edges.

There is one matrix per layer and kind of reader: `q`, `k`, `v` (`qkv` if merged), `mlp`
and, at the layer after the last, `logits`. Other programs have one k and one v reader
per *query* head, and some have one merged reader for q, k and v; `regrouped` translates
between them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from circuitcut.masks.formats.programs import Shared
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.errors import UserError

Reads = Literal["q", "k", "v", "qkv", "mlp", "logits"]
Key = tuple[int, Reads]
"""Rule for the value of one edge that stands for several edges, if these differ."""


@dataclass(frozen=True)
class Part:
    """Edges of one kind of reader in one layer."""

    layer: int
    reads: Reads
    n_readers: int
    n_writers: int


def parts_in(graph: ResidualGraph) -> Iterator[Part]:
    """The matrices in the order of the flat vector."""
    heads, groups = graph.n_heads, graph.n_kv_heads
    of_head: list[tuple[Reads, int]] = [("qkv", heads)]
    if graph.separate_qkv:
        of_head = [("q", heads), ("k", groups), ("v", groups)]
    for layer in range(graph.n_layers):
        for reads, n_readers in of_head:
            yield Part(layer, reads, n_readers, graph.n_before(layer))
        yield Part(layer, "mlp", 1, graph.n_seen_by_mlp(layer))
    yield Part(graph.n_layers, "logits", 1, graph.n_writers)


def matrices(
    graph: ResidualGraph, edges: Shaped[Tensor, "edge"]
) -> dict[Key, Shaped[Tensor, "_reader _writer"]]:
    """The flat vector as one matrix (reader, writer) per part."""
    parts = list(parts_in(graph))
    pieces = edges.split([part.n_readers * part.n_writers for part in parts])
    return {
        (part.layer, part.reads): piece.view(part.n_readers, part.n_writers)
        for part, piece in zip(parts, pieces, strict=True)
    }


def flat_edges(
    graph: ResidualGraph, blocks: Mapping[Key, Shaped[Tensor, "_reader _writer"]]
) -> Shaped[Tensor, "edge"]:
    """Inverse of `matrices`."""
    parts = parts_in(graph)
    return torch.cat([blocks[part.layer, part.reads].reshape(-1) for part in parts])


def per_query_head(graph: ResidualGraph) -> ResidualGraph:
    """The graph with separate q, k and v, each with one reader per query head.

    It has the edges that EAP-IG names: 32,491 in GPT-2 small.
    """
    return replace(graph, separate_qkv=True, n_kv_heads=graph.n_heads)


def regrouped(
    source: ResidualGraph,
    edges: Shaped[Tensor, "edge"],
    target: ResidualGraph,
    *,
    shared: Shared = "refuse",
) -> Shaped[Tensor, "_edge"]:
    """Values of the edges of `source` on the edges of `target`, of the same model.

    If one edge of `source` is several edges in `target`, all of them get its value. If
    several edges become one and have the same value, it gets this value. If their
    values differ, `shared` is the rule: with `keep` the edge is kept if any of them is
    kept, with `ablate` it is ablated if any of them is ablated.

    Args:
        source: Graph of `edges`; it may differ from `target` only in its readers.

    Raises:
        UserError: When the values differ and `shared` is `refuse`.
    """
    if source == target:
        return edges
    wide, parts = per_query_head(target), _widen(source, edges)
    return flat_edges(
        target,
        {
            (part.layer, part.reads): _combined(copies, shared, wide, part)
            for part, copies in _copies(parts, target)
        },
    )


def joined_scores(
    source: ResidualGraph, scores: Float[Tensor, "edge"], target: ResidualGraph
) -> Float[Tensor, "_edge"]:
    """Scores of the edges of `source` on the edges of `target`, of the same model.

    Several edges that become one are copies of it. Where all copies in the file have
    the score of their edge, as `regrouped` writes them, the edge gets that score. Else
    the scores are of single copies, and the edge gets their sum, as gradients add up.
    """
    if source == target:
        return scores
    parts = list(_copies(_widen(source, scores), target))
    are_same = all(
        torch.allclose(copies, copies[:1], rtol=0, atol=0, equal_nan=True)
        for _, copies in parts
    )
    joined = {
        (part.layer, part.reads): copies[0] if are_same else copies.sum(0)
        for part, copies in parts
    }
    return flat_edges(target, joined)


def copies_per_edge(graph: ResidualGraph) -> Int[Tensor, "edge"]:
    """Edges of `per_query_head(graph)`, as MIB counts them, that each edge stands for.

    They are as many as query heads in its group for an edge into a key or a value, and
    3 for a merged edge, of q, k and v.
    """
    n_grouped = graph.n_heads // graph.n_kv_heads
    counts: dict[Reads, int] = {"k": n_grouped, "v": n_grouped, "qkv": 3}
    return torch.cat(
        [
            torch.full((part.n_readers * part.n_writers,), counts.get(part.reads, 1))
            for part in parts_in(graph)
        ]
    )


def _widen(graph: ResidualGraph, edges: Tensor) -> dict[Key, Tensor]:
    """Matrices with a reader per query head for each of q, k and v."""
    wide: dict[Key, Tensor] = {}
    for (layer, reads), part in matrices(graph, edges).items():
        if reads == "qkv":
            wide |= {(layer, "q"): part, (layer, "k"): part, (layer, "v"): part}
        elif reads in ("k", "v"):
            n_copies = graph.n_heads // graph.n_kv_heads
            wide[layer, reads] = part.repeat_interleave(n_copies, 0)
        else:
            wide[layer, reads] = part
    return wide


def _copies(
    parts: Mapping[Key, Tensor], target: ResidualGraph
) -> Iterator[tuple[Part, Tensor]]:
    """All values that are one edge of `target`, (copy, reader, writer), by part.

    `parts` are matrices with a reader per query head for each of q, k and v.
    """
    for part in parts_in(target):
        layer, reads = part.layer, part.reads
        if reads == "qkv":
            copies = torch.stack([parts[layer, r] for r in ("q", "k", "v")])
        elif reads in ("k", "v"):
            copies = parts[layer, reads].view(part.n_readers, -1, part.n_writers)
            copies = copies.transpose(0, 1)  # (copy, reader, writer)
        else:
            copies = parts[layer, reads][None]
        yield part, copies


def _combined(copies: Tensor, how: Shared, graph: ResidualGraph, part: Part) -> Tensor:
    differ = (copies != copies[0]).any(0)
    if len(copies) == 1 or not differ.any():
        return copies[0]
    if how == "keep":
        return copies.any(0)
    if how == "ablate":
        return copies.all(0)
    reader, writer = (int(i) for i in differ.nonzero()[0])
    merged = "q, k and v" if part.reads == "qkv" else f"the <{part.reads}> edges"
    group = f"a{part.layer}.h{reader}"
    if part.reads != "qkv":
        n_copies = graph.n_heads // part.n_readers
        first = reader * n_copies
        group = f"a{part.layer}.h{first} to h{first + n_copies - 1}"
    raise UserError(
        f"{int(differ.sum())} edges of layer {part.layer} have no single value where "
        f"{merged} are one edge, first {graph.writers()[writer]} into {group}; give "
        "them equal values, or keep (--shared keep) or ablate (--shared ablate) the "
        "edge if any of them is kept or ablated"
    )
