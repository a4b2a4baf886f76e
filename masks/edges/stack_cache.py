"""One folded stack for each model and graph, folded anew after a weight changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from jaxtyping import Float
from torch import Tensor, nn

from circuitcut.masks.edges.run import Buffers
from circuitcut.masks.edges.sites import graph_at, n_seen
from circuitcut.masks.edges.stack import EdgeStack
from circuitcut.masks.edges.writers import record_writers
from circuitcut.models.residual.carried_norms import CarriedNorms
from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel
from circuitcut.models.residual.graph import ResidualGraph
from circuitcut.models.sites import Site
from circuitcut.storage.errors import UserError


def writers_seen(
    model: nn.Module, sites: Sequence[Site], inputs: Mapping[str, Tensor]
) -> Float[Tensor, "seen batch seq d_model"]:
    """h[w] in the plain run on `inputs`, of the writers that the last site can read."""
    residual = residual_model(model, graph_at(sites))
    return record_writers(residual, inputs)[: n_seen(sites[-1])]


def residual_model(model: nn.Module, graph: ResidualGraph) -> ResidualModel:
    """The model as this graph.

    Raises:
        UserError: When the model's graph is another one.
    """
    residual = ResidualModel(
        model,
        separate_qkv=graph.separate_qkv,
        attention_bias=graph.attention_bias,
        position=graph.position,
        value_bias=graph.value_bias,
    )
    difference = graph.difference_from(residual.graph)
    if difference is not None:
        raise UserError(
            f"the sites' residual graph is not this model's: {difference} here; take "
            "the sites of this model from sites_of"
        )
    return residual


@dataclass
class _Folded:
    """What is kept of a stack for later runs; it holds no reference to the model."""

    layers: list[FoldedLayer]
    carried: CarriedNorms | None
    buffers: Buffers
    versions: tuple[tuple[int, int], ...]


_FOLDED: WeakKeyDictionary[nn.Module, dict[ResidualGraph, _Folded]] = (
    WeakKeyDictionary()
)


def stack_of(model: nn.Module, graph: ResidualGraph) -> EdgeStack:
    """The blocks of `model` ready to run; folded anew only after a weight changed.

    Raises:
        UserError: When the model's graph is another one.
    """
    residual = residual_model(model, graph)
    versions = residual.versions()
    by_graph = _FOLDED.setdefault(model, {})
    folded = by_graph.get(graph)
    if folded is None or folded.versions != versions:
        stack = EdgeStack(residual)
        folded = _Folded(stack.layers, stack.carried, stack.buffers, versions)
        by_graph[graph] = folded
    return EdgeStack(
        residual,
        layers=folded.layers,
        carried=folded.carried,
        buffers=folded.buffers,
        versions=versions,
    )
