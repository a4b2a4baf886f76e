"""Masks on edges as JSON: the graph files of EAP-IG and MIB, and plain lists of edges.

* `mib`: `{"cfg", "nodes", "edges": {"input->a0.h0<q>": {"score", "in_graph"}}}`, the
  file that EAP-IG's `Graph.to_json` writes; an edge with `in_graph` true is kept.
* `edge_pruning`: the list of kept edges that its `vis_fpt2.py` writes,
  `[["tok_embeds", "a0.h0.q"], ...]`; the logits are `resid_post`.
* `edges`: `{"a0.h1->m3": 1, ...}` for any program, with all edges; 1 keeps.
"""

import json
import re
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcut.models.residual.connected_edges import connected
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.storage.atomic import read_json, write_text
from circuitcut.storage.errors import UserError
from circuitcut.storage.reading.typed_fields import check_type, shown

_EDGE_PRUNING = {
    "input": "tok_embeds",
    "position": "pos_embeds",
    "logits": "resid_post",
}


def graph_json(
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    scores: Float[Tensor, "edge"] | None,
    *,
    d_model: int,
) -> dict[str, Any]:
    """A mask as an EAP-IG graph.

    A node is in the graph if a path of kept edges from an input to the logits contains
    it, as after EAP-IG's own pruning. The edges are not pruned. EAP-IG needs a score of
    every edge: without `scores` it is 1 for kept and 0 for ablated edges.
    """
    names, values = list(graph.edges()), kept.float() if scores is None else scores
    alive = live_nodes(graph, kept)
    nodes = [*graph.writers(), "logits"]
    return {
        "cfg": _cfg(graph, d_model),
        "nodes": {name: {"in_graph": name in alive} for name in nodes},
        "edges": {
            name: {"score": score, "in_graph": in_graph}
            for name, score, in_graph in zip(
                names, values.tolist(), kept.tolist(), strict=True
            )
        },
    }


def live_nodes(graph: ResidualGraph, kept: Bool[Tensor, "edge"]) -> set[str]:
    """Nodes on a path of kept edges from an input to the logits."""
    names = compress(graph.edges(), connected(graph, kept).tolist())
    return {"logits"} | {node for name in names for node in split_edge(name)[:2]}


def write_json_line(path: Path, content: Any) -> None:
    """Write JSON on one line; with indentation a graph is three times as long."""
    write_text(path, json.dumps(content) + "\n")


def read_graph_json(
    path: Path, graph: ResidualGraph, *, d_model: int
) -> tuple[Bool[Tensor, "edge"] | None, Float[Tensor, "edge"] | None]:
    """`in_graph` and `score` of all edges of an EAP-IG graph; None if it has none.

    The entries of its nodes follow from its edges and are not read.

    Raises:
        UserError: When it is a graph of another model (the message lists the
            differences), is not an EAP-IG graph, or leaves out single neurons.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not {"cfg", "nodes", "edges"} <= set(content):
        raise UserError(
            f"{path} is no EAP-IG graph: it must hold an object with cfg, nodes and "
            "edges"
        )
    check_type(content, _GraphFile, str(path))
    _check_cfg(path, content["cfg"], _cfg(graph, d_model))
    _check_neurons(path, content["nodes"])
    edges = content["edges"]
    _check_names(path, graph, edges)
    kept = _column(path, graph, edges, "in_graph")
    scores = _column(path, graph, edges, "score")
    return None if kept is None else binary(path, graph, kept), scores


class _Edge(TypedDict, total=False):
    in_graph: bool | float | None
    score: float | None


class _GraphFile(TypedDict):
    cfg: dict[str, Any]
    nodes: dict[str, Any]
    edges: dict[str, _Edge]


def kept_edges(graph: ResidualGraph, kept: Bool[Tensor, "edge"]) -> list[list[str]]:
    """A mask as Edge-Pruning's list of pairs."""
    return [
        [_EDGE_PRUNING.get(source, source), _edge_pruning_reader(target, reads)]
        for (source, target, reads), is_kept in zip(
            map(split_edge, graph.edges()), kept.tolist(), strict=True
        )
        if is_kept
    ]


def read_kept_edges(path: Path, graph: ResidualGraph) -> Bool[Tensor, "edge"]:
    """True at the edges of Edge-Pruning's list of pairs; all other edges are ablated.

    Raises:
        UserError: When it is not such a list, or an edge is not in this graph.
    """
    pairs = read_json(path)
    is_pairs = isinstance(pairs, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and all(isinstance(n, str) for n in pair)
        for pair in pairs
    )
    if not is_pairs:
        raise UserError(f'{path} must hold a list of pairs like ["m0", "a1.h2.q"]')
    all_kept = torch.ones(graph.n_edges, dtype=torch.bool)
    place = {tuple(pair): i for i, pair in enumerate(kept_edges(graph, all_kept))}
    kept = torch.zeros(graph.n_edges, dtype=torch.bool)
    unknown = [pair for pair in pairs if tuple(pair) not in place]
    if unknown:
        raise UserError(
            f"{path} names {len(unknown)} edges that this model does not have, first "
            f"{shown(unknown[0][0])} to {shown(unknown[0][1])}"
        )
    kept[[place[tuple(pair)] for pair in pairs]] = True
    return kept


