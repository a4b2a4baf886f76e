"""How other programs define the residual graph, and what a translation would change.

All of them read the logits from one node before the last norm and mask an MLP's bias
with its MLP. They differ in what the input is, in attention's output bias, and in
whether a head's queries, keys and values share an edge. Sources, read in 2026:

* `mib`: EAP-IG and the MIB benchmark, github.com/hannamw/EAP-IG, `src/eap/graph.py`
* `auto_circuit`: github.com/UFO-101/auto-circuit, `model_utils/transformer_lens_utils`
* `edge_pruning`: github.com/princeton-nlp/Edge-Pruning, `modeling_fpt2.py`
* `circuit_breaking`: github.com/xanderdavies/circuit-breaking, `toxicity/transformer`,
  and github.com/magikarp01/mechanistic-unlearning, `edge_masked_transformer.py`
* `disco_gp`: github.com/frankniujc/disco_gp, `discogp_lm.py`
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from circuitcut.masks.ablation import AblationKind
from circuitcut.masks.formats.edge_matrices import (
    Key,
    Shared,
    carried,
    flat_edges,
    matrices,
)
from circuitcut.models.residual.block_modules import graph_of, parts_of
from circuitcut.models.residual.folded_model import ResidualModel
from circuitcut.models.residual.graph import AttentionBias, Position, ResidualGraph
from circuitcut.storage.errors import UserError


@dataclass(frozen=True)
class Convention:
    """One program's residual graph."""

    position: Position
    attention_bias: AttentionBias
    merged: bool
    """A head's queries, keys and values share an edge."""
    ablation: AblationKind
    """What it puts in an ablated edge's place where its user says nothing."""


CONVENTIONS: dict[str, Convention] = {
    "mib": Convention("always", "always", False, "counterfactual"),
    "auto_circuit": Convention("merged", "always", False, "counterfactual"),
    "edge_pruning": Convention("own", "heads", False, "counterfactual"),
    "circuit_breaking": Convention("merged", "heads", True, "zero"),
    "disco_gp": Convention("merged", "heads", False, "zero"),
}
"""Name of a format -> its graph."""


def graph_in(
    model: nn.Module, convention: Convention, *, merged: bool | None = None
) -> ResidualGraph:
    """The graph of `model` as another program has it, a reader per query head.

    A switch about what the model does not have (position embeddings on the stream, a
    bias of attention's output) is left where it stands by default, so that masks of
    such a model have one graph whatever program they are from.

    Args:
        merged: Overrides the convention's own.

    Raises:
        UserError: When the model has no residual graph, or norms on its stream, which
            none of these programs knows.
    """
    parts = parts_of(model)
    if parts.norms_on_stream is not None:
        raise UserError(
            "masks of other programs are of decoders with norms before what reads; "
            f"{type(model).__name__} has norms on its residual stream"
        )
    graph = graph_of(
        model,
        position="merged" if parts.position is None else convention.position,
        attention_bias=convention.attention_bias if _has_bias(model) else "always",
    )
    separate = not (convention.merged if merged is None else merged)
    return replace(graph, separate_qkv=separate, n_kv_heads=graph.n_heads)


def own_graph(model: nn.Module, graph: ResidualGraph) -> ResidualGraph:
    """The model's own graph with the switches of `graph`: keys per key-value head.

    Raises:
        UserError: When the model cannot have it.
    """
    return graph_of(
        model,
        separate_qkv=graph.separate_qkv,
        attention_bias=graph.attention_bias,
        position=graph.position,
    )


def _has_bias(model: nn.Module) -> bool:
    return getattr(ResidualModel(model).output(0), "bias", None) is not None


def translated(
    source: ResidualGraph,
    kept: Shaped[Tensor, "edge"],
    target: ResidualGraph,
    *,
    shared: Shared = "refuse",
) -> Shaped[Tensor, "_edge"]:
    """Values of edges on the edges of the same model's graph under other switches.

    Where positions are merged into the input their node gets the input's values; where
    they are always on it is kept.
    """
    placed = replace(source, position=target.position)
    edges = flat_edges(placed, _placed(source, matrices(source, kept), target.position))
    return carried(placed, edges, target, shared=shared)


def _placed(
    graph: ResidualGraph, parts: Mapping[Key, Tensor], position: Position
) -> dict[Key, Tensor]:
    """Matrices with or without the column of the node for positions."""
    had, has = graph.position == "own", position == "own"
    found: dict[Key, Tensor] = {}
    for key, part in parts.items():
        first, rest = part[:, :1], part[:, 2 if had else 1 :]
        node = part[:, 1:2] if had else first
        if not had and graph.position == "always":
            node = torch.ones_like(first)
        found[key] = torch.cat([first, node, rest] if has else [first, rest], 1)
    return found


def lost_in(
    source: ResidualGraph,
    kept: Shaped[Tensor, "edge"],
    target: ResidualGraph,
    ablation: AblationKind,
) -> list[str]:
    """What an ablated edge does in one graph and not in the other, in words.

    Positions are the same in a paired input, so a counterfactual cut of them changes
    nothing; and a constant bias counts only where its writer becomes zero.
    """
    parts = matrices(source, kept).items()
    told = []
    if ablation != "counterfactual" and target.position != "own":
        n_edges = sum(
            int((~_position_as(source, part, target.position)).sum())
            for _, part in parts
        )
        if n_edges:
            told.append(
                f"{n_edges} edges treat the position embedding otherwise "
                f"({source.position} here, {target.position} there)"
            )
    if ablation == "zero" and source.attention_bias != target.attention_bias:
        of_head = torch.tensor([name.startswith("a") for name in source.writers()])
        n_edges = sum(int((~p & of_head[: p.shape[1]]).sum()) for _, p in parts)
        if n_edges:
            told.append(
                f"{n_edges} ablated edges from heads treat attention's output bias "
                f"otherwise ({source.attention_bias} here, "
                f"{target.attention_bias} there)"
            )
    return told


def _position_as(graph: ResidualGraph, part: Tensor, position: Position) -> Tensor:
    """Readers that get the same positions under another switch."""
    first = part[:, 0].bool()
    always = torch.ones_like(first)
    reach = {"merged": first, "always": always}
    here = part[:, 1].bool() if graph.position == "own" else reach[graph.position]
    return here == reach[position]
