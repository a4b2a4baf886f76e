"""Gradients of the base weights of a model that runs under gates on its edges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from models.residual_parts import FoldedLayer, ResidualModel


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
class TrainedWeights:
    """The trained weights of all blocks, and their gradients as they come in."""

    layers: list[LayerWeights]
    tensors: list[Tensor] = field(init=False)
    _gradients: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        found = {id(t): t for layer in self.layers for t in layer.tensors()}
        self.tensors = [t for t in found.values() if t.requires_grad]

    def add(self, tensor: Tensor | None, gradient: Tensor) -> None:
        """Take a gradient; None stands for a weight that the model does not have."""
        if tensor is None:
            return
        earlier = self._gradients.get(id(tensor))
        gradient = gradient.view_as(tensor)
        self._gradients[id(tensor)] = (
            gradient if earlier is None else earlier + gradient
        )

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Those of `tensors`; each is handed out once."""
        found = tuple(self._gradients.pop(id(t), None) for t in self.tensors)
        self._gradients.clear()
        return found


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
