"""Files of other programs, read into this model's graph and written from it.

Each format is a graph (`masks/formats/conventions.py`) and a file: JSON
(`masks/formats/edge_lists.py`) or named tensors (`masks/formats/edge_tensors.py`).
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationKind
from circuitcut.masks.formats.conventions import (
    CONVENTIONS,
    graph_in,
    lost_in,
    own_graph,
    translated,
)
from circuitcut.masks.formats.edge_lists import (
    binary,
    edge_values,
    graph_json,
    kept_edges,
    read_edge_values,
    read_graph_json,
    read_kept_edges,
    write_json_line,
)
from circuitcut.masks.formats.edge_matrices import Shared, carried
from circuitcut.masks.formats.edge_tensors import (
    is_merged,
    kept_by,
    load_tensors,
    save_tensors,
    values_in,
    with_inputs,
)
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.models.residual.graph import Position, ResidualGraph
from circuitcut.storage.atomic import read_json
from circuitcut.storage.errors import UserError

FORMATS = (
    "mib",
    "auto_circuit",
    "edge_pruning",
    "circuit_breaking",
    "disco_gp",
    "edges",
)
"""Formats that hold a whole mask, and so can be read again."""
Embeddings = Literal["auto", "nodes", "always"]


@dataclass(frozen=True)
class EdgesOfFile:
    """What a file says about the edges of a model's graph; one of two is None."""

    graph: ResidualGraph
    kept: Bool[Tensor, "edge"] | None
    scores: Float[Tensor, "edge"] | None
    """As stored; those of one edge that are several in the file are summed."""


def read_edges(
    path: Path,
    name: str,
    model: nn.Module,
    *,
    scored: bool = False,
    shared: Shared = "refuse",
    embeddings: Embeddings = "auto",
) -> EdgesOfFile:
    """A file in the format `name`, on the edges of the model's own graph.

    The graph has the switches of that program, so the cut is the same one.

    Args:
        scored: Take scores, not the mask itself.
        shared: What becomes of an edge that is several in the file which differ
            (grouped queries).
        embeddings: `edge_pruning` lists: the embeddings are nodes or always on there.

    Raises:
        UserError: When the file is no mask of this model in this format, naming what
            differs, or holds values that are neither 0 nor 1.
    """
    kept: Tensor | None
    scores: Tensor | None
    if name == "edges":
        theirs = _named_graph(path, model)
        scores = read_edge_values(path, theirs)
        kept = None if scored else binary(path, theirs, scores)
    elif name == "mib":
        theirs = graph_in(model, CONVENTIONS[name])
        kept, scores = read_graph_json(path, theirs, d_model=_d_model(model))
        _check_has(path, "score" if scored else "in_graph", scores if scored else kept)
    elif name == "edge_pruning" and path.suffix == ".json":
        theirs, scores = graph_in(model, CONVENTIONS[name]), None
        kept = _listed(path, theirs, embeddings, scored)
    else:
        theirs, kept, scores = _from_tensors(path, name, model, scored)
    ours = own_graph(model, theirs)
    if scored:
        assert scores is not None
        return EdgesOfFile(ours, None, carried(theirs, scores, ours, shared="sum"))
    assert kept is not None
    return EdgesOfFile(ours, carried(theirs, kept, ours, shared=shared), None)


def _from_tensors(
    path: Path, name: str, model: nn.Module, scored: bool
) -> tuple[ResidualGraph, Tensor | None, Tensor | None]:
    """Their graph, and which edges are kept or the score of each."""
    tensors = load_tensors(path)
    theirs = graph_in(model, CONVENTIONS[name], merged=is_merged(name, tensors))
    if name == "edge_pruning":
        tensors = with_inputs(theirs, tensors)
    if scored:
        return theirs, None, values_in(name, theirs, tensors, path)
    return theirs, kept_by(name, theirs, tensors, path), None


