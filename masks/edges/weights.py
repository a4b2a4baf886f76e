"""Gradients of the base weights of a model that runs under gates on its edges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel


@dataclass
class LayerWeights:
    """What the gradients of one block flow into."""

    folded: FoldedLayer
    """Of the attention weights and with a graph: autograd carries their gradients on to
    the projections and to the norm before them."""
    mlp: Sequence[nn.Parameter]
    attention: Sequence[nn.Parameter]
    head_gain: nn.Parameter | None
    """Weight of a norm on what attention writes."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from (self.folded.read, self.folded.read_bias, self.folded.write)
        if self.folded.write_bias is not None:
            yield self.folded.write_bias
        yield from (*self.mlp, *self.attention)
        if self.head_gain is not None:
            yield self.head_gain


@dataclass
class GradientSums:
    """Gradients of some tensors, added up as they come in."""

    _found: dict[int, Tensor] = field(default_factory=dict)

    def add(self, tensor: Tensor | None, gradient: Tensor | None) -> None:
        """Take a gradient; None stands for a tensor, or a gradient, there is not."""
        if tensor is None or gradient is None:
            return
        earlier = self._found.get(id(tensor))
        gradient = gradient.view_as(tensor)
        self._found[id(tensor)] = gradient if earlier is None else earlier + gradient

    def take(self, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Those of all tensors that there are; none is kept."""
        found = tuple(self._found.get(id(tensor)) for tensor in tensors)
        self._found.clear()
        return found


@dataclass
class TrainedWeights:
    """The trained weights of all blocks, and their gradients."""

    layers: list[LayerWeights]
    tensors: list[Tensor] = field(init=False)
    sums: GradientSums = field(init=False, default_factory=GradientSums)

    def __post_init__(self) -> None:
        found = {id(t): t for layer in self.layers for t in layer.tensors()}
        self.tensors = [t for t in found.values() if t.requires_grad]


def trained_weights(model: ResidualModel) -> TrainedWeights:
    """The weights of all blocks, folded with a graph where they take a gradient."""
    layers = []
    for layer in range(model.graph.n_layers):
        norm = model.norm(layer, model.parts.norm_attention)
        layers.append(
            LayerWeights(
                model.fold(layer),
                model.mlp_parameters(layer),
                model.attention_parameters(layer),
                None if norm is None else norm.weight,
            )
        )
    return TrainedWeights(layers)
