"""Gradients of the base weights of a model that runs under gates on its edges."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from circuitcut.models.residual.folded_model import FoldedLayer, ResidualModel


@dataclass
class LayerWeights:
    """The tensors of one block whose gradients the backward pass computes."""

    folded: FoldedLayer
    """A, b, O and constants, with a graph: autograd carries their gradients on to the
    projections and to the norm before them."""
    mlp: Sequence[nn.Parameter]
    attention: Sequence[nn.Parameter]
    head_gain: nn.Parameter | None
    """Weight of a norm on what attention writes."""

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from (self.folded.read, self.folded.read_bias, self.folded.write)
        for constant in (self.folded.head_bias, self.folded.always_bias):
            if constant is not None:
                yield constant
        yield from (*self.mlp, *self.attention)
        if self.head_gain is not None:
            yield self.head_gain


@dataclass
class GradientSums:
    """Sums of the gradients of some tensors."""

    _sums: dict[int, Tensor] = field(default_factory=dict)
    """By the tensor's id."""

    def add(self, tensor: Tensor | None, gradient: Tensor | None) -> None:
        """Add a gradient; nothing where the tensor or the gradient is None."""
        if tensor is None or gradient is None:
            return
        earlier = self._sums.get(id(tensor))
        gradient = gradient.view_as(tensor)
        self._sums[id(tensor)] = gradient if earlier is None else earlier + gradient

    def take(self, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """The sums of these tensors, None without a gradient; all sums are dropped."""
        gradients = tuple(self._sums.get(id(tensor)) for tensor in tensors)
        self._sums.clear()
        return gradients


@dataclass
class TrainedWeights:
    """The trained weights of all blocks, and their gradients."""

    layers: list[LayerWeights]
    tensors: list[Tensor] = field(init=False)
    sums: GradientSums = field(init=False, default_factory=GradientSums)

    def __post_init__(self) -> None:
        by_id = {id(t): t for layer in self.layers for t in layer.tensors()}
        self.tensors = [t for t in by_id.values() if t.requires_grad]


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