def read_edge_values(path: Path, graph: ResidualGraph) -> Float[Tensor, "edge"]:
    """The numbers of all edges from a JSON object of edge names and numbers.

    Raises:
        UserError: When it is not such an object, or its edges are not the edges of this
            graph.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f'{path} must hold an object like {{"a0.h1->m3": 1}}')
    _check_names(path, graph, values)
    check_type(values, dict[str, float | bool], str(path))
    return torch.tensor([float(values[name]) for name in graph.edges()])


def edge_values(graph: ResidualGraph, kept: Bool[Tensor, "edge"]) -> dict[str, int]:
    """A mask as a mapping from edge names to 1 (kept) or 0 (ablated)."""
    values = kept.int().tolist()
    return dict(zip(graph.edges(), values, strict=True))


def binary(
    path: Path, graph: ResidualGraph, values: Float[Tensor, "edge"]
) -> Bool[Tensor, "edge"]:
    """Values of 0 and 1 as bools.

    Raises:
        UserError: When there are other values; the message names the first.
    """
    wrong = ((values != 0) & (values != 1)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{path} must hold 0 or 1 (false or true) at every edge, got "
            f"{values[first]:g} at {list(graph.edges())[first]} and {len(wrong) - 1} "
            "more such edges; round them, or give --n_kept to keep the highest"
        )
    return values == 1


def split_edge(name: str) -> tuple[str, str, str]:
    """Writer, reading node, and its input (`q`, `k`, `v` or empty) of an edge."""
    source, _, target = name.partition("->")
    node, _, reads = target.rstrip(">").partition("<")
    return source, node, reads


def _cfg(graph: ResidualGraph, d_model: int) -> dict[str, int | bool]:
    return {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": d_model,
    }


def _check_cfg(
    path: Path, cfg: Mapping[str, Any], expected: Mapping[str, int | bool]
) -> None:
    differences = [
        f"{key} {shown(cfg[key])} against {value} here"
        for key, value in expected.items()
        if key in cfg and cfg[key] != value
    ]
    if differences:
        raise UserError(
            f"the graph in {path} is of another model: {'; '.join(differences)}; name "
            "its model with --model"
        )


def _check_neurons(path: Path, nodes: Mapping[str, Any]) -> None:
    for name, entry in nodes.items():
        neurons = entry.get("neurons") if isinstance(entry, dict) else None
        check_type(neurons, list[bool | float] | None, f"{path}: neurons of {name}")
        if not all(neurons or [True]):
            raise UserError(
                f"{path} leaves single dimensions of what {name} writes out of the "
                "graph (neurons), but a mask on edges has whole edges only; use a "
                "graph without neurons"
            )


def _check_names(path: Path, graph: ResidualGraph, entries: Mapping[str, Any]) -> None:
    names = list(graph.edges())
    known = set(names)
    unknown = [name for name in entries if name not in known]
    missing = [name for name in names if name not in entries]
    problems = [f"{len(unknown)} unknown, first {shown(unknown[0])}"] if unknown else []
    problems += [f"{len(missing)} missing, first {missing[0]}"] if missing else []
    if problems:
        raise UserError(
            f"{path} must have the {graph.n_edges} edges of this model's graph, got "
            f"{len(entries)}: {'; '.join(problems)}"
        )


def _column(
    path: Path, graph: ResidualGraph, edges: Mapping[str, Any], key: str
) -> Float[Tensor, "edge"] | None:
    """The entry `key` of all edges as numbers; None if no edge has it."""
    values = [edges[name].get(key) for name in graph.edges()]
    if all(value is None for value in values):
        return None
    wrong = [i for i, v in enumerate(values) if not isinstance(v, int | float)]
    if wrong:
        raise UserError(
            f"{path} must give every edge a number or a truth value as {key}, got "
            f"{values[wrong[0]]!r} at {list(graph.edges())[wrong[0]]} and "
            f"{len(wrong) - 1} more such edges"
        )
    return torch.tensor([float(value or 0) for value in values])


def _edge_pruning_reader(node: str, reads: str) -> str:
    name = _EDGE_PRUNING.get(node, node)
    return f"{name}.{reads}" if re.fullmatch("[qkv]", reads) else name
