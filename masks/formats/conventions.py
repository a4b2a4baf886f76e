"""Other programs' graphs in a model, and the differences in cuts between graphs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from circuitcut.masks.formats.edge_matrices import (
    Key,
    flat_edges,
    matrices,
    regrouped,
)
from circuitcut.masks.formats.programs import CONVENTIONS as CONVENTIONS
from circuitcut.masks.formats.programs import Convention, Shared
from circuitcut.masks.gate_settings import AblationKind
from circuitcut.models.residual.block_modules import graph_of, parts_of
from circuitcut.models.residual.connected_edges import connected, leading_to_logits
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import (
    Position,
    ResidualGraph,
)
from circuitcut.storage.errors import UserError


def graph_in(
    model: nn.Module, convention: Convention, *, merged: bool | None = None
) -> ResidualGraph:
    """The graph of `model` in another program, with one reader per query head.

    Options for parts that the model does not have (position embeddings on the stream,
    biases of attention) keep their default: masks of such a model have the same graph
    in every program.

    Args:
        merged: Whether q, k and v are merged; None takes the convention's value.

    Raises:
        UserError: When the model has no residual graph, or has norms on its residual
            stream, which none of these programs supports.
    """
    parts = parts_of(model)
    if parts.norms_on_stream is not None:
        raise UserError(
            "masks of other programs are for decoders with a norm before each reader; "
            f"{type(model).__name__} has norms on its residual stream"
        )
    graph = graph_of(
        model, position="merged" if parts.position is None else convention.position
    )
    separate = not (convention.merged if merged is None else merged)
    graph = replace(
        graph,
        separate_qkv=separate,
        n_kv_heads=graph.n_heads,
        attention_bias=convention.attention_bias,
        value_bias=convention.value_bias,
    )
    return without_empty_options(model, graph)


def without_empty_options(model: nn.Module, graph: ResidualGraph) -> ResidualGraph:
    """The same cuts by the default options about biases that `model` does not have.

    Raises:
        UserError: When its value biases cannot join the output bias.
    """
    residual = ResidualModel(model)
    norm = residual.norm(0, residual.parts.norm_in)
    value_bias = graph.value_bias
    if value_bias == "output_with_norm" and getattr(norm, "bias", None) is None:
        value_bias = "output"
    projections = residual.projections(0)
    if value_bias == "output" and getattr(projections[-1], "bias", None) is None:
        value_bias = "heads"
    has_bias = value_bias != "heads" or residual.output(0).bias is not None
    attention_bias = graph.attention_bias if has_bias else "always"
    # refuses what the model cannot have
    return replace(
        graph,
        attention_bias=attention_bias,
        value_bias=graph_of(model, value_bias=value_bias).value_bias,
    )


def model_graph(model: nn.Module, graph: ResidualGraph) -> ResidualGraph:
    """The graph of `model` with the options of `graph`; k and v per key-value head.

    Raises:
        UserError: When the model cannot have these options.
    """
    return graph_of(
        model,
        separate_qkv=graph.separate_qkv,
        attention_bias=graph.attention_bias,
        position=graph.position,
        value_bias=graph.value_bias,
    )


def translated(
    source: ResidualGraph,
    kept: Shaped[Tensor, "edge"],
    target: ResidualGraph,
    *,
    shared: Shared = "refuse",
) -> Shaped[Tensor, "_edge"]:
    """Values of edges of `source` on the edges of `target`, a graph of the same model.

    If `source` has positions merged into the input, a new node for positions gets the
    values of the input's edges; if positions are always on, its edges are kept.
    """
    repositioned = replace(source, position=target.position)
    parts = _with_position(source, matrices(source, kept), target.position)
    edges = flat_edges(repositioned, parts)
    return regrouped(repositioned, edges, target, shared=shared)


def _with_position(
    graph: ResidualGraph, parts: Mapping[Key, Tensor], position: Position
) -> dict[Key, Tensor]:
    """Matrices with or without the column of the node for positions."""
    had_node, has_node = graph.position == "own", position == "own"
    result: dict[Key, Tensor] = {}
    for key, part in parts.items():
        first, rest = part[:, :1], part[:, 2 if had_node else 1 :]
        node = part[:, 1:2] if had_node else first
        if not had_node and graph.position == "always":
            node = torch.ones_like(first)
        result[key] = torch.cat([first, node, rest] if has_node else [first, rest], 1)
    return result


def cut_differences(
    source: ResidualGraph,
    kept: Shaped[Tensor, "edge"],
    target: ResidualGraph,
    ablation: AblationKind,
) -> list[str]:
    """Differences between the cuts in the two graphs, one sentence each.

    Paired inputs have the same positions, so that cutting position edges has no effect
    with counterfactual ablation. Constant biases matter only for zero ablation.
    """
    parts = matrices(source, kept).items()
    differences = []
    if ablation != "counterfactual" and target.position != "own":
        n_edges = sum(
            int((~_position_as(source, part, target.position)).sum())
            for _, part in parts
        )
        if n_edges:
            differences.append(
                f"{n_edges} edges treat the position embedding otherwise "
                f"({source.position} in the mask, {target.position} in the format)"
            )
    of_head = torch.tensor([name.startswith("a") for name in source.writers()])
    n_edges = sum(int((~p & of_head[: p.shape[1]]).sum()) for _, p in parts)
    biases = {
        "attention's output bias": (source.attention_bias, target.attention_bias),
        "the value biases": (source.value_bias, target.value_bias),
    }
    for name, (here, there) in biases.items():
        if ablation == "zero" and n_edges and here != there:
            differences.append(
                f"{n_edges} ablated edges from heads treat {name} otherwise "
                f"({here} in the mask, {there} in the format)"
            )
    return differences


def as_evaluated(
    name: str,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    ablation: AblationKind,
) -> Bool[Tensor, "edge"]:
    """The edges that the program `name` keeps where it evaluates the mask `kept`.

    Edges that it prunes matter for zero and mean ablation alone: with counterfactual
    ablation, a node that reads nothing of the input writes its ablation value.
    """
    convention = CONVENTIONS.get(name)
    if convention is None or not convention.prunes or ablation == "counterfactual":
        return kept
    return connected(graph, kept)


def pruning_differences(
    name: str,
    graph: ResidualGraph,
    kept: Bool[Tensor, "edge"],
    ablation: AblationKind,
) -> list[str]:
    """Edges that have an effect here and that the program `name` prunes, a sentence.

    Edges that lead nowhere are pruned too, which changes no cut.
    """
    pruned = leading_to_logits(graph, kept) & ~as_evaluated(name, graph, kept, ablation)
    if not pruned.any():
        return []
    first = list(graph.edges())[int(pruned.nonzero()[0])]
    return [
        f"it removes the {int(pruned.sum())} kept edges from nodes that no path joins "
        f"to the input, first {first}, which have an effect with {ablation} ablation"
    ]


def _position_as(graph: ResidualGraph, part: Tensor, position: Position) -> Tensor:
    """True at the readers that read the positions in both graphs or in neither."""
    first = part[:, 0].bool()
    always = torch.ones_like(first)
    reads_positions = {"merged": first, "always": always}
    if graph.position == "own":
        reads_in_source = part[:, 1].bool()
    else:
        reads_in_source = reads_positions[graph.position]
    return reads_in_source == reads_positions[position]
