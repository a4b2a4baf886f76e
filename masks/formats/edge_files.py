"""Read mask files of other programs into a model's graph, and write them from it.

Each format is a graph (`masks/formats/conventions.py`) and a file: JSON
(`masks/formats/edge_lists.py`) or named tensors (`masks/formats/edge_tensors.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationKind
from circuitcut.masks.formats.conventions import (
    CONVENTIONS,
    as_evaluated,
    cut_differences,
    graph_in,
    model_graph,
    pruning_differences,
    translated,
    without_empty_options,
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
from circuitcut.masks.formats.edge_matrices import joined_scores, regrouped
from circuitcut.masks.formats.edge_tensors import (
    is_merged,
    kept_by,
    load_tensors,
    save_tensors,
    values_in,
    with_inputs,
)
from circuitcut.masks.formats.programs import Embeddings, Shared
from circuitcut.models.residual.block_modules import graph_of
from circuitcut.models.residual.graph import Position, ResidualGraph
from circuitcut.storage.atomic import read_json
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class EdgesOfFile:
    """Mask or scores of a file on the edges of a model's graph; the other is None."""

    graph: ResidualGraph
    kept: Bool[Tensor, "edge"] | None
    scores: Float[Tensor, "edge"] | None
    """The stored scores; for several edges of the file that are one edge here, see
    `joined_scores`."""


def read_edges(
    path: Path,
    name: str,
    model: nn.Module,
    *,
    scored: bool = False,
    shared: Shared = "refuse",
    embeddings: Embeddings = "auto",
    ablation: AblationKind | None = None,
) -> EdgesOfFile:
    """A file in the format `name`, on the edges of a graph of `model`.

    The graph has the options of that program, so that the cut is the same.

    Args:
        scored: Read scores and not the mask.
        shared: Rule for an edge that is several edges in the file (grouped queries) if
            these differ.
        embeddings: For lists of `edge_pruning`: the embeddings are `nodes` or `always`
            on.
        ablation: Ablation value that the mask is evaluated with; None is that
            program's default. It decides whether edges that the program prunes matter.

    Raises:
        UserError: When the file is not a mask of this model in this format (the message
            lists the differences), or has values other than 0 and 1.
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
    ours = model_graph(model, theirs)
    if scored:
        assert scores is not None
        return EdgesOfFile(ours, None, joined_scores(theirs, scores, ours))
    assert kept is not None
    if ablation is not None:
        kept = as_evaluated(name, theirs, kept, ablation)
    return EdgesOfFile(ours, regrouped(theirs, kept, ours, shared=shared), None)


def _from_tensors(
    path: Path, name: str, model: nn.Module, scored: bool
) -> tuple[ResidualGraph, Tensor | None, Tensor | None]:
    """The program's graph, and the kept edges or the scores of all edges."""
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
        scores: Scores of all edges; only `mib` stores them. If an edge is several edges
            in the format, all of them get its score.
        ablation: Ablation value of the mask; it determines whether the cut is the same
            in the format.
        shared: Rule for an edge that stands for several edges if these differ.
        allow_difference: Write the file even if the cut differs in the format.

    Raises:
        UserError: When the cut differs in the format; the message lists the
            differences.
    """
    merged = not graph.separate_qkv if name == "auto_circuit" else None
    theirs = graph_in(model, CONVENTIONS[name], merged=merged)
    edges = translated(graph, kept, theirs, shared=shared)
    if not allow_difference:
        plain = without_empty_options(model, graph)
        differences = cut_differences(plain, kept, theirs, ablation)
        differences += pruning_differences(name, theirs, edges, ablation)
        _check_same_cut(name, differences)
    if name == "mib":
        if scores is not None:
            scores = translated(graph, scores, theirs)
        content = graph_json(theirs, edges, scores, d_model=_d_model(model))
        write_json_line(path, content)
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
    """Write a mask as names of edges with 0 or 1, the format `edges`.

    Positions that are always on become a node whose edges are all kept.

    Raises:
        UserError: When attention's output bias belongs to the heads, or value biases to
            the output bias, and this changes the cut: in the format `edges` the output
            bias is always on and value biases are the heads'.
    """
    position: Position = "own" if graph.position == "always" else graph.position
    listed = replace(
        graph, attention_bias="always", position=position, value_bias="heads"
    )
    if not allow_difference:
        _check_same_cut("edges", cut_differences(graph, kept, listed, ablation))
    write_json_line(path, edge_values(listed, translated(graph, kept, listed)))


def _check_suffix(path: Path, name: str) -> None:
    if path.suffix != ".safetensors":
        also = " or .json" if name == "edge_pruning" else ""
        raise UserError(f"--format {name} is written as .safetensors{also}, got {path}")


def _check_same_cut(name: str, differences: Sequence[str]) -> None:
    if differences:
        raise UserError(
            f"--format {name} cannot say the same: {'; '.join(differences)}; use a "
            "mask with counterfactual ablation or trained with that format's options "
            "(--position_node, --attention_bias, --value_bias), or --allow_difference "
            "true to write it anyway"
        )


def _d_model(model: Any) -> int:
    return int(model.config.hidden_size)


def _check_has(path: Path, key: str, values: Tensor | None) -> None:
    if values is None:
        advice = (
            "give --n_kept to keep the highest"
            if key == "in_graph"
            else "leave --n_kept out"
        )
        raise UserError(f"{path} has no {key} of its edges; {advice}")


def _listed(
    path: Path, graph: ResidualGraph, embeddings: Embeddings, scored: bool
) -> Tensor:
    """Kept edges of Edge-Pruning's list; edges of embeddings that are always on too."""
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
            f"{path} names no edge of tok_embeds or pos_embeds: give --embeddings "
            "nodes if all these edges are cut, or --embeddings always if the mask was "
            "trained without --with_embedding_nodes"
        )
    return kept | of_input if embeddings == "always" else kept


def _named_graph(path: Path, model: nn.Module) -> ResidualGraph:
    """The graph of the model that has the edge names of the file."""
    names = read_json(path)
    joined = " ".join(names) if isinstance(names, dict) else ""
    position: Literal["own", "merged"] = "own" if "position->" in joined else "merged"
    return graph_of(model, separate_qkv="<q>" in joined, position=position)