def write_edges(
    path: Path,
    name: str,
    model: nn.Module,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    *,
    scores: Float[Tensor, "edge"] | None = None,
    ablation: AblationKind = "zero",
    shared: Shared = "refuse",
    allow_difference: bool = False,
) -> None:
    """Write a mask on the edges of `graph`, a graph of `model`, for another program.

    Args:
        name: A format in `CONVENTIONS`.
        scores: Of every edge; only `mib` holds them. Of several edges that are one in
            the format they are summed.
        ablation: What stands in an ablated edge's place: it decides whether the format
            can say the same.
        shared: What becomes of an edge that stands for several which differ.
        allow_difference: Write it also where the cut is another one there.

    Raises:
        UserError: When the format cannot say the same, with what differs.
    """
    merged = not graph.separate_qkv if name == "auto_circuit" else None
    theirs = graph_in(model, CONVENTIONS[name], merged=merged)
    if not allow_difference:
        _check_lost(name, graph, kept, theirs, ablation)
    edges = translated(graph, kept, theirs, shared=shared)
    if name == "mib":
        if scores is not None:
            scores = translated(graph, scores, theirs, shared="sum")
        found = graph_json(theirs, edges, scores, d_model=_d_model(model))
        write_json_line(path, found)
    elif name == "edge_pruning" and path.suffix == ".json":
        write_json_line(path, kept_edges(theirs, edges))
    else:
        _check_suffix(path, name)
        save_tensors(path, name, theirs, edges)


def write_named_edges(
    path: Path,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    *,
    ablation: AblationKind = "zero",
    allow_difference: bool = False,
) -> None:
    """Write a mask by the names of its edges, the format `edges`.

    Positions that are always on become a node that is always kept.

    Raises:
        UserError: When heads hold the attention bias and that matters, for a list of
            edges has it always on.
    """
    position: Position = "own" if graph.position == "always" else graph.position
    plain = replace(graph, attention_bias="always", position=position)
    if not allow_difference:
        _check_lost("edges", graph, kept, plain, ablation)
    write_json_line(path, edge_values(plain, translated(graph, kept, plain)))


def _check_suffix(path: Path, name: str) -> None:
    if path.suffix != ".safetensors":
        also = " or .json" if name == "edge_pruning" else ""
        raise UserError(f"--format {name} is written as .safetensors{also}, got {path}")


def _check_lost(
    name: str,
    graph: ResidualGraph,
    kept: Tensor,
    theirs: ResidualGraph,
    ablation: AblationKind,
) -> None:
    told = lost_in(graph, kept, theirs, ablation)
    if told:
        raise UserError(
            f"--format {name} cannot say the same: {'; '.join(told)}; use a mask with "
            "counterfactual ablation, or --allow_difference true to write it anyway"
        )


def _d_model(model: Any) -> int:
    return int(model.config.hidden_size)


def _check_has(path: Path, key: str, values: Tensor | None) -> None:
    if values is None:
        other = "--n_kept to keep the highest" if key == "in_graph" else "no --n_kept"
        raise UserError(f"{path} has no {key} of its edges; give {other}")


def _listed(
    path: Path, graph: ResidualGraph, embeddings: Embeddings, scored: bool
) -> Tensor:
    """Edge-Pruning's list; the edges of embeddings that are no nodes there are kept."""
    if scored:
        raise UserError(
            f"{path} lists kept edges and has no scores; leave --n_kept out"
        )
    kept = read_kept_edges(path, graph)
    of_input = kept.new_tensor(
        [name.startswith(("input->", "position->")) for name in graph.edges()]
    )
    if embeddings == "auto" and not kept[of_input].any():
        raise UserError(
            f"{path} names no edge of tok_embeds or pos_embeds: say --embeddings nodes "
            "if they are all cut, or --embeddings always if it was trained without "
            "--with_embedding_nodes"
        )
    return kept | of_input if embeddings == "always" else kept


def _named_graph(path: Path, model: nn.Module) -> ResidualGraph:
    """The model's graph whose edges are named as in a file of names."""
    names = read_json(path)
    joined = " ".join(names) if isinstance(names, dict) else ""
    position: Literal["own", "merged"] = "own" if "position->" in joined else "merged"
    return graph_of(model, separate_qkv="<q>" in joined, position=position)
